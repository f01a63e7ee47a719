//! Source addresses of packets: clients behind a Pod are answered, and packets from outside with
//! the address of a Pod or of the node open no connection.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use lb_tests::lab::cluster::{ECHO, HTTP, PORTS, STREAM, UDP};
use lb_tests::lab::{
    Agents, Capture, Cluster, LabOptions, Machine, Process, Published, ServicePort, SocketLb, Talk, Wire,
    Xdp, require_privileges, wait_for,
};
use lb_tests::packet::build::{Build, Link, syn, udp};
use serde_json::Value;

/// Timeout of an answer or a change on a slow machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many connections and how many UDP sockets are used for each address.
const REQUESTS: u32 = 8;
/// The first client port that no UDP flow has used.
static LATER_PORTS: AtomicU16 = AtomicU16::new(21_000);

/// A Service whose only Pod is on the second node, which has no route to clients behind Pods.
const FAR: Published = Published::new("far", 11);
/// A Service whose only Pod is the one that forwards for the clients.
const GATEWAY: Published = Published::new("gateway", 12);
/// A Service whose only Pod is another one on the first node.
const NEAR: Published = Published::new("near", 13);

/// Where the first node's routes to clients behind the Pod lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// To the Pod.
    Back,
    /// To the Pod, whose device is a port of a bridge, like that of the other Pod.
    Bridge,
    /// Out of the node by its default route: the outside network has another route to the client.
    Default,
}

/// The configuration for a client behind a Pod of the first node.
#[derive(Clone, Copy, Debug)]
struct Setup {
    way: Way,
    xdp: Option<Xdp>,
    options: LabOptions,
    arguments: &'static [&'static str],
}

const DIRECT: LabOptions = LabOptions { overlay: false };
const OVERLAY: LabOptions = LabOptions { overlay: true };
const USUAL: Setup = Setup {
    way: Way::Back,
    xdp: None,
    options: DIRECT,
    arguments: &[],
};

/// The lab of a [`Setup`].
struct Fixture {
    setup: Setup,
    client: Machine,
    gateway: Machine,
    _server: Process,
    _agents: Agents,
    cluster: Cluster,
}

impl Fixture {
    fn new(title: &str, setup: Setup) -> Self {
        let cluster = Cluster::with_options(title, &setup.options, &[0, 1]).unwrap();
        let [node, ..] = &cluster.nodes;
        let gateway = node.pod("gateway").unwrap();
        let client = cluster.lab.client_behind(&gateway, "behind").unwrap();
        let server = gateway.serve().http(HTTP.target_port).udp(UDP.target_port);
        let server = server.stream(STREAM.target_port).start().unwrap();
        match setup.way {
            Way::Back => node.route_behind(&gateway, gateway.far_device()).unwrap(),
            Way::Bridge => {
                let pods = [&cluster.client, &gateway, &cluster.servers[0].pod];
                node.add_bridge("cni0", &pods).unwrap();
                node.route_behind(&gateway, "cni0").unwrap();
            }
            Way::Default => cluster.lab.link_outside(&client).unwrap(),
        }
        let ports = PORTS.map(ServicePort::without_node_port);
        let [near, far] = [0, 1].map(|server: usize| cluster.servers[server].place());
        for (service, place) in [(FAR, far), (GATEWAY, (&gateway, node)), (NEAR, near)] {
            cluster.publish(service, &ports, &[place]).unwrap();
        }
        Self {
            setup,
            client,
            gateway: gateway.clone(),
            _server: server,
            _agents: cluster
                .start_agents(SocketLb::Off, setup.xdp, setup.arguments)
                .unwrap(),
            cluster,
        }
    }

