//! Readings of the maps while packets change them. The maps are opened once. Any thread can read
//! them at any time without blocking those who write them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use aya::maps::{HashMap, MapData};
use lb_common::layout::{ServiceId, ServiceName, ServiceStats};
use lb_common::map;
use lb_common::reason::Reason;

use super::convert::text_of;
use super::counters::Counters;
use super::pinned::{open, unread};
use super::sizes::{Size, map_sizes};
use crate::maps::MapError;

/// Counting map entries may take at most one part in this many of the time. Keys can only be read
/// one by one, so a full flow table takes about 100 ms.
const COUNTING_SHARE: u32 = 100;

/// The maps that packets change, and the names of the counted service ports.
pub struct Readings {
    directory: PathBuf,
    counters: Counters,
    names: HashMap<MapData, ServiceId, ServiceName>,
    /// The last count, and when the next one may begin.
    counted: Mutex<Option<(Instant, Vec<Size>)>>,
}

impl Readings {
    /// Opens the maps pinned in `directory`.
    pub(crate) fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            directory: directory.to_owned(),
            counters: Counters::open(directory)?,
            names: open(directory, &map::SERVICE_NAMES)?,
            counted: Mutex::new(None),
        })
    }

    /// The number of packets that were rejected, answered or dropped, for each reason.
    pub(crate) fn reasons(&self) -> Result<Vec<(Reason, u64)>, MapError> {
        let read = |reason| Ok((reason, self.counters.reason(reason)?));
        Reason::ALL.into_iter().map(read).collect()
    }

    /// The counters of every service port, under `NAMESPACE/NAME/PORT/PROTOCOL`.
    pub(crate) fn services(&self) -> Result<Vec<(String, ServiceStats)>, MapError> {
        let read = |row: Result<(ServiceId, ServiceName), aya::maps::MapError>| {
            let (service, name) = row.map_err(unread(map::SERVICE_NAMES.name))?;
            Ok((text_of(&name), self.counters.service(service)?))
        };
        self.names.iter().map(read).collect()
    }

    /// The sizes of the maps that packets fill. The result may be cached, so that counting takes
    /// only a hundredth of the time.
    pub(crate) fn sizes(&self) -> Result<Vec<Size>, MapError> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        if let Some((next, sizes)) = &*counted
            && start < *next
        {
            return Ok(sizes.clone());
        }
        let sizes = map_sizes(&self.directory)?;
        *counted = Some((start + start.elapsed() * COUNTING_SHARE, sizes.clone()));
        Ok(sizes)
    }
}
