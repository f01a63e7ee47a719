//! What the programs know about devices: the maps of devices, roles and addresses of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aya::maps::{Array, DevMap, HashMap, MapData, MapError as KernelError};
use lb_common::address::Address as _;
use lb_common::layout::{Device, DeviceLinks, DeviceRole, LinkAddress, device_role};
use lb_common::map;
use lb_common::net::{Address4, Address6};

use super::device_maps::{DeviceRows, KeySet};
use super::filter::Filter;
use super::pinned::{kernel, open, read_all};
use crate::devices::{DeviceView, Link, Role, Snapshot, first_global_address};
use crate::maps::MapError;
use crate::network::Family;

/// The devices maps.
pub struct DeviceTable {
    devices: HashMap<MapData, u32, Device>,
    xdp_devices: DeviceRows<u32>,
    roles: DeviceRows<DeviceRole>,
    pod_devices: DeviceRows<u32>,
    device_links: DeviceRows<DeviceLinks>,
    node_links: KeySet<LinkAddress>,
    node_addresses: KeySet<[u32; 4]>,
    reassembly: DevMap<MapData>,
    xdp_reassembly: Array<MapData, u32>,
}

impl DeviceTable {
    /// Opens the maps pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            devices: open(directory, &map::DEVICES)?,
            xdp_devices: DeviceRows::open(directory, &map::XDP_DEVICES)?,
            roles: DeviceRows::open(directory, &map::DEVICE_ROLES)?,
            pod_devices: DeviceRows::open(directory, &map::POD_DEVICES)?,
            device_links: DeviceRows::open(directory, &map::DEVICE_LINKS)?,
            node_links: KeySet::open(directory, &map::NODE_LINKS)?,
            node_addresses: KeySet::open(directory, &map::NODE_ADDRESSES)?,
            reassembly: open(directory, &map::REASSEMBLY)?,
            xdp_reassembly: open(directory, &map::XDP_REASSEMBLY)?,
        })
    }

    /// Sets the device that leads to the kernel's own reassembly of datagrams. 0 for none.
    pub fn set_reassembly(&mut self, index: u32) -> Result<(), MapError> {
        let known = match self.reassembly.get(0, 0) {
            Ok(device) => device.if_index,
            Err(KernelError::KeyNotFound) => 0,
            Err(error) => return Err(kernel(map::REASSEMBLY.name, "read the device".to_owned(), error)),
        };
        if known != index {
            self.reassembly
                .set(0, index, None, 0)
                .map_err(|error| kernel(map::REASSEMBLY.name, format!("write device {index}"), error))?;
        }
        self.xdp_reassembly
            .set(0, index, 0)
            .map_err(|error| kernel(map::XDP_REASSEMBLY.name, format!("write device {index}"), error))
    }

    /// Writes the rows that differ. `with_xdp` contains the devices that carry the XDP program.
    /// Adds the addresses that replace clients' to `filter`.
    pub fn set(
        &mut self,
        view: &DeviceView,
        with_xdp: &BTreeSet<u32>,
        filter: &Filter,
    ) -> Result<(), MapError> {
        let wanted = rows(&view.snapshot);
        let mut present = read_all(&self.devices, map::DEVICES.name)?;
        for (index, device) in &wanted {
            // Replies arrive at these addresses.
            for address in addresses(device) {
                filter.set(address)?;
            }
            if present.remove(index).as_ref() != Some(device) {
                self.devices
                    .insert(index, device, 0)
                    .map_err(|error| kernel(map::DEVICES.name, format!("write device {index}"), error))?;
            }
        }
        for index in present.keys() {
            self.devices
                .remove(index)
                .map_err(|error| kernel(map::DEVICES.name, format!("delete device {index}"), error))?;
        }
        let itself = |index| (index, index);
        self.xdp_devices
            .set(usable_with_xdp(&view.snapshot, with_xdp).map(itself))?;
        self.roles.set(roles(view).into_iter())?;
        self.pod_devices.set(to_pods(view).map(itself))?;
        self.device_links.set(device_links(&view.snapshot))?;
        self.node_links.set(node_links(&view.snapshot))?;
        self.node_addresses.set(node_addresses(&view.snapshot))
    }
}

/// The addresses of all rows.
pub(super) fn all_addresses(directory: &Path) -> Result<Vec<IpAddr>, MapError> {
    let devices: HashMap<_, u32, Device> = open(directory, &map::DEVICES)?;
    let devices = read_all(&devices, map::DEVICES.name)?;
    Ok(devices.values().flat_map(addresses).collect())
}

