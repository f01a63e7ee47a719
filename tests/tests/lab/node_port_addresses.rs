//! The node addresses that have NodePorts: addresses that are added and deleted, and 127.0.0.1 and
//! ::1.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lb_agent::maps::FrontendKey;
use lb_tests::lab::cluster::{HTTP, UDP};
use lb_tests::lab::{Cluster, Machine, Outcome, SocketLb, require_privileges, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);

/// Additional addresses of the first node.
const FURTHER: [&str; 2] = ["203.0.113.77", "2001:db8:77::77"];

fn further() -> [IpAddr; 2] {
    FURTHER.map(|text| text.parse().unwrap())
}

/// Asserts that all Pods answer at the NodePorts of an address, and that the client sees this
/// address as the source.
#[track_caller]
fn assert_answered(cluster: &Cluster, from: &Machine, node: IpAddr) {
    let report = from.http(node, HTTP.node_port.unwrap()).count(40).run().unwrap();
    assert_eq!(report.answered(), 40, "{node}: {report:?}");
    let names = cluster.servers.iter().map(|server| server.pod.name().to_owned());
    assert_eq!(
        report.answers.into_keys().collect::<BTreeSet<_>>(),
        names.collect()
    );
    let port = UDP.node_port.unwrap();
    for connected in [false, true] {
        let client = from.udp(node, port).sockets(5).count(2);
        let client = if connected { client.connected() } else { client };
        let report = client.run().unwrap();
        assert_eq!(report.answered(), 10, "{node}: {report:?}");
        assert_eq!(report.sources, BTreeSet::from([SocketAddr::new(node, port)]));
    }
}

/// The addresses that have a row for the NodePort in the first node's maps.
fn addresses(cluster: &Cluster) -> BTreeSet<IpAddr> {
    let image = cluster.nodes[0].map_image().unwrap();
    let keys = image.frontends.into_keys().filter_map(|key| match key {
        FrontendKey::Port(address, port, _) => (port == HTTP.node_port.unwrap()).then_some(address),
        FrontendKey::Wildcard(_) => None,
    });
    keys.collect()
}

const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// 127.0.0.1 as an IPv4-mapped IPv6 address.
const MAPPED: IpAddr = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());

/// The NodePorts for HTTP and UDP at an address.
fn node_ports(address: IpAddr) -> [SocketAddr; 2] {
    [HTTP, UDP].map(|port| SocketAddr::new(address, port.node_port.unwrap()))
}

#[track_caller]
fn assert_refused(from: &Machine, address: IpAddr) {
    let [http, udp] = node_ports(address);
    from.expect_tcp(http, &Outcome::Refused).unwrap();
    from.expect_udp(udp, &Outcome::Refused).unwrap();
}

#[test]
fn processes_of_the_node_reach_node_ports_at_loopback() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Host, SocketLb::All] {
        let cluster = Cluster::new("localhost", &[0, 1]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let host = cluster.nodes[0].host();
        let own = host.addresses().both();
        let expected: BTreeSet<IpAddr> = own.into_iter().chain(LOCALHOST).collect();
        assert_eq!(addresses(&cluster), expected);
        for address in LOCALHOST.into_iter().chain([MAPPED]) {
            assert_answered(&cluster, host, address);
        }
    }
}

/// As with kube-proxy in nftables mode, NodePorts at 127.0.0.1 and ::1 exist only for sockets.
#[test]
fn without_socket_programs_loopback_has_no_node_ports() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("no-sockets", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let host = cluster.nodes[0].host();
    for address in LOCALHOST {
        assert_refused(host, address);
    }
    // The node's other addresses have NodePorts for all clients.
    for from in [&cluster.client, &cluster.outside] {
        for address in host.addresses().both() {
            assert_answered(&cluster, from, address);
        }
    }
}

#[test]
fn the_option_decides_whether_loopback_has_node_ports() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("asked-for", &[0]).unwrap();
    let host = cluster.nodes[0].host();
    let own = host.addresses().both();
    for (option, with, without) in [("primary", own, LOCALHOST), ("localhost", LOCALHOST, own)] {
        let option = format!("--nodeport-addresses={option}");
        let agent = cluster.start_agent(SocketLb::All, &[&option]).unwrap();
        assert_eq!(addresses(&cluster), with.into());
        with.iter()
            .for_each(|address| assert_answered(&cluster, host, *address));
        without.iter().for_each(|address| assert_refused(host, *address));
        agent.kill();
    }
}

/// A Pod's 127.0.0.1 is the Pod itself, not its node.
#[test]
fn loopback_addresses_of_pods_are_left_alone() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Host, SocketLb::All] {
        let cluster = Cluster::new("own-loopback", &[0]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let client = &cluster.client;
        let everywhere = || LOCALHOST.into_iter().chain([MAPPED]);
        everywhere().for_each(|address| assert_refused(client, address));
        let [http, udp] = [HTTP, UDP].map(|port| port.node_port.unwrap());
        let _server = client.serve().http(http).udp(udp).start().unwrap();
        let own = Outcome::pods([client.name()]);
        for address in everywhere() {
            let [http, udp] = node_ports(address);
            client.expect_tcp(http, &own).unwrap();
            client.expect_udp(udp, &own).unwrap();
            let report = client.udp(udp.ip(), udp.port()).sockets(3).run().unwrap();
            assert_eq!(
                report.answers,
                [(client.name().to_owned(), 3)].into(),
                "{address}"
            );
        }
        // At the node's own addresses the same Pod is a client of the Service.
        for address in cluster.nodes[0].host().addresses().both() {
            assert_answered(&cluster, client, address);
        }
    }
}

#[test]
fn node_ports_follow_added_and_deleted_addresses() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("node-addresses", &[0, 1]).unwrap();
    let networks = FURTHER.map(|address| {
        if address.contains(':') {
            "2001:db8::/32"
        } else {
            "203.0.113.0/24"
        }
    });
    let option = format!("--nodeport-addresses=primary,{}", networks.join(","));
    let _agent = cluster.start_agent(SocketLb::All, &[&option]).unwrap();
    let host = cluster.nodes[0].host();
    let own: BTreeSet<IpAddr> = host.addresses().both().into_iter().collect();
    assert_eq!(addresses(&cluster), own);

    let change = |verb: &str| {
        let lines = further().map(|address| format!("address {verb} {address} dev lo"));
        host.namespace().ip(&lines).unwrap();
    };
    let wait_for_addresses = |expected: &BTreeSet<IpAddr>| {
        wait_for(&format!("NodePorts at {expected:?}"), PATIENCE, || {
            (addresses(&cluster) == *expected).then_some(())
        })
        .unwrap();
    };
    change("add");
    wait_for_addresses(&own.iter().copied().chain(further()).collect());
    for address in further() {
        assert_answered(&cluster, host, address);
        assert_answered(&cluster, &cluster.client, address);
    }
    change("del");
    wait_for_addresses(&own);
}
