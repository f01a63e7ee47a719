//! What the programs know of devices that packets to Pods of other nodes leave by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aya::maps::{Array, HashMap, MapData};
use lb_common::layout::{Address4, Address6, Device, map, xdp_device_row};

use super::filter::Filter;
use super::maps::{kernel, open, typed};
use crate::devices::{Link, Snapshot, first_global_address};
use crate::maps::{Family, MapError};

/// The devices maps.
pub struct DeviceTable {
    devices: HashMap<MapData, u32, Device>,
    xdp_devices: Array<MapData, u32>,
    /// The rows of `xdp_devices` that hold a device.
    xdp_rows: BTreeMap<u32, u32>,
    filter: Filter,
}

impl DeviceTable {
    /// Opens the maps pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let xdp_devices: Array<_, u32> = typed(open(directory, map::XDP_DEVICES)?, map::XDP_DEVICES)?;
        let mut xdp_rows = BTreeMap::new();
        for (row, index) in (0..).zip(xdp_devices.iter()) {
            let index = index.map_err(|error| kernel(map::XDP_DEVICES, format!("read row {row}"), error))?;
            if index != 0 {
                xdp_rows.insert(row, index);
            }
        }
        Ok(Self {
            devices: typed(open(directory, map::DEVICES)?, map::DEVICES)?,
            xdp_devices,
            xdp_rows,
            filter: Filter::open(directory)?,
        })
    }

    /// Writes what differs. `with_xdp` are the devices that carry the XDP program.
    pub fn set(&mut self, snapshot: &Snapshot, with_xdp: &BTreeSet<u32>) -> Result<(), MapError> {
        let wanted = rows(snapshot);
        let mut present = BTreeMap::new();
        for row in self.devices.iter() {
            let (index, device) =
                row.map_err(|error| kernel(map::DEVICES, "read all rows".to_owned(), error))?;
            present.insert(index, device);
        }
        for (index, device) in &wanted {
            // Replies come to these addresses.
            for address in addresses(device) {
                self.filter.set(address)?;
            }
            if present.remove(index).as_ref() != Some(device) {
                self.devices
                    .insert(index, device, 0)
                    .map_err(|error| kernel(map::DEVICES, format!("write device {index}"), error))?;
            }
        }
        for index in present.keys() {
            self.devices
                .remove(index)
                .map_err(|error| kernel(map::DEVICES, format!("delete device {index}"), error))?;
        }
        self.set_xdp(snapshot, with_xdp)
    }

    fn set_xdp(&mut self, snapshot: &Snapshot, with_xdp: &BTreeSet<u32>) -> Result<(), MapError> {
        let wanted = xdp_rows(snapshot, with_xdp);
        for (row, index) in changed_rows(&self.xdp_rows, &wanted) {
            self.xdp_devices.set(row, index, 0).map_err(|error| {
                kernel(
                    map::XDP_DEVICES,
                    format!("write device {index} to row {row}"),
                    error,
                )
            })?;
        }
        self.xdp_rows = wanted;
        Ok(())
    }
}

/// The addresses of all rows.
pub(super) fn all_addresses(directory: &Path) -> Result<Vec<IpAddr>, MapError> {
    let table = DeviceTable::open(directory)?;
    let mut found = Vec::new();
    for row in table.devices.iter() {
        let (_, device) = row.map_err(|error| kernel(map::DEVICES, "read all rows".to_owned(), error))?;
        found.extend(addresses(&device));
    }
    Ok(found)
}

/// The addresses in a row.
fn addresses(device: &Device) -> impl Iterator<Item = IpAddr> {
    [device.address4.into(), device.address6.into()]
        .into_iter()
        .filter(|address: &IpAddr| !address.is_unspecified())
}

/// The devices that packets can leave by.
fn usable(snapshot: &Snapshot) -> impl Iterator<Item = &Link> {
    snapshot.links.values().filter(|link| link.up && !link.loopback)
}

