//! Packets with a forged source address, next to genuine connections.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_agent::datapath::live::LiveMaps;
use lb_agent::datapath::pins::Pins;
use lb_common::layout::FlowKey;
use lb_tests::lab::cluster::ECHO;
use lb_tests::lab::{
    Cluster, Machine, Node, Published, ServicePort, SocketLb, Wire, Xdp, require_privileges, wait_for,
};
use lb_tests::packet::build::syn;

const PATIENCE: Duration = Duration::from_secs(10);
/// The victim's port, outside the ephemeral port range.
const SOURCE_PORT: u16 = 21_000;
/// How many SYNs the stranger forges.
const FORGED: usize = 5;

const SERVICE: Published = Published::new("echo", 43);

/// A Service with one Pod on the first node.
fn cluster(title: &str) -> Cluster {
    let cluster = Cluster::new(title, &[0]).unwrap();
    let place = cluster.servers[0].place();
    let ports = [ServicePort::without_node_port(ECHO)];
    cluster.publish(SERVICE, &ports, &[place]).unwrap();
    cluster
}

/// The number of flow entries of a client's port.
fn flows_of(node: &Node, client: SocketAddr) -> usize {
    let maps = LiveMaps::open(&Pins::new(node.pin_path()).maps()).unwrap();
    let sources: Vec<SocketAddr> = match client {
        SocketAddr::V4(_) => maps.ipv4().flows().unwrap().keys().map(source).collect(),
        SocketAddr::V6(_) => maps.ipv6().flows().unwrap().keys().map(source).collect(),
    };
    sources.iter().filter(|source| **source == client).count()
}

fn source<A: Copy + Into<IpAddr>>(key: &FlowKey<A>) -> SocketAddr {
    SocketAddr::new(key.source.into(), key.source_port.get())
}

/// A stranger sends SYNs to the Service with the address of a client that has a direct connection
/// to the Pod.
fn talk_during_forged_syns(cluster: &Cluster, victim: &Machine, stranger: &Wire, is_forwarded: bool) {
    let pod = cluster.servers[0].pod.addresses().both();
    for (index, own) in victim.addresses().both().into_iter().enumerate() {
        let source = SocketAddr::new(own, SOURCE_PORT);
        let direct = SocketAddr::new(pod[index], ECHO.target_port);
        let mut talk = victim.talk_from(source, direct).unwrap();
        assert_eq!(talk.connected().unwrap(), (source, direct));
        talk.server().unwrap();
        let vip = SocketAddr::new(SERVICE.addresses()[index], ECHO.port);
        for _ in 0..FORGED {
            stranger.send(&syn(source, vip).bytes()[14..]).unwrap();
            if is_forwarded {
                // The programs cannot detect the forgery, and forward the SYN to the Pod.
                wait_for("the forged SYN's flow", PATIENCE, || {
                    (flows_of(&cluster.nodes[0], source) > 0).then_some(())
                })
                .unwrap();
            }
            talk.server().unwrap();
        }
        // The victim can still use the Service.
        victim.connect(vip.ip(), vip.port()).unwrap();
        talk.server().unwrap();
    }
}

fn from_outside(title: &str, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let cluster = cluster(title);
    let _agents = cluster.start_agents(SocketLb::Off, xdp, &[]).unwrap();
    let stranger = cluster.lab.outside_client("stranger").unwrap().wire().unwrap();
    talk_during_forged_syns(&cluster, &cluster.outside, &stranger, true);
}

#[test]
fn forged_syns_do_not_affect_direct_connections_through_tc() {
    from_outside("strangers-tc", None);
}

#[test]
fn forged_syns_do_not_affect_direct_connections_through_generic_xdp() {
    from_outside("strangers-generic", Some(Xdp::Generic));
}

#[test]
fn forged_syns_do_not_affect_direct_connections_through_native_xdp() {
    from_outside("strangers-native", Some(Xdp::Native));
}

/// A Pod sends with the address of another Pod, whose own connection is translated at its socket.
#[test]
fn forged_syns_of_pods_do_not_affect_translated_sockets() {
    if !require_privileges() {
        return;
    }
    let cluster = cluster("strangers-pods");
    let _agents = cluster.start_agents(SocketLb::All, None, &[]).unwrap();
    let stranger = cluster.nodes[0].silent_pod("stranger").unwrap().wire().unwrap();
    talk_during_forged_syns(&cluster, &cluster.client, &stranger, true);
    let outside = cluster.outside.wire().unwrap();
    talk_during_forged_syns(&cluster, &cluster.client, &outside, false);
    let forged = cluster.nodes[0].reason_count("forged_source").unwrap();
    assert_eq!(forged, 2 * FORGED as u64);
}
