//! Datagrams whose fragments arrive out of order, and fragments whose first fragment never arrives.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{SlicedPacket, TransportSlice};
use lb_tests::lab::cluster::{UDP, load_balancer_addresses, options, service, vips};
use lb_tests::lab::{
    Agent, AgentOptions, Cluster, Node, Published, SocketLb, Wire, Xdp, XdpPeer, require_privileges, wait_for,
};
use lb_tests::packet::build::udp;

/// IP payload of each fragment except the last.
const LENGTH: usize = 400;
/// Together with the UDP header this makes three fragments.
const PAYLOAD: usize = 1000;
/// How long it may take until the detour through the kernel's reassembly works: its bridge waits
/// for a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// Timeout for an answer that may not come.
const TIMEOUT: Duration = Duration::from_millis(300);
/// Orders of three fragments; some fragments are repeated.
const ORDERS: [&[usize]; 8] = [
    &[0, 1, 2],
    &[1, 0, 2],
    &[1, 2, 0],
    &[2, 1, 0],
    &[2, 0, 1],
    &[2, 2, 1, 0],
    &[1, 1, 0, 2],
    &[2, 1, 0, 0, 1],
];
/// How often each order is tried for each client and address.
const ROUNDS: u16 = 3;
/// Number of fragments without a first one: more than the budget of one prefix allows on all
/// processors.
const FLOOD: u16 = 20_000;
/// After this many of them, the test sends a datagram that must arrive.
const FLOOD_PART: u16 = 1000;

/// A port of the node itself that no Service uses.
const OWN_PORT: u16 = 5300;

/// A Service whose only Pod is on the first node.
const NEAR: Published = Published::new("near", 57);

/// A client whose packets the test sends and receives itself.
struct Client {
    wire: Wire,
    address: IpAddr,
    /// The last used source port, which is also the IP identification. Each datagram gets new ones.
    next: u16,
}

impl Client {
    fn new(wire: Wire, address: IpAddr) -> Self {
        Self {
            wire,
            address,
            next: 20_000,
        }
    }

    /// Returns the source port of a new datagram, and its fragments.
    fn datagram(&mut self, to: SocketAddr) -> (u16, Vec<Vec<u8>>) {
        self.next += 1;
        let from = SocketAddr::new(self.address, self.next);
        let datagram = udp(from, to).payload(&[b'x'; PAYLOAD]);
        (self.next, datagram.split(self.next, LENGTH))
    }

    /// Sends a datagram's fragments in this order. Returns its source port.
    fn send(&mut self, to: SocketAddr, order: &[usize]) -> u16 {
        let (port, fragments) = self.datagram(to);
        assert_eq!(fragments.len(), 3);
        for &index in order {
            self.send_frame(&fragments[index]);
        }
        port
    }

    /// Sends the IP packet of a frame.
    fn send_frame(&self, frame: &[u8]) {
        self.wire.send(&frame[14..]).unwrap();
    }

    #[track_caller]
    fn expect_answer(&self, from: SocketAddr, port: u16, what: &str) {
        let found = self
            .wire
            .receive_frame(what, |frame| (answered(frame)? == (from, port)).then_some(()));
        assert!(found.is_ok(), "{what}: {found:?}");
    }

    /// Sends datagrams whose later fragments come first, until one of them is answered.
    fn wait(&mut self, to: SocketAddr) {
        let mut sent = BTreeSet::new();
        wait_for("the detour through the reassembly", PATIENCE, || {
            sent.insert(self.send(to, &[2, 1, 0]));
            wait_for("an answer", TIMEOUT, || {
                self.wire
                    .receive_now(|frame| {
                        answered(frame).filter(|(from, port)| *from == to && sent.contains(port))
                    })
                    .unwrap()
            })
            .ok()
        })
        .unwrap();
    }

    fn expect_all_orders(&mut self, to: SocketAddr) {
        for _ in 0..ROUNDS {
            for order in ORDERS {
                let port = self.send(to, order);
                self.expect_answer(to, port, &format!("{order:?} from {} to {to}", self.address));
            }
        }
    }
}

/// Returns the sender of an answer, and the port that it is for.
fn answered(frame: &[u8]) -> Option<(SocketAddr, u16)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let source: IpAddr = match sliced.net? {
        etherparse::NetSlice::Ipv4(packet) => packet.header().source_addr().into(),
        etherparse::NetSlice::Ipv6(packet) => packet.header().source_addr().into(),
        etherparse::NetSlice::Arp(_) => return None,
    };
    match sliced.transport? {
        TransportSlice::Udp(datagram) => {
            let from = SocketAddr::new(source, datagram.source_port());
            Some((from, datagram.destination_port()))
        }
        _ => None,
    }
}

