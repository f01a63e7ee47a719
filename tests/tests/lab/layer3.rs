//! Devices whose packets begin with the IP header (WireGuard, tun): clients behind them, and Pods.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;

use lb_tests::lab::cluster::{HTTP, STREAM, UDP};
use lb_tests::lab::{Capture, Cluster, Machine, Outcome, SocketLb, require_privileges};

fn pods(cluster: &Cluster) -> BTreeSet<String> {
    let servers = cluster.servers.iter();
    servers.map(|server| server.pod.name().to_owned()).collect()
}

/// Uses the NodePorts of the first node. All Pods answer.
#[track_caller]
fn use_node_ports(cluster: &Cluster, from: &Machine) {
    for node in cluster.nodes[0].host().addresses().both() {
        let http = from.http(node, HTTP.node_port.unwrap()).count(60).run().unwrap();
        assert_eq!(http.answered(), 60, "{node}: {http:?}");
        assert_eq!(http.answers.into_keys().collect::<BTreeSet<_>>(), pods(cluster));
        let udp = from.udp(node, UDP.node_port.unwrap()).sockets(40).run().unwrap();
        assert_eq!(udp.answered(), 40, "{node}: {udp:?}");
        assert_eq!(udp.answers.into_keys().collect::<BTreeSet<_>>(), pods(cluster));
        let stream = from
            .stream(node, STREAM.node_port.unwrap())
            .mebibytes(4)
            .run()
            .unwrap();
        assert_eq!(stream.bytes, 4 << 20);
    }
}

#[test]
fn a_client_behind_a_device_without_ethernet_reaches_pods_of_all_nodes() {
    if !require_privileges() {
        return;
    }
    let mut cluster = Cluster::new("layer3-client", &[]).unwrap();
    let vpn = cluster.lab.layer3_client(&cluster.nodes[0], "vpn-1").unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    for node in cluster.nodes[0].host().addresses().both() {
        let [http, udp] = [HTTP, UDP].map(|port| (node, port.node_port.unwrap()).into());
        vpn.machine.expect_tcp(http, &Outcome::Refused).unwrap();
        vpn.machine.expect_udp(udp, &Outcome::Refused).unwrap();
    }
    for node in [0, 1] {
        cluster.add_server(node).unwrap();
    }
    cluster
        .wait_for_active(&cluster.servers.iter().collect::<Vec<_>>())
        .unwrap();
    let captures =
        [&vpn.machine, cluster.nodes[0].host()].map(|machine| Capture::start(machine.namespace()).unwrap());
    use_node_ports(&cluster, &vpn.machine);
    // A client behind Ethernet uses the same node.
    use_node_ports(&cluster, &cluster.outside);
    for capture in captures {
        capture.finish().unwrap();
    }
}

#[test]
fn pods_behind_a_device_without_ethernet_are_reached() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("layer3-nodes", &[0, 1]).unwrap();
    let _link = cluster
        .lab
        .layer3_link([&cluster.nodes[0], &cluster.nodes[1]])
        .unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    cluster
        .wait_for_active(&cluster.servers.iter().collect::<Vec<_>>())
        .unwrap();
    let captures = [&cluster.outside, cluster.nodes[0].host()]
        .map(|machine| Capture::start(machine.namespace()).unwrap());
    use_node_ports(&cluster, &cluster.outside);
    use_node_ports(&cluster, &cluster.client);
    for capture in captures {
        capture.finish().unwrap();
    }
}
