//! NodePorts with real sockets: from outside through TC and XDP, from Pods, and from processes of
//! the node.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_tests::kernel::needs;
use lb_tests::lab::cluster::{ECHO, HTTP, STREAM, UDP, options};
use lb_tests::lab::{AgentOptions, Capture, Cluster, Machine, Outcome, SocketLb, Xdp, require_privileges};

/// A port in the NodePort range that no Service uses.
const FREE_NODE_PORT: u16 = 31_999;

/// Pairs of the node's address and the client's address of the same family.
fn to_node(cluster: &Cluster, from: &Machine) -> Vec<(IpAddr, IpAddr)> {
    let node = cluster.nodes[0].host().addresses().both();
    node.into_iter().zip(from.addresses().both()).collect()
}

fn names(cluster: &Cluster, node: usize) -> BTreeSet<String> {
    let node = cluster.nodes[node].name();
    let servers = cluster.servers.iter().filter(|server| server.node.name() == node);
    servers.map(|server| server.pod.name().to_owned()).collect()
}

/// Uses every NodePort from this machine. `expected` are the Pods that must answer. They see the
/// client's address or one of `instead`.
#[track_caller]
fn use_node_ports(cluster: &Cluster, from: &Machine, expected: &BTreeSet<String>, instead: &[IpAddr]) {
    for (node, own) in to_node(cluster, from) {
        let instead = instead
            .iter()
            .filter(|address| address.is_ipv4() == own.is_ipv4());
        let clients: BTreeSet<IpAddr> = instead.copied().chain([own]).collect();
        let port = HTTP.node_port.unwrap();
        let report = from.http(node, port).count(80).concurrency(4).run().unwrap();
        assert_eq!(report.answered(), 80, "{node}: {report:?}");
        assert_eq!(report.answers.into_keys().collect::<BTreeSet<_>>(), *expected);
        assert_eq!(report.clients, clients);

        let port = UDP.node_port.unwrap();
        for connected in [false, true] {
            let client = from.udp(node, port).sockets(60).count(2).size(1400);
            let client = if connected { client.connected() } else { client };
            let report = client.run().unwrap();
            assert_eq!(report.answered(), 120, "{node}: {report:?}");
            assert_eq!(report.answers.into_keys().collect::<BTreeSet<_>>(), *expected);
            assert_eq!(report.sources, BTreeSet::from([SocketAddr::new(node, port)]));
        }

        let port = STREAM.node_port.unwrap();
        let report = from.stream(node, port).mebibytes(4).run().unwrap();
        assert_eq!(report.bytes, 4 << 20);

        let port = ECHO.node_port.unwrap();
        let mut talk = from.talk(node, port).unwrap();
        let (_, peer) = talk.connected().unwrap();
        assert_eq!(peer, SocketAddr::new(node, port));
        talk.server().unwrap();
    }
}

#[track_caller]
fn assert_refused(from: &Machine, to: IpAddr, http: u16, udp: u16) {
    from.expect_tcp((to, http).into(), &Outcome::Refused).unwrap();
    from.expect_udp((to, udp).into(), &Outcome::Refused).unwrap();
}

