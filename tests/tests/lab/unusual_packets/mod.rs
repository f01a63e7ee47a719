//! Packets other than plain requests and replies, through a VIP and with real kernels at both ends:
//! packets that exceed an MTU on the path, fragments, ICMP errors, hop limits, SCTP.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

mod made;

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{IpNumber, IpSlice};
use lb_tests::lab::cluster::{HTTP, STREAM, UDP};
use lb_tests::lab::{
    Addresses, Agents, Capture, Cluster, Fragmentation, LabOptions, Machine, Process, Published, ServicePort,
    SocketLb, Wire, Xdp, require_privileges,
};

use self::made::{
    HOP_LIMIT_EXCEEDED, PORT_UNREACHABLE, hop_limit, quotation, read_sctp, sctp_chunk, sctp_packet, udp,
    udp_headers,
};

/// The MTU of a narrow link.
const NARROW: u16 = 1300;
/// The MTU of the overlay.
const OVERLAY: u16 = 1450;
/// Payload size of datagrams that exceed these MTUs, but not that of the sender's device.
const TOO_BIG: u32 = 1400;
/// Timeout of requests that are expected to be lost.
const TIMEOUT: Duration = Duration::from_millis(200);

/// A port where answers are larger than requests.
const LARGE: ServicePort = ServicePort {
    name: "large",
    protocol: "UDP",
    port: 54,
    target_port: 5354,
    node_port: None,
};

/// A port where no process listens.
const CLOSED: ServicePort = ServicePort {
    name: "closed",
    protocol: "UDP",
    port: 55,
    target_port: 5355,
    node_port: None,
};

/// A port that the test itself answers.
const SILENT_UDP: ServicePort = ServicePort {
    name: "udp",
    protocol: "UDP",
    port: 56,
    target_port: 5356,
    node_port: None,
};

/// A port that the test itself answers.
const SILENT_SCTP: ServicePort = ServicePort {
    name: "sctp",
    protocol: "SCTP",
    port: 3868,
    target_port: 3868,
    node_port: None,
};

/// A Service whose Pod is on the first node.
const NEAR: Published = Published::new("near", 30);
/// A Service whose Pod is on the second node.
const FAR: Published = Published::new("far", 20);
/// A Service whose silent Pod is on the first node.
const SILENT_NEAR: Published = Published::new("silent-near", 31);
/// A Service whose silent Pod is on the second node.
const SILENT_FAR: Published = Published::new("silent-far", 21);

/// A Service without Pods.
const NOBODY: Published = Published::new("nobody", 22);

struct Fixture {
    _agents: Agents,
    _servers: Vec<Process>,
    /// A client behind a router.
    client: Machine,
    router: Machine,
    /// Pods whose packets the test builds, on the first and the second node.
    silent: [Machine; 2],
    /// A client Pod of this kind on the first node.
    silent_client: Machine,
    cluster: Cluster,
}

impl Fixture {
    fn new(title: &str, options: &LabOptions, socket_lb: SocketLb, xdp: Option<Xdp>) -> Self {
        let cluster = Cluster::with_options(title, options, &[0, 1]).unwrap();
        let ports = [HTTP, UDP, STREAM].map(ServicePort::without_node_port);
        let ports = [&ports[..], &[LARGE, CLOSED]].concat();
        let mut servers = Vec::new();
        for (service, server) in [(NEAR, &cluster.servers[0]), (FAR, &cluster.servers[1])] {
            cluster.publish(service, &ports, &[server.place()]).unwrap();
            let large = server.pod.serve().udp(LARGE.target_port).udp_answer_size(TOO_BIG);
            servers.push(large.start().unwrap());
        }
        let silent = [0, 1].map(|node| cluster.nodes[node].silent_pod(&format!("silent-{node}")).unwrap());
        for (index, service) in [SILENT_NEAR, SILENT_FAR].into_iter().enumerate() {
            let place = [(&silent[index], &cluster.nodes[index])];
            cluster
                .publish(service, &[SILENT_UDP, SILENT_SCTP], &place)
                .unwrap();
        }
        cluster.publish(NOBODY, &[SILENT_SCTP], &[]).unwrap();
        let router = cluster.lab.router("router").unwrap();
        Self {
            _agents: cluster.start_agents(socket_lb, xdp, &[]).unwrap(),
            _servers: servers,
            client: cluster.lab.outside_client_behind(&router, "client-1").unwrap(),
            router,
            silent,
            silent_client: cluster.nodes[0].silent_pod("asks").unwrap(),
            cluster,
        }
    }