    /// Sends requests to each ClusterIP of a Service. Asserts that the Pod `by` answers and sees
    /// one of the addresses `seen` as the client.
    #[track_caller]
    fn is_answered(&self, from: &Machine, service: Published, by: &str, seen: [Vec<IpAddr>; 2]) {
        for (vip, expected) in service.cluster_ips().into_iter().zip(seen) {
            let http = ask_http(from, (vip, HTTP.port).into(), by);
            let udp = ask_udp(from, (vip, UDP.port).into(), by);
            for client in http.union(&udp) {
                assert!(expected.contains(client), "{:?} {vip}: {client}", self.setup);
            }
            let report = from.stream(vip, STREAM.port).run().unwrap();
            assert_eq!((report.server.as_str(), report.bytes), (by, 1 << 20), "{vip}");
        }
    }

    fn check(&self) {
        let [node, ..] = &self.cluster.nodes;
        let backend = &self.cluster.servers[1].pod;
        let machines = [&self.client, &self.gateway, node.host(), backend];
        let captures = machines.map(|machine| Capture::start(machine.namespace()).unwrap());
        let only = |address: IpAddr| vec![address];
        let own = self.client.addresses().both().map(only);
        let nodes = node.host().addresses().both().map(only);
        let far = node
            .overlay_addresses()
            .unwrap_or_else(|| node.host().addresses());
        // The second node has a route only to the first one's address.
        self.is_answered(&self.client, FAR, "web-2", far.both().map(only));
        // With the client's address, the Pod would answer the client directly, past the node.
        self.is_answered(&self.client, GATEWAY, "gateway", nodes.clone());
        let near = match self.setup.way {
            Way::Back => own,
            Way::Default => nodes,
            // The agent cannot know to which port of the bridge a client belongs.
            Way::Bridge => [0, 1].map(|family| [own[family].as_slice(), &nodes[family]].concat()),
        };
        self.is_answered(&self.client, NEAR, "web-1", near);
        // The Pods themselves keep their addresses.
        for pod in [&self.gateway, &self.cluster.client] {
            let own = pod.addresses().both().map(only);
            self.is_answered(pod, FAR, "web-2", own.clone());
            self.is_answered(pod, NEAR, "web-1", own);
        }
        for capture in captures {
            capture.finish().unwrap();
        }
        assert_eq!(node.reason_count("forged_source").unwrap(), 0, "{:?}", self.setup);
    }
}

/// Sends HTTP requests and asserts that the Pod `by` answers. Returns the client addresses that it
/// saw.
#[track_caller]
fn ask_http(from: &Machine, to: SocketAddr, by: &str) -> BTreeSet<IpAddr> {
    let http = from.http(to.ip(), to.port()).count(REQUESTS);
    let report = http.timeout(PATIENCE).run().unwrap();
    let answers = [(by.to_owned(), u64::from(REQUESTS))].into();
    assert_eq!(report.answers, answers, "{} to {to}: {report:?}", from.name());
    report.clients
}

/// The same with datagrams. The client's ports are new ones: an ephemeral port may belong to a flow
/// that is still remembered. A node that knows that flow and only forwards this one would treat the
/// answer as part of that flow.
#[track_caller]
fn ask_udp(from: &Machine, to: SocketAddr, by: &str) -> BTreeSet<IpAddr> {
    let ports = u16::try_from(REQUESTS).unwrap();
    let port = LATER_PORTS.fetch_add(ports, Ordering::Relaxed);
    let udp = from.udp(to.ip(), to.port()).sockets(REQUESTS);
    let report = udp.source_port(port).timeout(PATIENCE).run().unwrap();
    let answers = [(by.to_owned(), u64::from(REQUESTS))].into();
    assert_eq!(report.answers, answers, "{} to {to}: {report:?}", from.name());
    assert_eq!(report.sources, [to].into(), "{report:?}");
    report.clients.iter().map(SocketAddr::ip).collect()
}

fn behind_a_pod(title: &str, setup: Setup) {
    if require_privileges() {
        Fixture::new(title, setup).check();
    }
}

#[test]
fn a_client_behind_a_pod_is_answered() {
    behind_a_pod("behind", USUAL);
}

#[test]
fn a_client_behind_a_pod_is_answered_through_native_xdp() {
    let xdp = Some(Xdp::Native);
    behind_a_pod("behind-native", Setup { xdp, ..USUAL });
}

