//! TCP segments of more than 64 KiB ("BIG TCP"), whose length does not fit into the IP header.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::kernel;
use lb_tests::lab::cluster::{STREAM, options, vips};
use lb_tests::lab::{AgentOptions, Cluster, Machine, SocketLb, Wire, Xdp, require_privileges};

const MEBIBYTES: u32 = 50;
/// A hundred times the usual duration. If large segments are lost, the stream consists of
/// retransmissions.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// More than the length field of an IP header can hold.
const LARGE: usize = 65_535 + 14;

/// Starts a Pod of the Service on the node `server`. All devices accept large segments.
fn cluster(server: usize) -> Option<Cluster> {
    if !require_privileges() || !kernel::needs("6.3", "TCP segments of more than 64 KiB over IPv4") {
        return None;
    }
    let cluster = Cluster::new("big-tcp", &[server]).unwrap();
    let machines = [&cluster.client, &cluster.outside, &cluster.servers[0].pod];
    cluster.lab.allow_big_tcp(&machines).unwrap();
    Some(cluster)
}

/// Leaves 8 bytes free in each packet. The kernel inserts a hop-by-hop header into a large IPv6
/// segment; when it forwards the segment, it counts that header as a part of each packet
/// (`skb_gso_network_seglen`, <https://github.com/torvalds/linux/blob/v6.18/net/core/gso.c>).
/// Without the free bytes even a stream without a Service becomes slow.
fn leave_room(cluster: &Cluster) {
    for machine in [&cluster.client, &cluster.outside, &cluster.servers[0].pod] {
        machine.namespace().ip(&["link set eth0 mtu 1492"]).unwrap();
    }
}

/// Sends a stream to the Pod and back. Asserts that both directions use large segments.
#[track_caller]
fn stream(cluster: &Cluster, from: &Machine, to: IpAddr, port: u16) {
    let pod = &cluster.servers[0].pod;
    let wires = [from, pod].map(|machine| Wire::open(machine.namespace(), "eth0").unwrap());
    let report = from.stream(to, port).mebibytes(MEBIBYTES).run().unwrap();
    assert_eq!(report.bytes, u64::from(MEBIBYTES) << 20, "{to}");
    let time = Duration::from_micros(report.microseconds);
    assert!(time < TIME_LIMIT, "{to}: {time:?}");
    for wire in wires {
        let largest = wire.largest_frame().unwrap();
        assert!(largest > LARGE, "{to}: {largest}");
    }
}

#[test]
fn pods_reach_services_with_large_segments() {
    let Some(cluster) = cluster(0) else { return };
    leave_room(&cluster);
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let pod = cluster.servers[0].pod.addresses().both();
    for (vip, pod) in vips().into_iter().zip(pod) {
        // Without a Service, for comparison.
        stream(&cluster, &cluster.client, pod, STREAM.target_port);
        stream(&cluster, &cluster.client, vip, STREAM.port);
    }
}

#[test]
fn local_redirect_keeps_large_segments() {
    let Some(cluster) = cluster(0) else { return };
    let _agent = cluster.start_agent(SocketLb::Off, &["--local-redirect"]).unwrap();
    for vip in vips() {
        stream(&cluster, &cluster.client, vip, STREAM.port);
    }
}

/// To a Pod of the addressed node, and to one of another node: TC forwards those packets without
/// the node's stack.
#[test]
fn clients_outside_reach_services_with_large_segments() {
    for server in [0, 1] {
        let Some(cluster) = cluster(server) else { return };
        leave_room(&cluster);
        let agent = AgentOptions {
            xdp: Some(Xdp::Off),
            ..options(SocketLb::Off, &[])
        };
        let _agent = cluster.nodes[0].start_agent(&agent).unwrap();
        for node in cluster.nodes[0].host().addresses().both() {
            stream(&cluster, &cluster.outside, node, STREAM.node_port.unwrap());
        }
    }
}
