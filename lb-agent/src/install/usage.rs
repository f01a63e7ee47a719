//! Usage of the maps, and how long the kernel has refused writes.

use std::time::Instant;

use super::Installer;
use crate::maps::Capacity;
use crate::network::Family;

/// How much of the maps is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Frontend rows of IPv4 and IPv6.
    pub frontends: [usize; 2],
    /// Backend rows of IPv4 and IPv6, including those that are freed soon.
    pub backends: [usize; 2],
    /// Slots that frontends name.
    pub slots: usize,
    /// Service ids.
    pub services: usize,
    /// Source ranges of IPv4 and IPv6.
    pub source_ranges: [usize; 2],
    /// The capacities.
    pub capacity: Capacity,
}

impl Installer {
    /// Returns how much of the maps is in use.
    pub fn usage(&self) -> Usage {
        let tables = &self.tables;
        let capacity = tables.capacity();
        // Row 0 is never used.
        let usable = usize::try_from(capacity.backends.saturating_sub(1)).unwrap_or(usize::MAX);
        Usage {
            frontends: Family::ALL.map(|family| tables.n_frontends(family)),
            backends: Family::ALL.map(|family| usable.saturating_sub(tables.backends(family).available())),
            slots: tables.regions().written().map(|(_, slots)| slots.len()).sum(),
            services: tables.names().len(),
            source_ranges: Family::ALL.map(|family| {
                let ranges = tables.written_ranges();
                ranges.filter(|(_, network)| network.family() == family).count()
            }),
            capacity,
        }
    }

    /// Since when the kernel has refused to write some Service. Services that do not fit into the
    /// maps do not count. They are reported, but they are not a fault of the agent.
    pub fn fault_since(&self) -> Option<Instant> {
        let failed = self
            .retries
            .iter()
            .filter_map(|(_, name)| self.services.get(name)?.failure.as_ref());
        failed.filter_map(|failure| failure.fault_since).min()
    }
}
