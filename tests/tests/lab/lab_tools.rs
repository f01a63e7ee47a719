//! The clients and servers of a lab, beyond what the tests of the lab itself use.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{IpNumber, IpSlice, PacketBuilder};
use lb_tests::lab::capture::Protocol;
use lb_tests::lab::{Capture, Fragmentation, Lab, Machine, Node, Process, ServerBuilder, require_privileges};

const HTTP: u16 = 8080;
const UDP: u16 = 5353;
const ECHO: u16 = 7;
const STREAM: u16 = 5001;

/// A Pod with a server, and a client behind a router.
struct Small {
    _server: Process,
    web: Machine,
    client: Machine,
    router: Machine,
    node: Node,
    // The last field: Rust drops fields in order, and the others use it.
    _lab: Lab,
}

impl Small {
    fn new(title: &str) -> Self {
        Self::with_server(title, |server| server)
    }

    fn with_server(title: &str, configure: impl Fn(ServerBuilder<'_>) -> ServerBuilder<'_>) -> Self {
        let lab = Lab::new(title).unwrap();
        let node = lab.node("node-1").unwrap();
        let web = node.pod("web-1").unwrap();
        let server = web.serve().http(HTTP).udp(UDP).echo(ECHO).stream(STREAM);
        let router = lab.router("router").unwrap();
        Self {
            _server: configure(server).start().unwrap(),
            client: lab.outside_client_behind(&router, "client-1").unwrap(),
            router,
            web,
            node,
            _lab: lab,
        }
    }
}

#[test]
fn ping_reports_answers_errors_and_losses() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("ping");
    let timeout = Duration::from_millis(100);
    for to in small.web.addresses().both() {
        let report = small.client.ping(to).count(3).run().unwrap();
        assert_eq!(report.answers[&to], 3, "{report:?}");
        assert_eq!((report.answered(), report.lost), (3, 0), "{report:?}");
        let report = small.client.ping(to).size(4000).run().unwrap();
        assert_eq!(report.answered(), 1, "{report:?}");
    }
    // The node has no route to addresses of its Pod CIDR that no Pod has.
    for (to, node) in ["10.244.1.99", "fd00:244:1::99"]
        .map(|address| address.parse::<IpAddr>().unwrap())
        .into_iter()
        .zip(small.node.host().addresses().both())
    {
        small
            .node
            .host()
            .namespace()
            .ip(&[format!("route add unreachable {to}")])
            .unwrap();
        let report = small.client.ping(to).count(1).run().unwrap();
        assert_eq!(report.errors[&format!("unreachable: {node}")], 1, "{report:?}");
    }
    for to in small.client.phantom().unwrap().both() {
        let report = small.web.ping(to).count(2).timeout(timeout).run().unwrap();
        assert_eq!((report.answered(), report.lost), (0, 2), "{report:?}");
    }
}

#[test]
fn large_datagrams_are_fragmented_or_refused() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("large");
    for to in small.web.addresses().both() {
        let capture = Capture::start(small.router.namespace()).unwrap();
        for size in [2000, 9000, 60_000] {
            let report = small.client.udp(to, UDP).size(size).run().unwrap();
            assert_eq!(report.answered(), 1, "{to} {size}: {report:?}");
        }
        assert!(capture.finish().unwrap().count(Protocol::Fragment) > 80);
        let forbidden = small.client.udp(to, UDP).fragmentation(Fragmentation::Forbidden);
        let report = forbidden.size(2000).run().unwrap();
        assert_eq!(report.errors["send: MessageTooLong"], 1, "{to}: {report:?}");
    }
}

#[test]
fn a_socket_learns_its_path_mtu() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("path-mtu");
    let timeout = Duration::from_millis(200);
    for to in small.web.addresses().both() {
        let udp = || small.client.udp(to, UDP).connected().timeout(timeout);
        assert_eq!(udp().run().unwrap().path_mtu, Some(1500));
    }
    small.router.namespace().limit_mtu(1400).unwrap();
    for to in small.web.addresses().both() {
        let udp = || small.client.udp(to, UDP).connected().timeout(timeout).size(1420);
        // The router reports the MTU for the first datagram.
        let report = udp()
            .fragmentation(Fragmentation::Forbidden)
            .count(2)
            .run()
            .unwrap();
        assert_eq!(report.errors["receive: MessageTooLong"], 1, "{to}: {report:?}");
        assert_eq!(report.errors["send: MessageTooLong"], 1, "{to}: {report:?}");
        assert_eq!(report.path_mtu, Some(1400), "{to}");
        // The datagram fits the device's MTU, and the socket ignores the path MTU.
        let report = udp().fragmentation(Fragmentation::Probe).run().unwrap();
        assert_eq!(report.errors["receive: MessageTooLong"], 1, "{to}: {report:?}");
        // The answers are even larger: the server's kernel learns the MTU from the first of them.
        let report = udp()
            .fragmentation(Fragmentation::Allowed)
            .count(2)
            .run()
            .unwrap();
        assert!(report.answered() > 0, "{to}: {report:?}");
        let stream = small.client.stream(to, STREAM).run().unwrap();
        assert_eq!(stream.path_mtu, 1400, "{to}");
    }
}

