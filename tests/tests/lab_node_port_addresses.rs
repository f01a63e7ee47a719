//! At which of a node's addresses NodePorts are: also those that come and go, and 127.0.0.1 and ::1.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lb_agent::maps::FrontendKey;
use lb_tests::lab::cluster::{HTTP, UDP};
use lb_tests::lab::{Cluster, Machine, SocketLb, require_privileges, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);

/// Further addresses of the first node.
const FURTHER: [&str; 2] = ["203.0.113.77", "2001:db8:77::77"];

fn further() -> [IpAddr; 2] {
    FURTHER.map(|text| text.parse().unwrap())
}

/// All Pods answer at the NodePorts of an address; the client sees the address that it asked.
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

/// The addresses of the first node that have a row for the NodePort.
fn addresses(cluster: &Cluster) -> BTreeSet<IpAddr> {
    let image = cluster.nodes[0].map_image().unwrap();
    let keys = image.frontends.into_keys().filter_map(|key| match key {
        FrontendKey::Port(address, port, _) => (port == HTTP.node_port.unwrap()).then_some(address),
        FrontendKey::Wildcard(_) => None,
    });
    keys.collect()
}

#[test]
fn processes_of_the_node_use_127_0_0_1_and_1() {
    if !require_privileges() {
        return;
    }
    let localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let cluster = Cluster::new("localhost", &[0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Host, &[]).unwrap();
    let own = cluster.nodes[0].host().addresses().both();
    let expected: BTreeSet<IpAddr> = own.into_iter().chain(localhost).collect();
    assert_eq!(addresses(&cluster), expected);
    for address in localhost {
        assert_answered(&cluster, cluster.nodes[0].host(), address);
    }
}

#[test]
fn addresses_that_come_and_go() {
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
