//! What the maps tell while packets change them. Opened once, read at any time and by any thread:
//! nobody who writes them waits.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use aya::maps::{HashMap, MapData};
use lb_common::layout::{ServiceId, ServiceName, ServiceStats, map};
use lb_common::reason::Reason;

use super::convert::text_of;
use super::counters::Counters;
use super::pinned::{open, unread};
use super::sizes::{Size, map_sizes};
use crate::maps::MapError;

/// One part in so many of the time may go into counting the entries of maps: a full flow table
/// takes some 100 ms, as its keys can only be had one by one.
const COUNTING_SHARE: u32 = 100;

/// The maps that packets change, and the names of what they count.
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
            names: open(directory, map::SERVICE_NAMES)?,
            counted: Mutex::new(None),
        })
    }

    /// How many packets were not simply translated, for each reason.
    pub(crate) fn reasons(&self) -> Result<Vec<(Reason, u64)>, MapError> {
        let read = |reason| Ok((reason, self.counters.reason(reason)?));
        Reason::ALL.into_iter().map(read).collect()
    }

    /// The counters of every service port, under `NAMESPACE/NAME/PORT/PROTOCOL`.
    pub(crate) fn services(&self) -> Result<Vec<(String, ServiceStats)>, MapError> {
        let read = |row: Result<(ServiceId, ServiceName), aya::maps::MapError>| {
            let (service, name) = row.map_err(unread(map::SERVICE_NAMES))?;
            Ok((text_of(&name), self.counters.service(service)?))
        };
        self.names.iter().map(read).collect()
    }

    /// The maps that packets fill, as they are or were a short time ago: counting them takes a
    /// hundredth of the time.
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
