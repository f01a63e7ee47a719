//! One Pod of another node has more clients than there are ephemeral ports.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::HashSet;
use std::net::IpAddr;

use lb_tests::lab::cluster::UDP;
use lb_tests::lab::{Cluster, LabOptions, Published, ServicePort, SocketLb, Xdp, require_privileges};

/// A Service whose only Pod is on the second node.
const FAR: Published = Published::new("far", 20);

/// Sockets per process, below the limit of open files.
const SOCKETS: u16 = 11_000;
/// Client processes, one after the other: the flows of all of them stay in the maps
/// (`--udp-answered-timeout`).
const PROCESSES: u16 = 5;
/// The client's first port.
const FIRST: u16 = 2000;

fn one_pod_has_many_clients(title: &str, xdp: Option<Xdp>, choose: fn([IpAddr; 2]) -> IpAddr) {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::with_options(title, &LabOptions { overlay: false }, &[0, 1]).unwrap();
    let ports = [UDP].map(ServicePort::without_node_port);
    let pod = cluster.servers[1].place();
    cluster.publish(FAR, &ports, &[pod]).unwrap();
    cluster.route_load_balancer(&[0]).unwrap();
    let _agents = cluster
        .start_agents(SocketLb::Off, xdp, &["--max-flows=262144"])
        .unwrap();
    let vip = choose(FAR.addresses());
    let mut seen = HashSet::new();
    for process in 0..PROCESSES {
        let client = cluster.outside.udp(vip, UDP.port).sockets(SOCKETS.into());
        let report = client.source_port(FIRST + process * SOCKETS).run().unwrap();
        assert_eq!(report.answered(), u64::from(SOCKETS), "{:?}", report.errors);
        seen.extend(report.clients);
    }
    let expected = usize::from(PROCESSES * SOCKETS);
    assert_eq!(seen.len(), expected, "each client has its own source port");
}

#[test]
fn one_pod_has_55000_clients_through_tc() {
    one_pod_has_many_clients("source-ports-tc", None, |[ipv4, _]| ipv4);
}

#[test]
fn one_pod_has_55000_clients_through_xdp() {
    one_pod_has_many_clients("source-ports-xdp", Some(Xdp::Native), |[_, ipv6]| ipv6);
}
