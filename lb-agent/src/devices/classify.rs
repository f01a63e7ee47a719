//! The rules that say which device is a Pod's and which leads out of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Serialize;

use super::{Link, Snapshot};

/// The agent's own device, which leads to the kernel's reassembly of datagrams ([`crate::reassembly`]).
pub const REASSEMBLY_DEVICE: &str = "lbfrag0";

/// Which side of the node a device is on; decides which programs it carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It leads to clients outside or to Pods of other nodes.
    Network,
    /// It is the host end of a Pod's veth pair.
    Pod,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Network => "network",
            Self::Pod => "Pod",
        })
    }
}

/// What a device is to carry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Attachment {
    /// Name of the device.
    pub name: String,
    /// What the kernel calls the device's type; empty for hardware. A `veth` counts as having no native XDP.
    pub kind: String,
    /// Another number than before under the same index is another device: it carries nothing yet.
    #[serde(skip)]
    pub instance: u64,
    /// Its role.
    pub role: Role,
    /// Whether its packets begin with an Ethernet header; else with the IP header.
    pub ethernet: bool,
}

/// The command-line options that choose devices.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DeviceArguments {
    /// Devices towards clients and other nodes, as a pattern like `eth*` (may be repeated) [default: those with a
    /// default route or a node address, and overlays]
    #[arg(long, value_name = "GLOB")]
    pub network_device: Vec<Glob>,
    /// Host ends of the Pods' devices, as a pattern like `veth*` (may be repeated) [default: every veth whose peer
    /// is in another network namespace]
    #[arg(long, value_name = "GLOB")]
    pub pod_device: Vec<Glob>,
}

/// How to choose devices. Device names that match take the place of the automatic choice of that role; one that
/// matches both lists is a network device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Names of the network devices.
    pub network: Option<GlobSet>,
    /// Names of the Pod devices.
    pub pod: Option<GlobSet>,
    /// Addresses of this node: the devices that have them are network devices.
    pub node_addresses: BTreeSet<IpAddr>,
}

impl DeviceOptions {
    /// The options that the command line and the node's addresses make.
    pub fn new(
        arguments: &DeviceArguments,
        node_addresses: BTreeSet<IpAddr>,
    ) -> Result<Self, globset::Error> {
        Ok(Self {
            network: glob_set(&arguments.network_device)?,
            pod: glob_set(&arguments.pod_device)?,
            node_addresses,
        })
    }
}

fn glob_set(globs: &[Glob]) -> Result<Option<GlobSet>, globset::Error> {
    if globs.is_empty() {
        return Ok(None);
    }
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob.clone());
    }
    builder.build().map(Some)
}

/// Every device that has a role, by index.
pub fn classify(snapshot: &Snapshot, options: &DeviceOptions) -> BTreeMap<u32, Attachment> {
    let carriers = carriers(snapshot, options);
    snapshot
        .links
        .values()
        .filter_map(|link| {
            let role = role(snapshot, options, &carriers, link)?;
            Some((link.index, attachment(link, role)))
        })
        .collect()
}

fn attachment(link: &Link, role: Role) -> Attachment {
    Attachment {
        name: link.name.clone(),
        kind: link.kind.clone(),
        instance: link.instance,
        role,
        ethernet: link.ethernet,
    }
}

/// Indexes of the devices that carry a default route or an address of the node.
fn carriers(snapshot: &Snapshot, options: &DeviceOptions) -> BTreeSet<u32> {
    let routes = snapshot.default_routes.iter().map(|route| route.device);
    let addresses = snapshot.addresses.iter().filter_map(|(&device, addresses)| {
        addresses
            .iter()
            .any(|address| options.node_addresses.contains(&address.address))
            .then_some(device)
    });
    routes.chain(addresses).collect()
}

fn role(snapshot: &Snapshot, options: &DeviceOptions, carriers: &BTreeSet<u32>, link: &Link) -> Option<Role> {
    if link.loopback || link.name == REASSEMBLY_DEVICE {
        return None;
    }
    let listed = |globs: &Option<GlobSet>| globs.as_ref().is_some_and(|globs| globs.is_match(&link.name));
    if listed(&options.network) {
        return Some(Role::Network);
    }
    if listed(&options.pod) {
        return Some(Role::Pod);
    }
    let role = automatic_role(snapshot, carriers, link)?;
    let list = match role {
        Role::Network => &options.network,
        Role::Pod => &options.pod,
    };
    list.is_none().then_some(role)
}

fn automatic_role(snapshot: &Snapshot, carriers: &BTreeSet<u32>, link: &Link) -> Option<Role> {
    // The bridge or bond sees all packets of its ports; on both they would be handled twice.
    if is_port_of_carrier(snapshot, carriers, link) {
        return None;
    }
    // Also a veth: in labs and in kind clusters the node's uplink is one.
    if carriers.contains(&link.index) {
        return Some(Role::Network);
    }
    // Every namespace has tunnel devices that the kernel made and nobody uses: those are down.
    if is_overlay(&link.kind) && link.up {
        return Some(Role::Network);
    }
    // Whether it is up does not matter: it has its programs before the Pod's first packet.
    (link.kind == "veth" && link.link_netnsid.is_some()).then_some(Role::Pod)
}