/// Which device stands in which row of the XDP devices map.
fn xdp_rows(snapshot: &Snapshot, with_xdp: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
    usable(snapshot)
        .map(|link| link.index)
        .filter(|index| with_xdp.contains(index))
        .map(|index| (xdp_device_row(index), index))
        .collect()
}

/// What has to be written so that `wanted` stands where `known` does; 0 where no device does any more.
fn changed_rows(known: &BTreeMap<u32, u32>, wanted: &BTreeMap<u32, u32>) -> Vec<(u32, u32)> {
    let gone = known.keys().filter(|row| !wanted.contains_key(row));
    let gone = gone.map(|row| (*row, 0));
    let new = wanted.iter().filter(|(row, index)| known.get(row) != Some(index));
    gone.chain(new.map(|(row, index)| (*row, *index))).collect()
}

/// A row for each device with an address that packets can leave by.
fn rows(snapshot: &Snapshot) -> BTreeMap<u32, Device> {
    let rows = usable(snapshot).map(|link| {
        let address = |family| first_global_address(snapshot, link.index, family);
        let address4 = match address(Family::V4) {
            Some(IpAddr::V4(address)) => address,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let address6 = match address(Family::V6) {
            Some(IpAddr::V6(address)) => address,
            _ => Ipv6Addr::UNSPECIFIED,
        };
        let device = Device {
            address4: Address4::from(address4),
            address6: Address6::from(address6),
        };
        (link.index, device)
    });
    rows.filter(|(_, device)| *device != Device::default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Address;
    use lb_common::layout::XDP_DEVICES;

    fn link(index: u32, up: bool, loopback: bool) -> Link {
        Link {
            index,
            up,
            loopback,
            ..Link::default()
        }
    }

    #[test]
    fn xdp_sends_through_one_device_of_a_row() {
        let snapshot = Snapshot {
            links: [1, 2, 3, 4, 3 + XDP_DEVICES, 5 + XDP_DEVICES]
                .map(|index| (index, link(index, index != 4, index == 1)))
                .into(),
            ..Snapshot::default()
        };
        let with_xdp = BTreeSet::from([1, 3, 4, 3 + XDP_DEVICES, 5 + XDP_DEVICES]);
        let expected = BTreeMap::from([(3, 3 + XDP_DEVICES), (5, 5 + XDP_DEVICES)]);
        assert_eq!(xdp_rows(&snapshot, &with_xdp), expected);
    }

    #[test]
    fn only_rows_that_differ_are_written() {
        let known = BTreeMap::from([(1, 1), (2, 2), (3, 3)]);
        let wanted = BTreeMap::from([(1, 1), (3, 1027), (4, 4)]);
        assert_eq!(changed_rows(&known, &wanted), [(2, 0), (3, 1027), (4, 4)]);
        assert_eq!(changed_rows(&wanted, &wanted), []);
    }

    #[test]
    fn rows_have_the_first_global_address_of_each_family() {
        let address = |text: &str, global| Address {
            address: text.parse().unwrap(),
            global,
            stable: true,
        };
        let snapshot = Snapshot {
            links: [
                link(1, true, true),
                link(2, true, false),
                link(3, false, false),
                link(4, true, false),
                link(5, true, false),
            ]
            .map(|link| (link.index, link))
            .into(),
            addresses: [
                (1, vec![address("127.0.0.1", true)]),
                (
                    2,
                    vec![
                        address("fe80::1", false),
                        address("192.0.2.1", true),
                        address("192.0.2.2", true),
                        address("2001:db8::1", true),
                    ],
                ),
                (3, vec![address("192.0.2.3", true)]),
            ]
            .into(),
            default_routes: vec![],
        };
        let row = |address4: &str, address6: &str| Device {
            address4: address4.parse::<Ipv4Addr>().unwrap().into(),
            address6: address6.parse::<Ipv6Addr>().unwrap().into(),
        };
        let expected = BTreeMap::from([(2, row("192.0.2.1", "2001:db8::1"))]);
        assert_eq!(rows(&snapshot), expected);
        let found: Vec<IpAddr> = addresses(&expected[&2]).collect();
        assert_eq!(found.len(), 2);
    }
}
