//! Device setups of real nodes.

use super::*;
use crate::devices::{Address, DefaultRoute};
use crate::network::Family;

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

/// Name and role of the classified devices, ordered by index.
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
fn an_address_makes_a_network_device_but_not_of_the_loopback() {
    let links = [loopback(), link(2, "eth0", ""), link(3, "eth1", "")];
    let addresses = [(1, "192.0.2.1"), (2, "198.51.100.1"), (3, "2001:db8::1")];
    assert_roles(
        &snapshot(&links, &[], &addresses),
        &options(&[], &[], &["192.0.2.1", "2001:db8::1"]),
        &[("eth0", Role::Network), ("eth1", Role::Network)],
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
fn devices_without_an_ethernet_header_are_recognized() {
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
fn a_bridge_with_the_default_route_is_selected_instead_of_its_ports() {
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
fn the_ports_of_a_pod_bridge_are_selected() {
    let links = [link(2, "cni0", "bridge"), port(pod_veth(3, "veth1"), 2)];
    assert_roles(
        &snapshot(&links, &[], &[(2, "10.244.0.1")]),
        &options(&[], &[], &["192.0.2.1"]),
        &[("veth1", Role::Pod)],
    );
}

#[test]
fn the_ports_of_a_vrf_are_selected_too() {
    let links = [link(2, "vrf0", "vrf"), port(link(3, "eth0", ""), 2)];
    let routes = [default_route(Family::V4, 2), default_route(Family::V4, 3)];
    assert_roles(
        &snapshot(&links, &routes, &[]),
        &DeviceOptions::default(),
        &[("vrf0", Role::Network), ("eth0", Role::Network)],
    );
}

#[test]
fn globs_replace_the_automatic_selection_of_their_role_only() {
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
fn the_uplink_is_not_a_pod_device_even_if_globs_select_other_network_devices() {
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

fn kind_of(kind: &str, links: &[&str]) -> Vec<Link> {
    let named = (2..).zip(links);
    named.map(|(index, name)| link(index, name, kind)).collect()
}

/// The same snapshot with routes on these devices.
fn routed(snapshot: Snapshot, devices: &[u32]) -> Snapshot {
    Snapshot {
        routed: devices.iter().copied().collect(),
        ..snapshot
    }
}

#[test]
fn a_route_makes_a_network_device_even_without_an_address() {
    let mut links = kind_of("", &["eth0", "eth1", "eth2"]);
    links.push(raw_ip(5, "tun0", "tun"));
    let mut snapshot = routed(snapshot(&links, &[], &[]), &[3, 5]);
    let link_local = Address {
        address: "fe80::1".parse().unwrap(),
        global: false,
        stable: true,
    };
    snapshot.addresses.insert(4, vec![link_local]);
    let expected = [("eth1", Role::Network), ("tun0", Role::Network)];
    assert_roles(&snapshot, &DeviceOptions::default(), &expected);
    // Only devices whose role may change are queried.
    assert_eq!(snapshot.asks_for_routes().collect::<Vec<_>>(), [2, 4]);
    assert_roles(
        &snapshot,
        &options(&["eth0"], &[], &[]),
        &[("eth0", Role::Network)],
    );
}

#[test]
fn a_pod_device_may_have_addresses_and_routes() {
    let snapshot = snapshot(&[pod_veth(2, "veth1")], &[], &[(2, "10.244.0.1")]);
    assert_roles(
        &routed(snapshot.clone(), &[2]),
        &DeviceOptions::default(),
        &[("veth1", Role::Pod)],
    );
    assert_eq!(snapshot.asks_for_routes().count(), 0);
}

#[test]
fn devices_that_may_lead_to_pods_of_the_node_get_no_automatic_role() {
    let links = [
        link(2, "antrea-gw0", "openvswitch"),
        link(3, "cilium_host", "veth"),
        link(4, "netkit1", "netkit"),
        link(5, "br-ex", "openvswitch"),
    ];
    let addresses = [(2, "10.244.0.1"), (3, "10.244.0.2"), (5, "192.0.2.1")];
    let snapshot = routed(snapshot(&links, &[], &addresses), &[2, 3, 4, 5]);
    let expected = [("br-ex", Role::Network)];
    assert_roles(&snapshot, &options(&[], &[], &["192.0.2.1"]), &expected);
    assert_eq!(snapshot.asks_for_routes().count(), 0);
}

#[test]
fn a_bridge_without_pods_is_selected_instead_of_its_ports() {
    let links = [
        link(2, "br-lan", "bridge"),
        port(link(3, "eth1", ""), 2),
        port(link(4, "tap1", "tun"), 2),
        port(link(5, "vxlan1", "vxlan"), 2),
        link(6, "docker0", "bridge"),
        link(7, "bond0", "bond"),
        port(link(8, "eth2", ""), 7),
    ];
    let addresses = [(2, "192.168.1.2"), (3, "192.168.1.3"), (6, "172.17.0.1")];
    let snapshot = snapshot(&links, &[], &addresses);
    let expected = [("br-lan", Role::Network), ("docker0", Role::Network)];
    assert_roles(&snapshot, &DeviceOptions::default(), &expected);
    // The bond may have VLAN devices on top of it.
    assert_eq!(snapshot.asks_for_routes().collect::<Vec<_>>(), [7]);
}

#[test]
fn other_ports_of_a_pod_bridge_that_leads_out_are_selected() {
    let links = [
        link(2, "br-lan", "bridge"),
        port(link(3, "eth1", ""), 2),
        port(pod_veth(4, "veth1"), 2),
        port(link(5, "patch", "veth"), 2),
    ];
    let inside = snapshot(&links, &[], &[]);
    assert_roles(&inside, &DeviceOptions::default(), &[("veth1", Role::Pod)]);
    let leading_out = snapshot(&links, &[], &[(2, "192.168.1.2")]);
    let expected = [("eth1", Role::Network), ("veth1", Role::Pod)];
    assert_roles(&leading_out, &DeviceOptions::default(), &expected);
    // The options declare that these are not Pods' devices.
    let expected = [("br-lan", Role::Network)];
    assert_roles(&leading_out, &options(&[], &["cali*"], &[]), &expected);
}

#[test]
fn a_port_of_a_vrf_leads_out_by_itself() {
    let links = [link(2, "vrf0", "vrf"), port(link(3, "eth1", ""), 2)];
    let snapshot = snapshot(&links, &[], &[(3, "198.51.100.1")]);
    assert_roles(&snapshot, &DeviceOptions::default(), &[("eth1", Role::Network)]);
}

#[test]
fn devices_with_unreadable_headers_have_no_role() {
    let infiniband = Link {
        unreadable: true,
        ..raw_ip(2, "ib0", "")
    };
    let snapshot = snapshot(
        &[infiniband],
        &[default_route(Family::V4, 2)],
        &[(2, "192.0.2.1")],
    );
    assert_roles(&snapshot, &options(&[], &[], &["192.0.2.1"]), &[]);
}