    /// Flushes the path MTUs that the Pods and the client have learned.
    fn forget_path_mtus(&self) {
        let pods = self.cluster.servers.iter().map(|server| &server.pod);
        for machine in pods.chain([&self.client]) {
            let flush = [("ipv4/route/flush", "1"), ("ipv6/route/flush", "1")];
            machine.namespace().sysctl(&flush).unwrap();
        }
    }

    /// The link to the client has a small MTU: the router reports it to the Pods.
    fn answers_are_too_big(&self) {
        self.router.namespace().limit_mtu(NARROW).unwrap();
        for vip in [NEAR, FAR].into_iter().flat_map(|service| service.addresses()) {
            self.forget_path_mtus();
            let udp = self.client.udp(vip, LARGE.port).timeout(TIMEOUT);
            let report = udp.count(3).run().unwrap();
            // The Pod's kernel learns the MTU from the first answer, and sends fragments from then
            // on.
            assert_eq!(report.answered(), 2, "{vip}: {report:?}");
            self.forget_path_mtus();
            let stream = self.client.stream(vip, STREAM.port).mebibytes(2).run().unwrap();
            assert_eq!((stream.bytes, stream.path_mtu), (2 << 20, NARROW.into()), "{vip}");
        }
        self.router.namespace().limit_mtu(1500).unwrap();
    }

    /// The links to the Pods have a small MTU: their nodes report it to the client.
    fn requests_are_too_big(&self) {
        for server in &self.cluster.servers {
            server.node.limit_mtu_to_pod(&server.pod, NARROW).unwrap();
        }
        for vip in [NEAR, FAR].into_iter().flat_map(|service| service.addresses()) {
            self.client_learns_mtu(vip, NARROW);
            self.streams_learn_mtu(vip, NARROW);
        }
        for server in &self.cluster.servers {
            server.node.limit_mtu_to_pod(&server.pod, 1500).unwrap();
        }
    }

    /// The path between the nodes has a small MTU: the first node reports it.
    fn the_path_between_nodes_is_narrow(&self) {
        let node = self.cluster.nodes[0].host().namespace();
        let (cidr4, cidr6) = self.cluster.nodes[1].pod_cidrs();
        for cidr in [&cidr4, &cidr6] {
            node.limit_mtu_to(cidr, NARROW).unwrap();
        }
        for vip in FAR.addresses() {
            self.client_learns_mtu(vip, NARROW);
            self.streams_learn_mtu(vip, NARROW);
        }
        for cidr in [&cidr4, &cidr6] {
            node.limit_mtu_to(cidr, 1500).unwrap();
        }
    }

    /// The client sends datagrams that are too large, and learns the MTU.
    fn client_learns_mtu(&self, vip: IpAddr, mtu: u16) {
        self.forget_path_mtus();
        let udp = self.client.udp(vip, UDP.port).connected().timeout(TIMEOUT);
        let udp = udp.size(1450).fragmentation(Fragmentation::Forbidden);
        let report = udp.count(2).run().unwrap();
        assert_eq!(report.errors["receive: MessageTooLong"], 1, "{vip}: {report:?}");
        assert_eq!(report.errors["send: MessageTooLong"], 1, "{vip}: {report:?}");
        assert_eq!(report.path_mtu, Some(mtu.into()), "{vip}");
    }

    /// TCP connections of the client learn the MTU as well.
    fn streams_learn_mtu(&self, vip: IpAddr, mtu: u16) {
        self.forget_path_mtus();
        let stream = self.client.stream(vip, STREAM.port).mebibytes(2).run().unwrap();
        assert_eq!((stream.bytes, stream.path_mtu), (2 << 20, mtu.into()), "{vip}");
    }

