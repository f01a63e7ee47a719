//! The devices, addresses and default routes of one network namespace at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::network::Family;

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Tells apart devices that bore the same index one after the other: each gets its own.
    pub instance: u64,
    /// Its name.
    pub name: String,
    /// What the kernel calls its type, such as `veth`, `vxlan` or `bridge`; empty for hardware.
    pub kind: String,
    /// Whether it was set up (`ip link set up`).
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Whether its frames have an Ethernet header.
    pub ethernet: bool,
    /// Whether its frames begin with a header that the programs do not read: neither Ethernet's nor
    /// IP's.
    pub unreadable: bool,
    /// The id of the network namespace that its peer is in, if that is another one.
    pub link_netnsid: Option<i32>,
    /// The bridge, bond or the like that it is a port of.
    pub master: Option<u32>,
    /// Its link-layer address, if it has Ethernet headers.
    pub address: Option<[u8; 6]>,
}

impl Link {
    /// Whether it is an end of a pair of devices. Where such a device leads only its other end
    /// says.
    pub(super) fn is_pair_end(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit")
    }

    /// Whether addresses and routes do not tell where it leads: the other end of such a pair, or
    /// Open vSwitch, may lead to Pods of this node, as some CNIs have it.
    pub(super) fn leads_anywhere(&self) -> bool {
        self.is_pair_end() || self.kind == "openvswitch"
    }
}

/// An address of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Whether its scope is global.
    pub global: bool,
    /// Whether it is meant to be used: neither temporary, secondary, deprecated, tentative nor a
    /// duplicate.
    pub stable: bool,
}

/// A next hop of a default route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DefaultRoute {
    /// Family of the route.
    pub family: Family,
    /// Whether it is in the main table; other tables belong to policy rules or VRFs.
    pub main: bool,
    /// The lower, the better.
    pub metric: u32,
    /// Index of the device that packets leave by.
    pub device: u32,
    /// The source address that the route asks for.
    pub preferred_source: Option<IpAddr>,
}

/// What netlink said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Devices by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses by index of their device.
    pub addresses: BTreeMap<u32, Vec<Address>>,
    /// Default routes, one for each next hop.
    pub default_routes: Vec<DefaultRoute>,
    /// Devices that a route has led out by since they were up: of those only whose addresses do not
    /// tell.
    pub routed: BTreeSet<u32>,
}

impl Snapshot {
    /// Whether packets of other machines come by a device as far as addresses and routes tell.
    pub(super) fn leads_out(&self, device: u32) -> bool {
        self.has_global_address(device)
            || self.routed.contains(&device)
            || self.default_routes.iter().any(|route| route.device == device)
    }

    fn has_global_address(&self, device: u32) -> bool {
        let addresses = self.addresses.get(&device).into_iter().flatten();
        addresses
            .into_iter()
            .any(|address| address.global && !address.address.is_loopback())
    }

    /// Devices of which only a route can tell that packets of other machines come by them. A node
    /// has few of these, and may have very many routes.
    pub(super) fn asks_for_routes(&self) -> impl Iterator<Item = u32> {
        let open = |link: &&Link| {
            let may_be_one = link.up && !link.loopback && !link.unreadable && !link.leads_anywhere();
            may_be_one && self.switch_of(link).is_none() && !self.leads_out(link.index)
        };
        self.links.values().filter(open).map(|link| link.index)
    }

    /// The bridge, bond or the like that takes the packets of a device before the node's stack
    /// does. A VRF does not.
    pub(super) fn switch_of(&self, link: &Link) -> Option<&Link> {
        let master = self.links.get(&link.master?)?;
        (master.kind != "vrf").then_some(master)
    }

    /// Whether a default route names a device or an address that is gone. IPv4 routes vanish with
    /// these without an event of their own.
    pub(super) fn has_stale_route(&self) -> bool {
        self.default_routes.iter().any(|route| {
            let up = self.links.get(&route.device).is_some_and(|link| link.up);
            !up || route
                .preferred_source
                .is_some_and(|source| !self.has_address(source))
        })
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.addresses
            .values()
            .flatten()
            .any(|other| other.address == address)
    }
}

/// The node's primary address of each family: the source address that its best default route asks
/// for, else the first global address of that route's device. Used when no Node object tells.
pub fn primary_addresses(snapshot: &Snapshot) -> BTreeMap<Family, IpAddr> {
    Family::ALL
        .into_iter()
        .filter_map(|family| Some((family, primary_address(snapshot, family)?)))
        .collect()
}

/// All addresses of the node's devices that others can send to: neither loopback nor link-local
/// ones.
pub fn device_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let addresses = snapshot.addresses.values().flatten();
    addresses
        .map(|address| address.address)
        .filter(|address| !address.is_loopback() && !is_link_local(*address))
        .collect()
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn primary_address(snapshot: &Snapshot, family: Family) -> Option<IpAddr> {
    let mut routes: Vec<_> = snapshot
        .default_routes
        .iter()
        .filter(|route| route.main && route.family == family)
        .collect();
    routes.sort_by_key(|route| route.metric);
    routes.into_iter().find_map(|route| {
        let first_global = || first_global_address(snapshot, route.device, family);
        route.preferred_source.or_else(first_global)
    })
}