/// The addresses in a row.
fn addresses(device: &Device) -> impl Iterator<Item = IpAddr> {
    [device.address4.into(), device.address6.into()]
        .into_iter()
        .filter(|address: &IpAddr| !address.is_unspecified())
}

/// The devices through which packets can leave.
fn usable(snapshot: &Snapshot) -> impl Iterator<Item = &Link> {
    snapshot.links.values().filter(|link| link.up && !link.loopback)
}

/// The devices that carry XDP and through which packets can leave.
fn usable_with_xdp(snapshot: &Snapshot, with_xdp: &BTreeSet<u32>) -> impl Iterator<Item = u32> {
    usable(snapshot)
        .map(|link| link.index)
        .filter(|index| with_xdp.contains(index))
}

/// The veth devices whose peer is in a Pod, so that programs can redirect a packet to the peer.
/// Other kinds of device have no peer. If the peer is in this network namespace, the packet would
/// be lost.
fn to_pods(view: &DeviceView) -> impl Iterator<Item = u32> {
    let is_pod = |link: &Link| {
        let attachment = view.attachments.get(&link.index);
        attachment.is_some_and(|attachment| attachment.role == Role::Pod)
    };
    usable(&view.snapshot)
        .filter(move |link| link.kind == "veth" && link.link_netnsid.is_some() && is_pod(link))
        .map(|link| link.index)
}

/// The roles of the devices that carry programs, and of the bridges whose ports are Pods' devices.
fn roles(view: &DeviceView) -> BTreeMap<u32, DeviceRole> {
    let master = |index: &u32| view.snapshot.links.get(index)?.master;
    let mut roles = BTreeMap::new();
    for (index, attachment) in &view.attachments {
        let is_pod = attachment.role == Role::Pod;
        if is_pod && let Some(bridge) = master(index) {
            roles.entry(bridge).or_insert(DeviceRole {
                index: bridge,
                role: device_role::POD,
                master: bridge,
            });
        }
        let row = DeviceRole {
            index: *index,
            role: if is_pod {
                device_role::POD
            } else {
                device_role::NETWORK
            },
            master: master(index).unwrap_or(*index),
        };
        roles.insert(*index, row);
    }
    roles
}

/// The link-layer addresses of frames for a device, or for the bridge or bond that it is a port of.
fn device_links(snapshot: &Snapshot) -> impl Iterator<Item = (u32, DeviceLinks)> {
    usable(snapshot).filter_map(|link| {
        let own = link.address?;
        let master = link
            .master
            .and_then(|master| snapshot.links.get(&master)?.address);
        let addresses = [own, master.unwrap_or(own)].map(LinkAddress::from);
        let index = link.index;
        Some((index, DeviceLinks { index, addresses }))
    })
}

/// Link-layer addresses of devices that receive frames which arrive on other devices: bridges and
/// similar devices, and macvlan devices with an IP address, such as that of an active VRRP router.
fn node_links(snapshot: &Snapshot) -> BTreeSet<LinkAddress> {
    let takes = |link: &Link| match link.kind.as_str() {
        "bridge" | "bond" | "team" | "openvswitch" => true,
        "macvlan" => {
            let addresses = snapshot.addresses.get(&link.index).into_iter().flatten();
            addresses.into_iter().any(|address| address.global)
        }
        _ => false,
    };
    let found = usable(snapshot).filter(|link| takes(link));
    found
        .filter_map(|link| link.address.map(LinkAddress::from))
        .collect()
}

/// The IP addresses of all devices that are up, in the form of the map's keys.
fn node_addresses(snapshot: &Snapshot) -> BTreeSet<[u32; 4]> {
    let is_up = |index| snapshot.links.get(index).is_some_and(|link| link.up);
    let found = snapshot.addresses.iter().filter(|(index, _)| is_up(index));
    found
        .flat_map(|(_, addresses)| addresses)
        .map(|address| match address.address {
            IpAddr::V4(address) => Address4::from(address).words(),
            IpAddr::V6(address) => Address6::from(address).words(),
        })
        .collect()
}