#[test]
fn answers_can_be_larger_than_requests() {
    if !require_privileges() {
        return;
    }
    let small = Small::with_server("answers", |server| {
        server
            .udp_answer_size(5000)
            .udp_fragmentation(Fragmentation::Allowed)
    });
    small.router.namespace().limit_mtu(1300).unwrap();
    for to in small.web.addresses().both() {
        let capture = Capture::start(small.client.namespace()).unwrap();
        let report = small.client.udp(to, UDP).count(3).run().unwrap();
        // With IPv6 only the sender fragments, after it has learned the MTU.
        let expected = if to.is_ipv4() { 3 } else { 2 };
        assert_eq!(report.answered(), expected, "{to}: {report:?}");
        assert!(capture.finish().unwrap().count(Protocol::Fragment) > 6);
    }
}

#[test]
fn clients_send_from_the_requested_addresses_and_ports() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("sources");
    let more = small.client.more_addresses(3).unwrap();
    for (index, to) in small.web.addresses().both().into_iter().enumerate() {
        let own = small.client.addresses().both()[index];
        let addresses: Vec<IpAddr> = more.iter().map(|addresses| addresses.both()[index]).collect();
        // Runs twice: a port can be reused immediately.
        for _ in 0..2 {
            let http = small.client.http(to, HTTP).count(5).concurrency(2);
            let report = http.source_port(40_000).run().unwrap();
            let ports: Vec<SocketAddr> = report.servers.keys().copied().collect();
            let expected: Vec<SocketAddr> = (40_000..40_005).map(|port| (own, port).into()).collect();
            assert_eq!(ports, expected, "{report:?}");
            assert!(report.servers.values().all(|server| server == "web-1"));
        }
        let http = small.client.http(to, HTTP).count(6);
        let report = http.source_addresses(addresses.clone()).run().unwrap();
        assert_eq!(report.clients, addresses.iter().copied().collect(), "{report:?}");
        assert_eq!(report.servers.len(), 6);

        let udp = small.client.udp(to, UDP).sockets(4).source_port(41_000);
        let report = udp.source_addresses(addresses[..2].to_vec()).run().unwrap();
        let expected: BTreeSet<SocketAddr> = (0..4)
            .map(|number: u16| (addresses[usize::from(number % 2)], 41_000 + number).into())
            .collect();
        assert_eq!(report.clients, expected, "{report:?}");
        let stream = small.client.stream(to, STREAM).source_port(42_000);
        assert_eq!(stream.run().unwrap().bytes, 1 << 20);

        let source = SocketAddr::new(own, 43_000);
        for port in [ECHO, HTTP] {
            let mut talk = small.client.talk_from(source, (to, port).into()).unwrap();
            let (local, _) = talk.connected().unwrap();
            assert_eq!(local, source);
        }
    }
}

/// Builds an IP packet with SCTP, a protocol that the tested kernels do not support.
fn sctp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let builder = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("{source} and {destination}"),
    };
    let mut packet = Vec::new();
    builder.write(&mut packet, IpNumber::SCTP, payload).unwrap();
    packet
}

/// Returns source, destination and payload of an SCTP packet.
fn read_sctp(packet: &[u8]) -> Option<(IpAddr, IpAddr, Vec<u8>)> {
    let ip = IpSlice::from_slice(packet).ok()?;
    let payload = ip.payload();
    (payload.ip_number == IpNumber::SCTP)
        .then(|| (ip.source_addr(), ip.destination_addr(), payload.payload.to_vec()))
}

#[test]
fn a_test_sends_and_receives_raw_packets() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("wire");
    let silent = small.node.silent_pod("silent-1").unwrap();
    let at_client = small.client.wire().unwrap();
    let at_pod = silent.wire().unwrap();
    let capture = Capture::start(small.router.namespace()).unwrap();
    let client = small.client.phantom().unwrap().both();
    for (client, pod) in client.into_iter().zip(silent.addresses().both()) {
        at_client.send(&sctp(client, pod, b"question")).unwrap();
        let seen = at_pod.receive("a question", read_sctp).unwrap();
        assert_eq!(seen, (client, pod, b"question".to_vec()));
        at_pod.send(&sctp(pod, client, b"answer")).unwrap();
        let seen = at_client.receive("an answer", read_sctp).unwrap();
        assert_eq!(seen, (pod, client, b"answer".to_vec()));
    }
    let report = capture.finish().unwrap();
    // No kernel sent anything about these packets.
    let kinds: BTreeSet<Protocol> = report.seen.keys().map(|seen| seen.flow.protocol).collect();
    assert!(
        kinds.is_subset(&[Protocol::Other, Protocol::Housekeeping].into()),
        "{report}"
    );
    assert!(report.bad.is_empty(), "{report}");

    // A kernel answers packets to its own address.
    for (own, to) in small
        .client
        .addresses()
        .both()
        .into_iter()
        .zip(small.web.addresses().both())
    {
        let refused = at_client
            .exchange(&sctp(own, to, b"question"), "an ICMP error", |packet| {
                let ip = IpSlice::from_slice(packet).ok()?;
                let number = ip.payload().ip_number;
                [IpNumber::ICMP, IpNumber::IPV6_ICMP]
                    .contains(&number)
                    .then(|| ip.source_addr())
            })
            .unwrap();
        assert_eq!(refused, to);
    }
}