/// The first lasting global address of a device.
pub(crate) fn first_global_address(snapshot: &Snapshot, device: u32, family: Family) -> Option<IpAddr> {
    snapshot
        .addresses
        .get(&device)?
        .iter()
        .find(|address| address.global && address.stable && Family::of(address.address) == family)
        .map(|address| address.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address {
            address: text.parse().unwrap(),
            global: true,
            stable: true,
        }
    }

    fn route(family: Family, metric: u32, device: u32) -> DefaultRoute {
        DefaultRoute {
            family,
            main: true,
            metric,
            device,
            preferred_source: None,
        }
    }

    fn snapshot(addresses: &[(u32, Address)], default_routes: &[DefaultRoute]) -> Snapshot {
        let mut snapshot = Snapshot {
            default_routes: default_routes.to_vec(),
            ..Snapshot::default()
        };
        for &(device, address) in addresses {
            snapshot.addresses.entry(device).or_default().push(address);
            let link = Link {
                index: device,
                up: true,
                ..Link::default()
            };
            snapshot.links.insert(device, link);
        }
        snapshot
    }

    #[test]
    fn the_primary_address_is_on_the_device_of_the_best_default_route() {
        let addresses = [
            (2, address("10.0.0.2")),
            (3, address("10.0.1.2")),
            (3, address("10.0.1.3")),
        ];
        let routes = [route(Family::V4, 200, 2), route(Family::V4, 100, 3)];
        let primary = primary_addresses(&snapshot(&addresses, &routes));
        assert_eq!(
            primary,
            BTreeMap::from([(Family::V4, "10.0.1.2".parse().unwrap())])
        );
    }

    #[test]
    fn the_preferred_source_of_the_route_wins() {
        let preferring = DefaultRoute {
            preferred_source: Some("10.9.9.9".parse().unwrap()),
            ..route(Family::V4, 0, 2)
        };
        let primary = primary_addresses(&snapshot(&[(2, address("10.0.0.2"))], &[preferring]));
        assert_eq!(primary[&Family::V4], "10.9.9.9".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn link_local_temporary_and_other_family_addresses_are_not_primary() {
        let link_local = Address {
            global: false,
            ..address("fe80::1")
        };
        let temporary = Address {
            stable: false,
            ..address("2001:db8::77")
        };
        let addresses = [
            (2, address("10.0.0.2")),
            (2, link_local),
            (2, temporary),
            (2, address("2001:db8::2")),
        ];
        let primary = primary_addresses(&snapshot(&addresses, &[route(Family::V6, 1024, 2)]));
        assert_eq!(
            primary,
            BTreeMap::from([(Family::V6, "2001:db8::2".parse().unwrap())])
        );
    }

    #[test]
    fn device_addresses_are_those_that_others_can_send_to() {
        let secondary = Address {
            stable: false,
            ..address("2001:db8::77")
        };
        let addresses = [
            (1, address("127.0.0.1")),
            (1, address("203.0.113.9")),
            (1, address("::1")),
            (2, address("10.0.0.2")),
            (2, address("169.254.20.10")),
            (2, address("fe80::1")),
            (3, address("10.0.0.2")),
            (3, secondary),
        ];
        let expected = ["10.0.0.2", "203.0.113.9", "2001:db8::77"].map(|text| text.parse().unwrap());
        assert_eq!(device_addresses(&snapshot(&addresses, &[])), expected.into());
    }

    #[test]
    fn a_device_without_address_leaves_the_choice_to_the_next_route() {
        let routes = [route(Family::V4, 0, 7), route(Family::V4, 10, 2)];
        let primary = primary_addresses(&snapshot(&[(2, address("10.0.0.2"))], &routes));
        assert_eq!(primary[&Family::V4], "10.0.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn routes_of_other_tables_have_no_say() {
        let policy = DefaultRoute {
            main: false,
            ..route(Family::V4, 0, 2)
        };
        assert!(primary_addresses(&snapshot(&[(2, address("10.0.0.2"))], &[policy])).is_empty());
    }

    #[test]
    fn a_route_is_stale_without_its_device_or_its_source() {
        let addresses = [(2, address("10.0.0.2"))];
        let good = route(Family::V4, 0, 2);
        assert!(!snapshot(&addresses, &[good]).has_stale_route());
        assert!(snapshot(&addresses, &[route(Family::V4, 0, 3)]).has_stale_route());
        let preferring = DefaultRoute {
            preferred_source: Some("10.9.9.9".parse().unwrap()),
            ..good
        };
        assert!(snapshot(&addresses, &[preferring]).has_stale_route());
        let mut down = snapshot(&addresses, &[good]);
        down.links.get_mut(&2).unwrap().up = false;
        assert!(down.has_stale_route());
    }
}
