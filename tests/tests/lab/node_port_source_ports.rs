//! Connections whose source port is also a NodePort, from the node's processes and from Pods that
//! the node masquerades. Their replies must not be treated as requests to the NodePort.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_tests::lab::cluster::{ECHO, HTTP, UDP, UNKNOWN_PORT, options};
use lb_tests::lab::{AgentOptions, Cluster, Machine, SocketLb, Talk, Xdp, require_privileges};

use crate::takeover::filter;

/// How many messages a connection exchanges.
const EXCHANGES: u32 = 5;

/// Rules that masquerade a Pod with the node's address and a NodePort as source port.
fn masquerade(pod: &Machine) -> String {
    let mut rules = "add table inet cni
add chain inet cni postrouting { type nat hook postrouting priority 100 ; }
"
    .to_owned();
    for address in pod.addresses().both() {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        for (protocol, port) in [("tcp", ECHO), ("udp", UDP)] {
            rules += &format!(
                "add rule inet cni postrouting {family} saddr {address} {protocol} dport {} masquerade to :{}\n",
                port.target_port,
                port.node_port.unwrap()
            );
        }
    }
    rules
}

#[track_caller]
fn exchange(mut talk: Talk, server: &Machine) {
    talk.connected().unwrap();
    for _ in 0..EXCHANGES {
        assert_eq!(talk.server().unwrap(), server.name());
    }
}

/// Exchanges datagrams from one socket. The server must see `seen` as their source.
#[track_caller]
fn exchange_datagrams(from: &Machine, source_port: Option<u16>, to: IpAddr, seen: SocketAddr) {
    let mut client = from
        .udp(to, UDP.target_port)
        .connected()
        .sockets(1)
        .count(EXCHANGES);
    if let Some(port) = source_port {
        client = client.source_port(port);
    }
    let report = client.run().unwrap();
    assert_eq!(report.answered(), u64::from(EXCHANGES), "{report:?}");
    assert_eq!(report.clients, BTreeSet::from([seen]));
}

fn own_ports(title: &str, xdp: Xdp) {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new(title, &[0]).unwrap();
    let _peer = (xdp == Xdp::Native).then(|| cluster.lab.prepare_for_xdp(&cluster.nodes[0]).unwrap());
    let agent = AgentOptions {
        xdp: Some(xdp),
        ..options(SocketLb::Off, &[])
    };
    let _agent = cluster.nodes[0].start_agent(&agent).unwrap();
    let (host, pod, outside) = (cluster.nodes[0].host(), &cluster.client, &cluster.outside);
    let _server = outside
        .serve()
        .echo(ECHO.target_port)
        .udp(UDP.target_port)
        .start()
        .unwrap();
    let [tcp, udp] = [ECHO, UDP].map(|port| port.node_port.unwrap());
    let ends = host
        .addresses()
        .both()
        .into_iter()
        .zip(outside.addresses().both());
    let ends: Vec<(IpAddr, IpAddr)> = ends.collect();
    for &(own, to) in &ends {
        let talk = host.talk_from((own, tcp).into(), (to, ECHO.target_port).into());
        exchange(talk.unwrap(), outside);
        exchange_datagrams(host, Some(udp), to, (own, udp).into());
        // The ICMP error is about a packet of the node.
        let client = host.udp(to, UNKNOWN_PORT).connected().sockets(1).source_port(udp);
        let report = client.run().unwrap();
        let errors: Vec<&String> = report.errors.keys().collect();
        assert!(
            matches!(errors[..], [error] if error.contains("ConnectionRefused")),
            "{report:?}"
        );
    }
    filter(host, &masquerade(pod)).unwrap();
    for &(own, to) in &ends {
        exchange(pod.talk(to, ECHO.target_port).unwrap(), outside);
        exchange_datagrams(pod, None, to, (own, udp).into());
    }
    // Packets that are not replies are requests of clients.
    for &(own, _) in &ends {
        let report = outside.http(own, HTTP.node_port.unwrap()).count(4).run().unwrap();
        assert_eq!(report.answered(), 4, "{report:?}");
        let report = outside.udp(own, udp).sockets(4).run().unwrap();
        assert_eq!(report.answered(), 4, "{report:?}");
    }
}

#[test]
fn replies_to_node_port_numbers_arrive_through_tc() {
    own_ports("own-ports-tc", Xdp::Off);
}

#[test]
fn replies_to_node_port_numbers_arrive_through_generic_xdp() {
    own_ports("own-ports-generic", Xdp::Generic);
}

#[test]
fn replies_to_node_port_numbers_arrive_through_native_xdp() {
    own_ports("own-ports-native", Xdp::Native);
}