#[test]
fn a_client_behind_a_pod_is_answered_through_the_overlay() {
    let options = OVERLAY;
    behind_a_pod("behind-overlay", Setup { options, ..USUAL });
}

#[test]
fn a_client_behind_a_pod_is_answered_with_local_redirect() {
    let arguments = &["--local-redirect"];
    behind_a_pod("behind-redirect", Setup { arguments, ..USUAL });
}

#[test]
fn a_client_behind_a_pod_at_a_bridge_is_answered() {
    let way = Way::Bridge;
    behind_a_pod("behind-bridge", Setup { way, ..USUAL });
}

#[test]
fn a_client_behind_a_pod_is_answered_by_the_default_route() {
    let way = Way::Default;
    behind_a_pod("behind-default", Setup { way, ..USUAL });
}

#[test]
fn a_client_behind_a_pod_is_answered_by_the_default_route_and_xdp() {
    let (way, xdp) = (Way::Default, Some(Xdp::Native));
    behind_a_pod("behind-default-native", Setup { way, xdp, ..USUAL });
}

/// The link-layer address of the first node's device.
const NODE_LINK: [u8; 6] = [2, 0, 0, 0, 9, 1];
const FORGER_LINK: [u8; 6] = [2, 0, 0, 0, 9, 8];
/// The source port of forged requests.
const FORGED_PORT: u16 = 20_000;

/// The ports of a Service, with consecutive NodePorts from this one on.
fn ports(first_node_port: u16) -> [ServicePort; 3] {
    [(HTTP, 0), (UDP, 1), (ECHO, 2)].map(|(port, offset)| ServicePort {
        node_port: Some(first_node_port + offset),
        ..port
    })
}

