//! Reads from the kernel which devices carry an agent's programs. Commands use this.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::{DeviceRole, device_role};
use lb_common::map;

use super::device_maps::DeviceRows;
use super::object::program::TC_PREFIX;
use super::pins::Pins;
use crate::devices::{Bare, Snapshot, bare};
use crate::maps::MapError;

/// The devices that carry the programs.
#[derive(Clone, Debug)]
pub(crate) struct Carriers {
    /// Devices with a pinned TC link.
    linked: BTreeSet<u32>,
    /// The roles of devices: what is at their other end.
    roles: BTreeMap<u32, u32>,
}

impl Carriers {
    /// Reads pins and maps.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn read(pins: &Pins) -> Result<Self, CarriersError> {
        let names = pins.link_names().map_err(|source| CarriersError::Pins {
            directory: pins.links().display().to_string(),
            source,
        })?;
        let rows: DeviceRows<DeviceRole> = DeviceRows::open(&pins.maps(), &map::DEVICE_ROLES)?;
        Ok(Self {
            linked: names.iter().filter_map(|name| index_of(name)).collect(),
            roles: rows.values().map(|row| (row.index, row.role)).collect(),
        })
    }

    /// Whether a device carries the programs. An agent that attaches clsact filters pins no links.
    /// The roles serve as a fallback then. They also contain the bridges of Pods' devices, whose
    /// packets the programs see at the bridge ports.
    fn has(&self, device: u32) -> bool {
        match self.linked.is_empty() {
            true => self.roles.contains_key(&device),
            false => self.linked.contains(&device),
        }
    }

    /// Whether a device leads to Pods of this node: a Pod's device, or a bridge of such devices.
    pub(crate) fn leads_to_pods(&self, device: u32) -> bool {
        self.roles.get(&device) == Some(&device_role::POD)
    }

    /// The devices that are up and do not carry the programs.
    pub(crate) fn bare(&self, snapshot: &Snapshot) -> BTreeSet<Bare> {
        bare(snapshot, |index| self.has(index))
    }
}

/// The device of a pinned TC link. Every device with a role has one.
fn index_of(pin: &str) -> Option<u32> {
    let (index, program) = pin.split_once('-')?;
    program.starts_with(TC_PREFIX).then(|| index.parse().ok())?
}

/// Why the devices that carry the programs cannot be determined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CarriersError {
    /// The pinned links cannot be read.
    #[error("cannot read {directory}")]
    Pins {
        /// The directory of the links.
        directory: String,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// The roles cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_used_if_no_links_are_pinned() {
        let names = ["7-lb_tc_from_pod", "8-lb_xdp-native", "cgroup-lb_connect4"];
        let linked: BTreeSet<u32> = names.into_iter().filter_map(index_of).collect();
        assert_eq!(linked, [7].into());
        let roles = [
            (7, device_role::POD),
            (9, device_role::POD),
            (8, device_role::NETWORK),
        ];
        let with_links = Carriers {
            linked,
            roles: roles.into(),
        };
        let found = |carriers: &Carriers| [7, 8, 9].map(|index| carriers.has(index));
        assert_eq!(found(&with_links), [true, false, false]);
        assert_eq!(
            [7, 8, 9].map(|index| with_links.leads_to_pods(index)),
            [true, false, true]
        );
        let without = Carriers {
            linked: BTreeSet::new(),
            ..with_links
        };
        assert_eq!(found(&without), [true; 3]);
    }
}
