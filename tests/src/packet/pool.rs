//! A pool of loaded programs: the verifier takes longer than everything else in a test.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use lb_agent::datapath::object::settings::Settings;
use lb_agent::maps::{Backend, BackendState, MapOp, Maps as _};
use lb_common::layout::{ServiceStats, Slot};
use lb_common::map;

use super::Datapath;

/// Programs that no test uses. Their maps are as after loading.
static IDLE: Mutex<Vec<Datapath>> = Mutex::new(Vec::new());

/// Programs that return to the pool when they are dropped, unless the test fails.
pub struct Borrowed(Option<Datapath>);

impl Borrowed {
    /// Takes programs with these settings from the pool, or loads them.
    pub(super) fn take(settings: Settings) -> Self {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let position = idle.iter().position(|datapath| datapath.settings == settings);
        let found = position.map(|position| idle.swap_remove(position));
        drop(idle);
        Self(Some(found.unwrap_or_else(|| Datapath::with_settings(settings))))
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
        // A failed test may have left the maps in any state.
        if thread::panicking() {
            return;
        }
        datapath.clear();
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(datapath);
    }
}

impl Datapath {
    /// Restores the state after loading of all maps that the programs read.
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
        self.forget_answers();
        // This comes before the filters, which contain the devices' addresses.
        self.reassemble(None);
        let directory = self.directory().to_owned();
        self.maps.renew_filters(&directory).expect("the maps accept it");
        self.zero::<u64>(map::REASONS.name);
        self.zero::<ServiceStats>(map::SERVICE_STATS.name);
        self.backends.clear();
        self.frontends.clear();
        self.device = 0;
        self.segment_size = 0;
        self.limits_answers = false;
    }

    fn zero<V: aya::Pod + Default>(&self, name: &str) {
        let mut counters: PerCpuArray<MapData, V> =
            self.pinned(name).try_into().expect("counters of each CPU");
        let processors = nr_cpus().expect("the number of processors");
        for index in 0..counters.len() {
            let zeros = PerCpuValues::try_from(vec![V::default(); processors]);
            counters
                .set(index, zeros.expect("a value for each processor"), 0)
                .expect("the map accepts it");
        }
    }
}
