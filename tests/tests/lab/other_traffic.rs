//! Traffic that is not for a Service passes as without an agent.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_tests::lab::capture::Protocol;
use lb_tests::lab::cluster::{HTTP, STREAM, UDP, options, vips};
use lb_tests::lab::{AgentOptions, Capture, Cluster, Machine, SocketLb, Xdp, require_privileges};

/// Larger than the MTU of any link: several fragments.
const LARGE_DATAGRAM: u32 = 8000;

/// Uses the real addresses and ports of a server.
#[track_caller]
fn use_directly(from: &Machine, server: &Machine) {
    let pairs = from.addresses().both().into_iter().zip(server.addresses().both());
    for (own, to) in pairs {
        let report = from.http(to, HTTP.target_port).count(10).run().unwrap();
        assert_eq!(report.answered(), 10, "{to}: {report:?}");
        assert_eq!(report.clients, BTreeSet::from([own]), "{to}");
        for size in [16, 1400, LARGE_DATAGRAM] {
            let report = from.udp(to, UDP.target_port).size(size).count(3).run().unwrap();
            assert_eq!(report.answered(), 3, "{to}: {report:?}");
        }
        let report = from.stream(to, STREAM.target_port).mebibytes(4).run().unwrap();
        assert_eq!(report.bytes, 4 << 20);
        // The machine itself refuses this, not the agent.
        let report = from.http(to, 1).run().unwrap();
        assert!(
            report.errors.contains_key("connect: ConnectionRefused"),
            "{report:?}"
        );
    }
}

#[test]
fn traffic_to_real_addresses_is_left_alone() {
    if !require_privileges() {
        return;
    }
    for (socket_lb, xdp) in [
        (SocketLb::Off, Xdp::Native),
        (SocketLb::Host, Xdp::Generic),
        (SocketLb::All, Xdp::Auto),
    ] {
        let cluster = Cluster::new("real-addresses", &[0, 1]).unwrap();
        let _peer = (xdp == Xdp::Native).then(|| cluster.lab.prepare_for_xdp(&cluster.nodes[0]).unwrap());
        let agent = AgentOptions {
            xdp: Some(xdp),
            ..options(socket_lb, &[])
        };
        let _agent = cluster.nodes[0].start_agent(&agent).unwrap();
        let [near, far] = &cluster.servers[..] else {
            panic!("two servers");
        };
        let host = cluster.nodes[0].host();
        let machines = [&cluster.client, host, &near.pod, &far.pod, &cluster.outside];
        let captures = machines.map(|machine| Capture::start(machine.namespace()).unwrap());
        let _server = cluster
            .outside
            .serve()
            .http(HTTP.target_port)
            .udp(UDP.target_port)
            .stream(STREAM.target_port)
            .start()
            .unwrap();
        for (from, to) in [
            (&cluster.client, &near.pod),
            (&cluster.client, &far.pod),
            (&cluster.client, &cluster.outside),
            (&far.pod, &near.pod),
            (&cluster.outside, &near.pod),
            (host, &near.pod),
            (host, &cluster.outside),
        ] {
            use_directly(from, to);
        }
        for capture in captures {
            let report = capture.finish().unwrap();
            assert_ne!(report.count(Protocol::Fragment), 0);
            for vip in vips() {
                assert_eq!(report.with_address(vip).count(), 0);
            }
        }
    }
}

/// Replies of the same Pod to the same client: only replies of the Service's connections are
/// translated.
#[test]
fn a_pod_answers_at_its_vip_and_at_its_own_address() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("both-ways", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let pod = &cluster.servers[0].pod;
    for (vip, address) in vips().into_iter().zip(pod.addresses().both()) {
        // Fixed source ports: as the destinations differ, the kernel could use the same ephemeral
        // port for both, and the replies could not be distinguished.
        let http = |to: IpAddr, port, source_port| {
            let client = cluster.client.http(to, port).source_port(source_port);
            client.count(50).concurrency(2).start().unwrap()
        };
        for client in [
            http(vip, HTTP.port, 20_000),
            http(address, HTTP.target_port, 21_000),
        ] {
            let report = client.finish().unwrap();
            assert_eq!(report.answered(), 50, "{report:?}");
        }
    }
}