    /// Requests and answers in fragments arrive.
    fn fragments(&self, from: &Machine) {
        let node_port = UDP.node_port.unwrap();
        let node = self.cluster.nodes[0].host().addresses().both();
        let vips = [NEAR, FAR].into_iter().flat_map(|service| service.addresses());
        let all = vips
            .map(|vip| (vip, UDP.port))
            .chain(node.map(|node| (node, node_port)));
        for (address, port) in all {
            for size in [2000, 9000, 50_000] {
                let report = from.udp(address, port).size(size).count(3).run().unwrap();
                assert_eq!(report.answered(), 3, "{address} {size}: {report:?}");
                let sockets = from.udp(address, port).connected().size(size).sockets(10);
                let report = sockets.run().unwrap();
                assert_eq!(report.answered(), 10, "{address} {size}: {report:?}");
            }
        }
    }

    /// The Pod's own kernel refuses, and the client's socket gets the error.
    fn closed_ports_are_refused(&self, from: &Machine) {
        for vip in [NEAR, FAR].into_iter().flat_map(|service| service.addresses()) {
            let udp = from.udp(vip, CLOSED.port).connected().sockets(3);
            let report = udp.run().unwrap();
            assert_eq!(
                report.errors["receive: ConnectionRefused"], 3,
                "{vip}: {report:?}"
            );
        }
    }

    /// The client's wire, and for each Service the wire of its silent Pod and the number of routers
    /// on the path.
    fn wires(&self) -> (Wire, [(Published, Wire, u8); 2]) {
        let pods = [(SILENT_NEAR, 0, 2), (SILENT_FAR, 1, 3)];
        let pods = pods.map(|(service, pod, routers)| (service, self.silent[pod].wire().unwrap(), routers));
        (self.cluster.outside.wire().unwrap(), pods)
    }

    /// Every router on the path decrements the hop limit, and reports when it reaches zero.
    fn hop_limits(&self) {
        let (at_client, pods) = self.wires();
        let client = self.cluster.outside.phantom().unwrap().both();
        for (service, at_pod, routers) in pods {
            for (client, vip) in client.into_iter().zip(service.addresses()) {
                at_client.send(&udp(client, vip, 40, 1000)).unwrap();
                let limit = at_pod.receive("a request", |packet| {
                    let ip = IpSlice::from_slice(packet).ok()?;
                    (ip.payload().ip_number == IpNumber::UDP).then(|| hop_limit(&ip))
                });
                assert_eq!(limit.unwrap(), 40 - routers, "{vip}");
                for limit in 1..=routers {
                    let port = 2000 + u16::from(limit);
                    let request = udp(client, vip, limit, port);
                    let quoted = at_client
                        .exchange(&request, &format!("time exceeded: {vip} {limit}"), |packet| {
                            quotation(packet, HOP_LIMIT_EXCEEDED)
                        })
                        .unwrap();
                    assert_eq!(quoted, udp_headers(client, vip, port), "{vip} {limit}");
                }
            }
        }
    }

    /// A client outside uses SCTP.
    fn sctp(&self) {
        let outside = &self.cluster.outside;
        let node = self.cluster.nodes[0].host().addresses();
        self.sctp_from(&outside.wire().unwrap(), outside.phantom().unwrap(), node);
    }

    /// A Pod uses SCTP; Pods of other nodes see its address too.
    fn sctp_of_a_pod(&self) {
        let client = &self.silent_client;
        self.sctp_from(&client.wire().unwrap(), client.addresses(), client.addresses());
    }