/// Uses NodePorts from an outside client, with XDP in this mode.
fn from_outside(title: &str, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let mut cluster = Cluster::new(title, &[]).unwrap();
    let _peer = xdp.map(|_| cluster.lab.prepare_for_xdp(&cluster.nodes[0]).unwrap());
    let options = AgentOptions {
        xdp,
        ..options(SocketLb::Off, &[])
    };
    let _agent = cluster.nodes[0].start_agent(&options).unwrap();
    let capture = |machine: &Machine| Capture::start(machine.namespace()).unwrap();
    let outside = capture(&cluster.outside);

    for (node, _) in to_node(&cluster, &cluster.outside) {
        let (http, udp) = (HTTP.node_port.unwrap(), UDP.node_port.unwrap());
        assert_refused(&cluster.outside, node, http, udp);
    }
    for node in [0, 0, 1] {
        cluster.add_server(node).unwrap();
    }
    cluster
        .wait_for_active(&cluster.servers.iter().collect::<Vec<_>>())
        .unwrap();
    // XDP leaves packets to TC until the next hop's link-layer address is known.
    for (pod, client) in cluster.servers[2]
        .pod
        .addresses()
        .both()
        .into_iter()
        .zip(cluster.outside.addresses().both())
    {
        for address in [pod, client] {
            let report = cluster.nodes[0].host().ping(address).run().unwrap();
            assert_eq!(report.lost, 0, "{address}");
        }
    }
    let host = capture(cluster.nodes[0].host());
    let server = capture(&cluster.servers[0].pod);
    // A Pod of another node answers to this node, which forwarded the request.
    let all = &names(&cluster, 0) | &names(&cluster, 1);
    let node = cluster.nodes[0].host().addresses().both();
    use_node_ports(&cluster, &cluster.outside, &all, &node);
    for (node, _) in to_node(&cluster, &cluster.outside) {
        // Not a Service port: the node itself refuses.
        assert_refused(&cluster.outside, node, FREE_NODE_PORT, FREE_NODE_PORT);
    }

    outside.finish().unwrap();
    let host = host.finish().unwrap();
    let server = server.finish().unwrap();
    for (node, client) in to_node(&cluster, &cluster.outside) {
        // XDP translates before the capture sees the packet, TC just after.
        let node_port = SocketAddr::new(node, HTTP.node_port.unwrap());
        let before = host
            .seen
            .keys()
            .any(|seen| !seen.outgoing && seen.flow.destination == node_port);
        assert_eq!(before, xdp.is_none(), "{node_port}");
        assert_eq!(server.with_address(node).count(), 0);
        assert_ne!(server.with_address(client).count(), 0);
    }
}

#[test]
fn clients_outside_reach_node_ports_through_tc() {
    from_outside("node-port-tc", None);
}

#[test]
fn clients_outside_reach_node_ports_through_generic_xdp() {
    from_outside("node-port-generic", Some(Xdp::Generic));
}

#[test]
fn clients_outside_reach_node_ports_through_native_xdp() {
    from_outside("node-port-native", Some(Xdp::Native));
}

#[test]
fn pods_and_the_node_reach_node_ports() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        if socket_lb == SocketLb::All && !needs("5.18", "bpf_set_retval: connect is refused") {
            return;
        }
        let mut cluster = Cluster::new("node-port-inside", &[]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let (http, udp) = (HTTP.node_port.unwrap(), UDP.node_port.unwrap());
        let host = cluster.nodes[0].host().clone();
        for (node, _) in to_node(&cluster, &cluster.client) {
            assert_refused(&cluster.client, node, http, udp);
        }
        for node in [0, 1] {
            cluster.add_server(node).unwrap();
        }
        cluster
            .wait_for_active(&cluster.servers.iter().collect::<Vec<_>>())
            .unwrap();
        let captures = [&cluster.client, &host].map(|machine| Capture::start(machine.namespace()).unwrap());
        // From inside, Pods of all nodes answer.
        let all = &names(&cluster, 0) | &names(&cluster, 1);
        use_node_ports(&cluster, &cluster.client, &all, &[]);
        if socket_lb == SocketLb::All {
            use_node_ports(&cluster, &host, &all, &[]);
        }
        for capture in captures {
            capture.finish().unwrap();
        }
    }
}

/// NodePorts of another node are served by that node. Without an agent there, a process of it can
/// answer.
#[test]
fn another_nodes_node_ports_are_left_alone() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::Host, SocketLb::All] {
        let cluster = Cluster::new("node-port-other", &[0]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let other = cluster.nodes[1].host();
        let (http, udp) = (HTTP.node_port.unwrap(), UDP.node_port.unwrap());
        let own = Outcome::pods([other.name()]);
        let ask = |expected: &Outcome| {
            for from in [&cluster.client, cluster.nodes[0].host()] {
                for node in other.addresses().both() {
                    from.expect_tcp((node, http).into(), expected).unwrap();
                    from.expect_udp((node, udp).into(), expected).unwrap();
                }
            }
        };
        ask(&Outcome::Refused);
        let _server = other.serve().http(http).udp(udp).start().unwrap();
        ask(&own);
    }
}