struct Fixture {
    agent: Agent,
    _peer: Option<XdpPeer>,
    /// Clients in a Pod and outside, one for each family.
    inside: [Client; 2],
    outside: [Client; 2],
    cluster: Cluster,
}

/// Pods on the first node, where the agent runs, and on another one.
fn fixture(title: &str, xdp: Xdp, arguments: &[&str]) -> Fixture {
    let cluster = Cluster::new(title, &[0, 1]).unwrap();
    let manifest = service().ingress(&load_balancer_addresses(), None);
    cluster.lab.apply("web.yaml", manifest).unwrap();
    cluster.route_load_balancer(&[0]).unwrap();
    let pod = cluster.nodes[0].silent_pod("asker").unwrap();
    let peer = (xdp == Xdp::Native).then(|| cluster.lab.prepare_for_xdp(&cluster.nodes[0]).unwrap());
    let agent = AgentOptions {
        xdp: Some(xdp),
        ..options(SocketLb::Off, arguments)
    };
    let agent = cluster.nodes[0].start_agent(&agent).unwrap();
    let inside = pod
        .addresses()
        .both()
        .map(|address| Client::new(pod.wire().unwrap(), address));
    let outside = cluster.outside.phantom().unwrap().both();
    let outside = outside.map(|address| Client::new(cluster.outside.wire().unwrap(), address));
    Fixture {
        agent,
        _peer: peer,
        inside,
        outside,
        cluster,
    }
}

fn port(addresses: [IpAddr; 2], port: u16) -> [SocketAddr; 2] {
    addresses.map(|address| SocketAddr::new(address, port))
}

fn in_any_order(title: &str, xdp: Xdp, arguments: &[&str]) {
    if !require_privileges() {
        return;
    }
    let mut fixture = fixture(title, xdp, arguments);
    for (client, vip) in fixture.inside.iter_mut().zip(port(vips(), UDP.port)) {
        client.wait(vip);
        client.expect_all_orders(vip);
    }
    let node = fixture.cluster.nodes[0].host().addresses().both();
    for (at, client) in fixture.outside.iter_mut().enumerate() {
        for to in [
            port(load_balancer_addresses(), UDP.port)[at],
            port(node, UDP.node_port.unwrap())[at],
        ] {
            client.wait(to);
            client.expect_all_orders(to);
        }
    }
    // A repeated fragment may arrive when the datagram is already complete.
    drop(fixture.agent);
}

#[test]
fn fragments_arrive_in_any_order() {
    in_any_order("any-order", Xdp::Off, &[]);
}

#[test]
fn fragments_arrive_in_any_order_with_generic_xdp() {
    in_any_order("any-order-generic", Xdp::Generic, &[]);
}

#[test]
fn fragments_arrive_in_any_order_with_native_xdp() {
    in_any_order("any-order-native", Xdp::Native, &[]);
}

#[test]
fn fragments_arrive_in_any_order_with_local_redirect() {
    in_any_order("any-order-redirect", Xdp::Off, &["--local-redirect"]);
}

#[test]
fn fragments_arrive_in_any_order_with_clsact() {
    in_any_order("any-order-clsact", Xdp::Off, &["--tc=clsact"]);
}

/// A Pod that is a client of its own Service gets its datagrams back.
#[test]
fn a_pod_reaches_itself_with_fragments() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("fragments-itself", &[0]).unwrap();
    let server = &cluster.servers[0];
    let ports = [UDP.without_node_port()];
    cluster.publish(NEAR, &ports, &[server.place()]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let addresses = server.pod.addresses().both();
    for (address, vip) in addresses.into_iter().zip(port(NEAR.cluster_ips(), UDP.port)) {
        let mut client = Client::new(server.pod.wire().unwrap(), address);
        client.wait(vip);
        client.expect_all_orders(vip);
    }
}