    /// Only addresses are translated: the checksum does not cover them. Pods of other nodes see
    /// `instead` as the client.
    fn sctp_from(&self, at_client: &Wire, client: Addresses, instead: Addresses) {
        let (client, instead) = (client.both(), instead.both());
        let port = SILENT_SCTP.port;
        // The type of the first chunk is INIT.
        let init = sctp_chunk(30_000, port, b"\x01nit");
        for (service, at_pod, _) in self.wires().1 {
            let is_near = service == SILENT_NEAR;
            let pod = &self.silent[usize::from(!is_near)];
            for (index, vip) in service.addresses().into_iter().enumerate() {
                let source = if is_near { client[index] } else { instead[index] };
                let pod = pod.addresses().both()[index];
                at_client.send(&sctp_packet(client[index], vip, &init)).unwrap();
                let seen = at_pod.receive("a request", read_sctp).unwrap();
                assert_eq!(seen, (source, pod, init.clone()), "{vip}");
                let answer = sctp_chunk(port, 30_000, b"init ack");
                at_pod.send(&sctp_packet(pod, source, &answer)).unwrap();
                let seen = at_client.receive("an answer", read_sctp).unwrap();
                assert_eq!(seen, (vip, client[index], answer), "{vip}");
            }
        }
        for (client, vip) in client.into_iter().zip(NOBODY.addresses()) {
            let request = sctp_packet(client, vip, &init);
            let refusal = |packet: &[u8]| quotation(packet, PORT_UNREACHABLE);
            let quoted = at_client
                .exchange(&request, &format!("refused: {vip}"), refusal)
                .unwrap();
            assert_eq!(quoted, (client, vip, init[..8].to_vec()));
        }
    }
}

fn from_outside(title: &str, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new(title, &LabOptions::default(), SocketLb::Off, xdp);
    let cluster = &fixture.cluster;
    let machines = [&fixture.client, &cluster.servers[0].pod, &cluster.servers[1].pod];
    let captures = machines.map(|machine| Capture::start(machine.namespace()).unwrap());
    fixture.answers_are_too_big();
    fixture.requests_are_too_big();
    fixture.the_path_between_nodes_is_narrow();
    fixture.fragments(&fixture.client);
    fixture.closed_ports_are_refused(&fixture.client);
    for capture in captures {
        capture.finish().unwrap();
    }
    fixture.hop_limits();
    fixture.sctp();
}

#[test]
fn of_outside_clients_are_handled_through_tc() {
    from_outside("packets-tc", None);
}

#[test]
fn of_outside_clients_are_handled_through_generic_xdp() {
    from_outside("packets-generic", Some(Xdp::Generic));
}

#[test]
fn of_outside_clients_are_handled_through_native_xdp() {
    from_outside("packets-native", Some(Xdp::Native));
}

/// The overlay has a smaller MTU than the devices around it.
#[test]
fn of_outside_clients_are_handled_through_the_overlay() {
    if !require_privileges() {
        return;
    }
    let options = LabOptions { overlay: true };
    let fixture = Fixture::new("packets-overlay", &options, SocketLb::Off, None);
    for vip in FAR.addresses() {
        fixture.client_learns_mtu(vip, OVERLAY);
    }
    fixture.forget_path_mtus();
    // Fragments are as large as the MTU of the client's device, until the client learns the MTU of
    // the path. Nodes do not fragment them again.
    for vip in [NEAR, FAR].into_iter().flat_map(|service| service.addresses()) {
        let udp = fixture.client.udp(vip, UDP.port).size(4000).timeout(TIMEOUT);
        let report = udp.count(2).run().unwrap();
        assert!(report.answered() > 0, "{vip}: {report:?}");
    }
    for node in fixture.cluster.nodes[0].host().addresses().both() {
        let udp = fixture.client.udp(node, UDP.node_port.unwrap());
        udp.size(4000).sockets(10).timeout(TIMEOUT).run().unwrap();
    }
    fixture.fragments(&fixture.client);
    fixture.closed_ports_are_refused(&fixture.client);
}

#[test]
fn of_pods_are_handled() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let fixture = Fixture::new("packets-pods", &LabOptions::default(), socket_lb, None);
        let client = &fixture.cluster.client;
        let capture = Capture::start(client.namespace()).unwrap();
        fixture.fragments(client);
        fixture.closed_ports_are_refused(client);
        capture.finish().unwrap();
        fixture.sctp_of_a_pod();
    }
}