fn is_port_of_carrier(snapshot: &Snapshot, carriers: &BTreeSet<u32>, link: &Link) -> bool {
    link.master
        .and_then(|master| snapshot.links.get(&master))
        .is_some_and(|master| {
            matches!(master.kind.as_str(), "bridge" | "bond" | "team") && carriers.contains(&master.index)
        })
}

fn is_overlay(kind: &str) -> bool {
    matches!(
        kind,
        "vxlan"
            | "geneve"
            | "ipip"
            | "sit"
            | "ip6tnl"
            | "gre"
            | "gretap"
            | "ip6gre"
            | "ip6gretap"
            | "wireguard"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Address, DefaultRoute};
    use crate::maps::Family;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            up: true,
            ethernet: true,
            ..Link::default()
        }
    }

    fn loopback() -> Link {
        Link {
            loopback: true,
            ethernet: false,
            ..link(1, "lo", "")
        }
    }

    fn raw_ip(index: u32, name: &str, kind: &str) -> Link {
        Link {
            ethernet: false,
            ..link(index, name, kind)
        }
    }

    fn pod_veth(index: u32, name: &str) -> Link {
        Link {
            link_netnsid: Some(0),
            ..link(index, name, "veth")
        }
    }

    fn port(link: Link, master: u32) -> Link {
        Link {
            master: Some(master),
            ..link
        }
    }

    fn down(link: Link) -> Link {
        Link { up: false, ..link }
    }

    fn default_route(family: Family, device: u32) -> DefaultRoute {
        DefaultRoute {
            family,
            main: true,
            metric: 0,
            device,
            preferred_source: None,
        }
    }

    fn snapshot(links: &[Link], routes: &[DefaultRoute], addresses: &[(u32, &str)]) -> Snapshot {
        let mut snapshot = Snapshot {
            links: links.iter().map(|link| (link.index, link.clone())).collect(),
            default_routes: routes.to_vec(),
            ..Snapshot::default()
        };
        for &(device, text) in addresses {
            snapshot.addresses.entry(device).or_default().push(Address {
                address: text.parse().unwrap(),
                global: true,
                stable: true,
            });
        }
        snapshot
    }

    fn options(network: &[&str], pod: &[&str], node_addresses: &[&str]) -> DeviceOptions {
        let globs = |patterns: &[&str]| patterns.iter().map(|glob| glob.parse().unwrap()).collect();
        let arguments = DeviceArguments {
            network_device: globs(network),
            pod_device: globs(pod),
        };
        let addresses = node_addresses.iter().map(|text| text.parse().unwrap());
        DeviceOptions::new(&arguments, addresses.collect()).unwrap()
    }

    /// Name and role of the classified devices, in the order of their indexes.
    fn roles(snapshot: &Snapshot, options: &DeviceOptions) -> Vec<(String, Role)> {
        classify(snapshot, options)
            .into_values()
            .map(|attachment| (attachment.name, attachment.role))
            .collect()
    }

    #[track_caller]
    fn assert_roles(snapshot: &Snapshot, options: &DeviceOptions, expected: &[(&str, Role)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|&(name, role)| (name.to_owned(), role))
            .collect();
        assert_eq!(roles(snapshot, options), expected);
    }

    #[test]
    fn a_default_route_of_either_family_makes_a_network_device() {
        let links = [
            loopback(),
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            link(4, "eth2", ""),
        ];
        let routes = [default_route(Family::V4, 2), default_route(Family::V6, 3)];
        assert_roles(
            &snapshot(&links, &routes, &[]),
            &DeviceOptions::default(),
            &[("eth0", Role::Network), ("eth1", Role::Network)],
        );
    }

    #[test]
    fn a_node_address_makes_a_network_device_but_not_of_the_loopback() {
        let links = [loopback(), link(2, "eth0", ""), link(3, "eth1", "")];
        let addresses = [(1, "192.0.2.1"), (2, "198.51.100.1"), (3, "2001:db8::1")];
        assert_roles(
            &snapshot(&links, &[], &addresses),
            &options(&[], &[], &["192.0.2.1", "2001:db8::1"]),
            &[("eth1", Role::Network)],
        );
    }

    #[test]
    fn overlays_are_network_devices_once_up() {
        let links = [
            link(2, "flannel.1", "vxlan"),
            raw_ip(3, "wg0", "wireguard"),
            raw_ip(4, "tunl0", "ipip"),
            down(link(5, "gretap0", "gretap")),
            link(6, "dummy0", "dummy"),
        ];
        assert_roles(
            &snapshot(&links, &[], &[]),
            &DeviceOptions::default(),
            &[
                ("flannel.1", Role::Network),
                ("wg0", Role::Network),
                ("tunl0", Role::Network),
            ],
        );
    }

    #[test]
    fn devices_without_ethernet_header_are_told_from_others() {
        let links = [raw_ip(3, "wg0", "wireguard"), link(2, "flannel.1", "vxlan")];
        let found = classify(&snapshot(&links, &[], &[]), &DeviceOptions::default());
        assert!(!found[&3].ethernet);
        assert!(found[&2].ethernet);
    }

    #[test]
    fn the_agents_own_veth_has_no_role() {
        let links = [pod_veth(2, REASSEMBLY_DEVICE), pod_veth(3, "veth1")];
        assert_roles(
            &snapshot(&links, &[], &[]),
            &DeviceOptions::default(),
            &[("veth1", Role::Pod)],
        );
        for all in [options(&["*"], &[], &[]), options(&[], &["*"], &[])] {
            assert_eq!(roles(&snapshot(&links, &[], &[]), &all).len(), 1);
        }
    }

    #[test]
    fn a_veth_is_a_pods_when_its_peer_is_in_another_namespace() {
        let links = [
            pod_veth(2, "veth1"),
            link(3, "veth2", "veth"),
            down(pod_veth(4, "veth3")),
            Link {
                link_netnsid: Some(0),
                ..link(5, "macvlan0", "macvlan")
            },
        ];
        assert_roles(
            &snapshot(&links, &[], &[]),
            &DeviceOptions::default(),
            &[("veth1", Role::Pod), ("veth3", Role::Pod)],
        );
    }

    #[test]
    fn a_veth_with_the_default_route_or_a_node_address_is_the_uplink() {
        let links = [pod_veth(2, "eth0"), pod_veth(3, "eth1"), pod_veth(4, "veth1")];
        assert_roles(
            &snapshot(
                &links,
                &[default_route(Family::V4, 2)],
                &[(3, "192.0.2.1"), (4, "10.0.0.1")],
            ),
            &options(&[], &[], &["192.0.2.1"]),
            &[
                ("eth0", Role::Network),
                ("eth1", Role::Network),
                ("veth1", Role::Pod),
            ],
        );
    }

    #[test]
    fn of_a_bridge_with_the_default_route_only_the_bridge_is_taken() {
        let links = [
            link(2, "br0", "bridge"),
            port(link(3, "eth0", ""), 2),
            port(pod_veth(4, "uplink"), 2),
            link(5, "bond0", "bond"),
            port(link(6, "eth1", ""), 5),
        ];
        let routes = [default_route(Family::V4, 2), default_route(Family::V6, 5)];
        assert_roles(
            &snapshot(&links, &routes, &[]),
            &DeviceOptions::default(),
            &[("br0", Role::Network), ("bond0", Role::Network)],
        );
    }

    #[test]
    fn of_a_pod_bridge_the_ports_are_taken() {
        let links = [link(2, "cni0", "bridge"), port(pod_veth(3, "veth1"), 2)];
        assert_roles(
            &snapshot(&links, &[], &[(2, "10.244.0.1")]),
            &options(&[], &[], &["192.0.2.1"]),
            &[("veth1", Role::Pod)],
        );
    }

    #[test]
    fn a_vrf_is_not_in_the_way_of_its_ports() {
        let links = [link(2, "vrf0", "vrf"), port(link(3, "eth0", ""), 2)];
        let routes = [default_route(Family::V4, 2), default_route(Family::V4, 3)];
        assert_roles(
            &snapshot(&links, &routes, &[]),
            &DeviceOptions::default(),
            &[("vrf0", Role::Network), ("eth0", Role::Network)],
        );
    }

    #[test]
    fn globs_replace_the_automatic_choice_of_their_role_only() {
        let links = [
            loopback(),
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            pod_veth(4, "veth1"),
            pod_veth(5, "lxc1"),
        ];
        let snapshot = snapshot(&links, &[default_route(Family::V4, 2)], &[]);
        assert_roles(
            &snapshot,
            &options(&["eth1"], &[], &[]),
            &[("eth1", Role::Network), ("veth1", Role::Pod), ("lxc1", Role::Pod)],
        );
        assert_roles(
            &snapshot,
            &options(&[], &["lxc*", "none"], &[]),
            &[("eth0", Role::Network), ("lxc1", Role::Pod)],
        );
        assert_roles(
            &snapshot,
            &options(&["*1"], &["veth1", "eth0", "lo"], &[]),
            &[
                ("eth0", Role::Pod),
                ("eth1", Role::Network),
                ("veth1", Role::Network),
                ("lxc1", Role::Network),
            ],
        );
    }

    #[test]
    fn the_uplink_is_no_pod_device_even_if_globs_name_other_network_devices() {
        let links = [pod_veth(2, "eth0"), pod_veth(3, "eth1")];
        assert_roles(
            &snapshot(&links, &[default_route(Family::V4, 2)], &[]),
            &options(&["eth1"], &[], &[]),
            &[("eth1", Role::Network)],
        );
    }

    #[test]
    fn another_device_under_the_same_index_is_another_attachment() {
        let before = pod_veth(2, "veth1");
        let after = Link {
            instance: 1,
            ..before.clone()
        };
        let classified = |link| classify(&snapshot(&[link], &[], &[]), &DeviceOptions::default());
        assert_ne!(classified(before), classified(after));
    }
}