/// A row for each device that has an address and through which packets can leave.
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
    use crate::devices::{Address, Attachment};

    fn link(index: u32, up: bool, loopback: bool) -> Link {
        Link {
            index,
            up,
            loopback,
            ..Link::default()
        }
    }

    #[test]
    fn xdp_sends_through_devices_that_are_up() {
        let snapshot = Snapshot {
            links: [1, 2, 3, 4]
                .map(|index| (index, link(index, index != 4, index == 1)))
                .into(),
            ..Snapshot::default()
        };
        let with_xdp = BTreeSet::from([1, 3, 4]);
        let found: Vec<u32> = usable_with_xdp(&snapshot, &with_xdp).collect();
        assert_eq!(found, [3]);
    }

    #[test]
    fn packets_are_redirected_only_to_veth_peers_in_pods() {
        let veth = |index, up, namespace| Link {
            kind: "veth".to_owned(),
            link_netnsid: namespace,
            ..link(index, up, false)
        };
        let other_kind = Link {
            kind: "macvlan".to_owned(),
            ..veth(5, true, Some(0))
        };
        let links = [
            veth(2, true, Some(0)),
            veth(3, false, Some(0)),
            veth(4, true, None),
            other_kind,
            veth(6, true, Some(0)),
            veth(7, true, Some(0)),
        ];
        let role = |index| if index == 6 { Role::Network } else { Role::Pod };
        let attachment = |index| Attachment {
            name: String::new(),
            kind: String::new(),
            instance: 0,
            role: role(index),
            ethernet: true,
        };
        let view = DeviceView {
            snapshot: Snapshot {
                links: links.map(|link| (link.index, link)).into(),
                ..Snapshot::default()
            },
            // The last device has no role.
            attachments: (2..7).map(|index| (index, attachment(index))).collect(),
        };
        let found: Vec<u32> = to_pods(&view).collect();
        assert_eq!(found, [2]);
    }

    #[test]
    fn a_bridge_of_pod_devices_has_the_role_of_pods() {
        let port = |index, master| Link {
            master: Some(master),
            ..link(index, true, false)
        };
        let links = [
            link(2, true, false),
            port(3, 5),
            port(4, 2),
            link(5, true, false),
            link(6, true, false),
        ];
        let attachment = |(index, role)| {
            let attachment = Attachment {
                name: String::new(),
                kind: String::new(),
                instance: 0,
                role,
                ethernet: true,
            };
            (index, attachment)
        };
        let attachments = [(2, Role::Network), (3, Role::Pod), (4, Role::Pod)];
        let view = DeviceView {
            snapshot: Snapshot {
                links: links.map(|link| (link.index, link)).into(),
                ..Snapshot::default()
            },
            attachments: attachments.map(attachment).into(),
        };
        let row = |index, role, master| (index, DeviceRole { index, role, master });
        // The bridge of Pods' devices has the role of Pods, unless it also leads out of the node. A
        // device without a role gets no row.
        let expected = [
            row(2, device_role::NETWORK, 2),
            row(3, device_role::POD, 5),
            row(4, device_role::POD, 2),
            row(5, device_role::POD, 5),
        ];
        assert_eq!(roles(&view), expected.into());
    }

    #[test]
    fn a_port_accepts_frames_for_itself_and_for_its_bridge() {
        let with_address = |index, kind: &str, last| Link {
            kind: kind.to_owned(),
            address: Some([2, 0, 0, 0, 0, last]),
            ..link(index, true, false)
        };
        let port = Link {
            master: Some(5),
            ..with_address(3, "", 3)
        };
        let links = [
            link(1, true, true),
            with_address(2, "", 2),
            port,
            Link {
                up: false,
                ..with_address(4, "bridge", 4)
            },
            with_address(5, "bridge", 5),
            with_address(6, "macvlan", 6),
            with_address(7, "macvlan", 7),
            // Its frames are for a virtual machine.
            with_address(8, "macvtap", 8),
        ];
        let address = |text: &str| Address {
            address: text.parse().unwrap(),
            global: true,
            stable: false,
        };
        let snapshot = Snapshot {
            links: links.map(|link| (link.index, link)).into(),
            addresses: [
                (1, vec![address("127.0.0.1")]),
                (4, vec![address("192.0.2.4")]),
                (7, vec![address("192.0.2.7"), address("2001:db8::7")]),
            ]
            .into(),
            ..Snapshot::default()
        };
        let address = |last| LinkAddress::from([2, 0, 0, 0, 0, last]);
        let row = |index, own, master| {
            let addresses = [own, master].map(address);
            (index, DeviceLinks { index, addresses })
        };
        let found: Vec<_> = device_links(&snapshot).collect();
        let own = |index: u8| row(index.into(), index, index);
        assert_eq!(found, [own(2), row(3, 3, 5), own(5), own(6), own(7), own(8)]);
        assert_eq!(node_links(&snapshot), [address(5), address(7)].into());
        let expected = [
            Address4::from(Ipv4Addr::LOCALHOST).words(),
            Address4::from(Ipv4Addr::new(192, 0, 2, 7)).words(),
            Address6::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)).words(),
        ];
        assert_eq!(node_addresses(&snapshot), expected.into());
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
            ..Snapshot::default()
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