/// Reassembled datagrams go back to the bridge of which the Pod's device is a port.
#[test]
fn fragments_of_a_pod_behind_a_bridge_arrive() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("fragments-bridge", &[0, 1]).unwrap();
    let pod = &cluster.client;
    let device = pod.far_device();
    let [address4, address6] = pod.addresses().both();
    let lines = [
        // The link-layer address that the Pod uses for its gateway.
        "link add cni0 address ee:ee:ee:ee:ee:ee type bridge forward_delay 0".to_owned(),
        "link set cni0 up".to_owned(),
        format!("link set {device} down"),
        format!("link set {device} address 02:00:00:00:09:03 master cni0"),
        format!("link set {device} up"),
        format!("route replace {address4} dev cni0 scope link"),
        format!("route replace {address6} dev cni0"),
    ];
    cluster.nodes[0].host().namespace().ip(&lines).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let addresses = pod.addresses().both();
    for (address, vip) in addresses.into_iter().zip(port(vips(), UDP.port)) {
        let mut client = Client::new(pod.wire().unwrap(), address);
        client.wait(vip);
        client.expect_all_orders(vip);
    }
}

/// The next agent creates a new namespace and device. Both are deleted when the agent stops.
#[test]
fn the_reassembly_device_is_deleted_with_the_agent() {
    if !require_privileges() {
        return;
    }
    let mut fixture = fixture("fragments-restart", Xdp::Off, &[]);
    let node = fixture.cluster.nodes[0].clone();
    let device = || node.host().namespace().device_index("lbfrag0").ok();
    let before = device().unwrap();
    let agent = fixture.agent.restart().unwrap();
    assert_ne!(device().unwrap(), before);
    for (client, vip) in fixture
        .outside
        .iter_mut()
        .zip(port(load_balancer_addresses(), UDP.port))
    {
        client.wait(vip);
    }
    agent.stop().unwrap();
    wait_for("no lbfrag0", PATIENCE, || device().is_none().then_some(())).unwrap();
    expect_as_without_device(&mut fixture.outside, &node);
}

/// Without an agent, the kernel itself removes the device from the programs' map.
#[test]
fn nothing_is_sent_to_the_device_of_a_killed_agent() {
    if !require_privileges() {
        return;
    }
    let mut fixture = fixture("fragments-killed", Xdp::Off, &[]);
    let node = fixture.cluster.nodes[0].clone();
    let vips = port(load_balancer_addresses(), UDP.port);
    for (client, vip) in fixture.outside.iter_mut().zip(vips) {
        client.wait(vip);
    }
    fixture.agent.kill();
    wait_for("no lbfrag0", PATIENCE, || {
        let device = node.host().namespace().device_index("lbfrag0");
        device.is_err().then_some(())
    })
    .unwrap();
    expect_as_without_device(&mut fixture.outside, &node);
    // Fragments for the node itself reach its stack.
    let _server = node.host().serve().udp(OWN_PORT).start().unwrap();
    let own = port(node.host().addresses().both(), OWN_PORT);
    for (client, to) in fixture.outside.iter_mut().zip(own) {
        client.expect_all_orders(to);
    }
}

/// Asserts that datagrams with fragments in order arrive, and that others are dropped and counted.
fn expect_as_without_device(outside: &mut [Client; 2], node: &Node) {
    let count = node.reason_count("unknown_fragment").unwrap();
    for (client, vip) in outside.iter_mut().zip(port(load_balancer_addresses(), UDP.port)) {
        client.send(vip, &[2, 1]);
        let port = client.send(vip, &[0, 1, 2]);
        client.expect_answer(vip, port, "a datagram in order");
    }
    assert_eq!(node.reason_count("unknown_fragment").unwrap(), count + 4);
}

/// Another client sends fragments whose first fragment never arrives.
#[test]
fn a_flood_of_fragments_does_not_block_other_clients() {
    if !require_privileges() {
        return;
    }
    let mut fixture = fixture("fragments-flood", Xdp::Off, &[]);
    let flooder = fixture.cluster.lab.outside_client("flooder").unwrap();
    let wire = flooder.wire().unwrap();
    let addresses = flooder.phantom().unwrap().both();
    let vips = port(load_balancer_addresses(), UDP.port);
    for ((client, vip), address) in fixture.outside.iter_mut().zip(vips).zip(addresses) {
        client.wait(vip);
        let from = SocketAddr::new(address, 40_000);
        let datagram = udp(from, vip).payload(&[b'x'; 2400]);
        for identification in 0..FLOOD {
            wire.send(&datagram.split(identification, 1208)[1][14..]).unwrap();
            if identification % FLOOD_PART == 0 {
                let port = client.send(vip, &[2, 1, 0]);
                client.expect_answer(vip, port, "a datagram during a flood");
            }
        }
    }
    let dropped = fixture.cluster.nodes[0].reason_count("unknown_fragment").unwrap();
    println!("{dropped} of {} fragments were dropped", 2 * u32::from(FLOOD));
    assert!(dropped > 0);
    drop(fixture.agent);
}
