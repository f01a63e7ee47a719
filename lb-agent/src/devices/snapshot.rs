//! The devices, addresses and default routes of a network namespace at one point in time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::network::Family;

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// A number that distinguishes devices which successively had the same index.
    pub instance: u64,
    /// Its name.
    pub name: String,
    /// The kernel's type name, such as `veth`, `vxlan` or `bridge`. Empty for hardware.
    pub kind: String,
    /// Whether it is administratively up (`ip link set up`).
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Whether its frames have an Ethernet header.
    pub ethernet: bool,
    /// Whether its frames begin with a header that the programs cannot read: neither Ethernet nor
    /// IP.
    pub unreadable: bool,
    /// The id of its peer's network namespace, if that is a different one.
    pub link_netnsid: Option<i32>,
    /// The bridge, bond or similar device that it is a port of.
    pub master: Option<u32>,
    /// Its link-layer address, if it has Ethernet headers.
    pub address: Option<[u8; 6]>,
}

impl Link {
    /// Whether it is one end of a pair of devices. Only the other end determines where it leads.
    pub(super) fn is_pair_end(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit")
    }

    /// Whether addresses and routes do not show where it leads. The other end of a pair, or Open
    /// vSwitch, may lead to Pods of this node, as with some CNIs.
    pub(super) fn may_lead_anywhere(&self) -> bool {
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
    /// Whether it is suitable for general use: not temporary, secondary, deprecated, tentative or a
    /// duplicate.
    pub stable: bool,
}

/// A next hop of a default route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DefaultRoute {
    /// Family of the route.
    pub family: Family,
    /// Whether it is in the main table. Other tables belong to policy rules or VRFs.
    pub main: bool,
    /// The metric. Lower values are better.
    pub metric: u32,
    /// Index of the device through which packets leave.
    pub device: u32,
    /// The preferred source address of the route.
    pub preferred_source: Option<IpAddr>,
}

/// The state that netlink reported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Devices by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses by index of their device.
    pub addresses: BTreeMap<u32, Vec<Address>>,
    /// Default routes, one for each next hop.
    pub default_routes: Vec<DefaultRoute>,
    /// Devices that have had a route out of the node since they came up. Only contains devices
    /// whose addresses do not show that they lead out.
    pub routed: BTreeSet<u32>,
}

impl Snapshot {
    /// Whether packets of other machines arrive on a device, according to addresses and routes.
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

    /// Devices for which only a route can show that packets of other machines arrive on them. A
    /// node has few of these, but may have very many routes.
    pub(super) fn asks_for_routes(&self) -> impl Iterator<Item = u32> {
        let open = |link: &&Link| {
            let may_be_one = link.up && !link.loopback && !link.unreadable && !link.may_lead_anywhere();
            may_be_one && self.switch_of(link).is_none() && !self.leads_out(link.index)
        };
        self.links.values().filter(open).map(|link| link.index)
    }

    /// The bridge, bond or similar device that receives the packets of a device before the node's
    /// stack does. A VRF does not count.
    pub(super) fn switch_of(&self, link: &Link) -> Option<&Link> {
        let master = self.links.get(&link.master?)?;
        (master.kind != "vrf").then_some(master)
    }

    /// Whether a default route names a device or an address that no longer exists. The kernel
    /// removes such IPv4 routes without a separate event.
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

/// The node's primary address of each family: the preferred source address of the best default
/// route, or else the first global address of that route's device. Used if no Node object is
/// available.
pub fn primary_addresses(snapshot: &Snapshot) -> BTreeMap<Family, IpAddr> {
    Family::ALL
        .into_iter()
        .filter_map(|family| Some((family, primary_address(snapshot, family)?)))
        .collect()
}

/// All addresses of the node's devices that other machines can send to, i.e. neither loopback nor
/// link-local ones.
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

/// The first global, stable address of a device.
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
    fn device_addresses_exclude_loopback_and_link_local_ones() {
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
    fn if_a_device_has_no_address_the_next_route_is_used() {
        let routes = [route(Family::V4, 0, 7), route(Family::V4, 10, 2)];
        let primary = primary_addresses(&snapshot(&[(2, address("10.0.0.2"))], &routes));
        assert_eq!(primary[&Family::V4], "10.0.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn routes_of_other_tables_are_ignored() {
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
