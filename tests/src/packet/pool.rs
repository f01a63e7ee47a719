//! Loaded programs that are used again: what the verifier does takes longer than everything else in a test.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use lb_agent::maps::{Backend, BackendState, MapOp, Maps as _};
use lb_common::layout::{ServiceStats, Slot, map};

use super::{Datapath, FLOWS};

/// Those that no test uses, their maps empty.
static IDLE: Mutex<Vec<Datapath>> = Mutex::new(Vec::new());

/// Programs that are left to another test afterwards, unless this one fails.
pub struct Borrowed(Option<Datapath>);

impl Borrowed {
    pub(super) fn take() -> Self {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self(Some(idle.unwrap_or_else(|| Datapath::new(FLOWS))))
    }
}

impl Deref for Borrowed {
    type Target = Datapath;

    fn deref(&self) -> &Datapath {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut Datapath {
        self.0.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let Some(mut datapath) = self.0.take() else {
            return;
        };
        // Devices are those of a network namespace that is gone; a failed test may have left anything.
        if thread::panicking() || datapath.device != 0 {
            return;
        }
        datapath.clear();
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(datapath);
    }
}

impl Datapath {
    /// Empties the maps, as far as programs look at them.
    fn clear(&mut self) {
        let image = self.maps.image().expect("the maps are read");
        for key in image.frontends.into_keys() {
            self.apply(&MapOp::DeleteFrontend { key });
        }
        for (set, network) in image.source_ranges {
            self.apply(&MapOp::DeleteSourceRange { set, network });
        }
        for service in image.names.into_keys() {
            self.apply(&MapOp::DeleteName { service });
        }
        for (base, _) in image.slots {
            let slots = vec![Slot::default()];
            self.apply(&MapOp::SetSlots { base, slots });
        }
        for (id, backend) in image.backends4.into_iter().chain(image.backends6) {
            let never_written = Backend {
                state: BackendState::Gone,
                generation: 0,
                ..backend
            };
            self.apply(&MapOp::SetBackend {
                id,
                backend: never_written,
            });
        }
        self.forget();
        self.zero::<u64>(map::REASONS);
        self.zero::<ServiceStats>(map::SERVICE_STATS);
        self.backends.clear();
        self.segment_size = 0;
    }

    fn zero<V: aya::Pod + Default>(&self, name: &str) {
        let mut counters: PerCpuArray<MapData, V> =
            self.pinned(name).try_into().expect("counters of each CPU");
        let processors = nr_cpus().expect("the number of processors");
        for index in 0..counters.len() {
            let zeros = PerCpuValues::try_from(vec![V::default(); processors]);
            counters
                .set(index, zeros.expect("a value for each processor"), 0)
                .expect("the map takes it");
        }
    }
}