/// Services with a Pod on the first and on the second node, and a forger on the link to the first.
struct Forgery {
    xdp: Xdp,
    services: [(Published, [ServicePort; 3], &'static str); 2],
    wire: Wire,
    _agents: Agents,
    cluster: Cluster,
}

impl Forgery {
    fn new(title: &str, xdp: Xdp) -> Self {
        let cluster = Cluster::new(title, &[0, 1]).unwrap();
        let services = [(NEAR, ports(30_180), "web-1"), (FAR, ports(30_280), "web-2")];
        for ((service, ports, _), server) in services.iter().zip(&cluster.servers) {
            cluster.publish(*service, ports, &[server.place()]).unwrap();
        }
        let host = cluster.nodes[0].host();
        let lines = ["link set eth0 address 02:00:00:00:09:01"];
        host.namespace().ip(&lines).unwrap();
        Self {
            xdp,
            services,
            wire: Wire::open(cluster.lab.fabric(), host.far_device()).unwrap(),
            _agents: cluster.start_agents(SocketLb::Off, Some(xdp), &[]).unwrap(),
            cluster,
        }
    }

    /// The addresses of a family at which a Service port is reached from outside.
    fn targets(&self, service: Published, port: ServicePort, family: usize) -> [SocketAddr; 2] {
        let node = self.cluster.nodes[0].host().addresses().both()[family];
        [
            (node, port.node_port.unwrap()).into(),
            (service.addresses()[family], port.port).into(),
        ]
    }

    /// Requests from this address that would open connections if they were genuine.
    fn requests(&self, source: IpAddr) -> Vec<Build> {
        let client = SocketAddr::new(source, FORGED_PORT);
        let mut requests = Vec::new();
        for (service, [http, datagrams, _], _) in self.services {
            let family = usize::from(source.is_ipv6());
            requests.extend(self.targets(service, http, family).map(|to| syn(client, to)));
            requests.extend(self.targets(service, datagrams, family).map(|to| udp(client, to)));
        }
        requests
    }

    /// Sends requests with a forged source address. Returns how many.
    fn forge(&self, source: IpAddr) -> u64 {
        let link = Link {
            destination: NODE_LINK,
            source: FORGER_LINK,
        };
        let requests = self.requests(source);
        for request in &requests {
            let frame = request.clone().payload(b"forged").link(link).bytes();
            self.wire.send_frame(&frame).unwrap();
        }
        requests.len() as u64
    }

    /// The connections in the maps that forged requests have opened.
    fn opened(&self) -> Vec<Value> {
        let listed = self.cluster.nodes[0].agent_command("connections", &["-o", "json"]);
        let listed: Vec<Value> = serde_json::from_str(&listed.unwrap()).unwrap();
        let port = format!(":{FORGED_PORT}");
        let is_forged = |row: &Value| row["client"].as_str().unwrap().ends_with(&port);
        listed.into_iter().filter(is_forged).collect()
    }

    /// Genuine clients are answered: clients outside, the Pod whose address was forged, and a Pod
    /// of another node, whose address is legitimate in packets from outside.
    #[track_caller]
    fn genuine_clients_are_answered(&self) {
        let cluster = &self.cluster;
        for from in [&cluster.outside, &cluster.client, &cluster.servers[1].pod] {
            for (service, [http, datagrams, _], pod) in self.services {
                for family in [0, 1] {
                    for to in self.targets(service, http, family) {
                        ask_http(from, to, pod);
                    }
                    for to in self.targets(service, datagrams, family) {
                        ask_udp(from, to, pod);
                    }
                }
            }
        }
    }

    /// Opens connections from the Pod whose address is forged, and from the client outside.
    fn talks(&self) -> Vec<Talk> {
        let mut talks = Vec::new();
        for (service, [_, _, echo], _) in self.services {
            for to in [0, 1].map(|family| self.targets(service, echo, family)).concat() {
                for from in [&self.cluster.client, &self.cluster.outside] {
                    talks.push(from.connect(to.ip(), to.port()).unwrap().0);
                }
            }
        }
        talks
    }

    fn check(&self) {
        let [node, ..] = &self.cluster.nodes;
        let pod = self.cluster.client.addresses().both();
        let backend = self.cluster.servers[0].pod.addresses().both();
        let forged = [pod, backend, node.host().addresses().both()].concat();
        self.genuine_clients_are_answered();
        let mut talks = self.talks();
        assert_eq!(node.reason_count("forged_source").unwrap(), 0);

        let capture = Capture::start(node.host().namespace()).unwrap();
        let sent: u64 = forged.iter().map(|&source| self.forge(source)).sum();
        wait_for("the forged requests", PATIENCE, || {
            (node.reason_count("forged_source").ok()? >= sent).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}; opened: {:#?}", self.opened()));
        assert_eq!(self.opened(), [] as [Value; 0], "{:?}", self.xdp);
        let report = capture.stop().unwrap();
        let has_port = |address: SocketAddr| address.port() == FORGED_PORT;
        let mut seen = report.seen.keys();
        let passed = match self.xdp {
            // No packet is forwarded to a Pod or to another node, and no answer is sent.
            Xdp::Off => seen.find(|seen| {
                has_port(seen.flow.destination)
                    || (has_port(seen.flow.source) && (seen.outgoing || seen.device != "eth0"))
            }),
            // XDP drops them before the capture sees them.
            _ => seen.find(|seen| has_port(seen.flow.source) || has_port(seen.flow.destination)),
        };
        assert_eq!(passed, None, "{:?}: {report}", self.xdp);

        for talk in &mut talks {
            talk.server().unwrap();
        }
        self.genuine_clients_are_answered();
        assert_eq!(node.reason_count("forged_source").unwrap(), sent);
    }
}

fn forged(title: &str, xdp: Xdp) {
    if require_privileges() {
        Forgery::new(title, xdp).check();
    }
}

#[test]
fn forged_sources_are_dropped_through_tc() {
    forged("forged-tc", Xdp::Off);
}

#[test]
fn forged_sources_are_dropped_through_generic_xdp() {
    forged("forged-generic", Xdp::Generic);
}

#[test]
fn forged_sources_are_dropped_through_native_xdp() {
    forged("forged-native", Xdp::Native);
}
