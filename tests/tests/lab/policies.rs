//! Which clients reach which Pods under each traffic policy, and what is refused, dropped or left
//! alone: from outside, from Pods and from processes of the nodes, on every node and through every
//! hook.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::{IpAddr, SocketAddr};
use std::thread;

use lb_tests::lab::cluster::{HTTP, UDP, UNKNOWN_PORT};
use lb_tests::lab::{
    Agents, Cluster, EndpointSliceManifest, Machine, Outcome, ServiceManifest, ServicePort, SocketLb, Xdp,
    require_privileges,
};

/// A Service under test. Its Pods are on the first and the second node.
#[derive(Clone, Copy, Debug)]
struct Subject {
    name: &'static str,
    internal: &'static str,
    external: &'static str,
    has_pods: bool,
}

const SUBJECTS: [Subject; 3] = [
    subject("external", "Cluster", "Local", true),
    subject("internal", "Local", "Cluster", true),
    subject("nobody", "Local", "Local", false),
];

const fn subject(
    name: &'static str,
    internal: &'static str,
    external: &'static str,
    has_pods: bool,
) -> Subject {
    Subject {
        name,
        internal,
        external,
        has_pods,
    }
}

/// The node without a Pod of the Services.
const EMPTY_NODE: usize = 2;

/// How a client addresses a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
    NodePort,
}

impl Subject {
    fn index(&self) -> u8 {
        let position = SUBJECTS.iter().position(|other| other.name == self.name);
        u8::try_from(position.unwrap()).unwrap()
    }

    fn cluster_ips(&self) -> [IpAddr; 2] {
        let last = 100 + self.index();
        [
            IpAddr::from([10, 96, 0, last]),
            IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(last)]),
        ]
    }

    fn load_balancers(&self) -> [IpAddr; 2] {
        let last = 100 + self.index();
        [
            IpAddr::from([198, 51, 100, last]),
            IpAddr::from([0x2001, 0xdb8, 0x1b, 0, 0, 0, 0, u16::from(last)]),
        ]
    }

    fn external_ips(&self) -> [IpAddr; 2] {
        let last = 100 + self.index();
        [
            IpAddr::from([192, 0, 2, last]),
            IpAddr::from([0x2001, 0xdb8, 0xe, 0, 0, 0, 0, u16::from(last)]),
        ]
    }

    fn ports(&self) -> [ServicePort; 2] {
        [(HTTP, 31_080), (UDP, 31_053)].map(|(port, node_port)| ServicePort {
            node_port: Some(node_port + u16::from(self.index()) * 100),
            ..port
        })
    }

    fn manifest(&self) -> ServiceManifest {
        ServiceManifest::new(self.name, &self.cluster_ips(), &self.ports())
            .ingress(&self.load_balancers(), None)
            .external_ips(&self.external_ips())
            .internal_traffic_policy(self.internal)
            .external_traffic_policy(self.external)
    }

    /// The addresses of the Service; for NodePorts, those of `node`.
    fn addresses(&self, way: Way, node: &Machine) -> [IpAddr; 2] {
        match way {
            Way::ClusterIp => self.cluster_ips(),
            Way::LoadBalancer => self.load_balancers(),
            Way::ExternalIp => self.external_ips(),
            Way::NodePort => node.addresses().both(),
        }
    }

    /// The expected outcomes of TCP and UDP requests on a node.
    fn outcomes(&self, way: Way, from_inside: bool, node: usize, at: TranslatedAt) -> [Outcome; 2] {
        if !self.has_pods {
            return [Outcome::Refused, Outcome::Refused];
        }
        let policy = match way {
            Way::ClusterIp => self.internal,
            _ if from_inside => "Cluster",
            _ => self.external,
        };
        let both = |outcome: Outcome| [outcome.clone(), outcome];
        match (policy, node, at) {
            ("Local", EMPTY_NODE, TranslatedAt::Device) => both(Outcome::Lost),
            ("Local", EMPTY_NODE, TranslatedAt::PodSocket) => [Outcome::HostUnreachable, Outcome::Lost],
            ("Local", EMPTY_NODE, TranslatedAt::NodeSocket) => [Outcome::HostUnreachable, Outcome::Refused],
            ("Local", ..) => both(Outcome::pods(["web-1"])),
            _ => both(Outcome::pods(["web-1", "web-2"])),
        }
    }
}

/// Where a client's connections are translated.
#[derive(Clone, Copy)]
enum TranslatedAt {
    Device,
    /// Only TCP connections; datagrams of Pods are translated at the device.
    PodSocket,
    NodeSocket,
}

/// All Services under test, with agents on all nodes.
struct Fixture {
    _agents: Agents,
    /// Client Pods on the first node and on the node without a Pod of the Services.
    clients: [Machine; 2],
    cluster: Cluster,
}

impl Fixture {
    fn new(title: &str, socket_lb: SocketLb, xdp: Option<Xdp>) -> Self {
        let cluster = Cluster::new(title, &[0, 1]).unwrap();
        let clients = [
            cluster.client.clone(),
            cluster.nodes[EMPTY_NODE].pod("other").unwrap(),
        ];
        for subject in &SUBJECTS {
            let file = format!("{}.yaml", subject.name);
            cluster.lab.apply(&file, subject.manifest()).unwrap();
            if subject.has_pods {
                let slices = cluster.servers.iter().fold(
                    EndpointSliceManifest::new(subject.name, subject.name, &[HTTP, UDP]),
                    |slices, server| slices.endpoint(server.endpoint()),
                );
                let file = format!("{}-slices.yaml", subject.name);
                cluster.lab.apply(&file, slices).unwrap();
            }
        }
        Self {
            _agents: cluster.start_agents(socket_lb, xdp, &[]).unwrap(),
            clients,
            cluster,
        }
    }

    fn client(&self, node: usize) -> Machine {
        self.clients[usize::from(node == EMPTY_NODE)].clone()
    }

    fn host(&self, node: usize) -> &Machine {
        self.cluster.nodes[node].host()
    }

    /// Routes requests of outside clients to these Services to one node.
    fn route_to(&self, node: usize) {
        for subject in &SUBJECTS {
            let all = [
                subject.cluster_ips(),
                subject.load_balancers(),
                subject.external_ips(),
            ];
            for address in all.into_iter().flatten() {
                let node = &self.cluster.nodes[node];
                self.cluster.lab.route(&address.to_string(), &[node]).unwrap();
            }
        }
    }

    /// Sends requests to every Service in these ways and asserts their outcomes. `node` is the node
    /// that translates them.
    fn ask_all(&self, from: &Machine, ways: &[Way], node: usize, from_inside: bool, at: TranslatedAt) {
        for subject in &SUBJECTS {
            let [http, udp] = subject.ports();
            for &way in ways {
                let [tcp_outcome, udp_outcome] = subject.outcomes(way, from_inside, node, at);
                for address in subject.addresses(way, self.host(node)) {
                    let what = format!("{way:?} of {subject:?} at node {node}");
                    let of = |port: ServicePort| match way {
                        Way::NodePort => SocketAddr::new(address, port.node_port.unwrap()),
                        _ => SocketAddr::new(address, port.port),
                    };
                    // In parallel, because lost requests take until their timeout.
                    thread::scope(|scope| {
                        scope.spawn(|| from.expect_tcp(of(http), &tcp_outcome).expect(&what));
                        from.expect_udp(of(udp), &udp_outcome).expect(&what);
                    });
                }
            }
        }
    }

    /// The number of packets dropped because their node has no Pod.
    fn dropped(&self, node: usize) -> u64 {
        self.cluster.nodes[node]
            .reason_count("no_local_endpoint")
            .unwrap()
    }

    fn ask_from_outside(&self) {
        let ways = [Way::ClusterIp, Way::LoadBalancer, Way::ExternalIp, Way::NodePort];
        for node in [0, EMPTY_NODE] {
            self.route_to(node);
            let before = self.dropped(node);
            self.ask_all(&self.cluster.outside, &ways, node, false, TranslatedAt::Device);
            // Two protocols and two families; three ways to one Service and one way to the other.
            let lost = self.dropped(node) - before;
            let expected = if node == EMPTY_NODE { 2 * 2 * 4 } else { 0 };
            assert!(lost >= expected && (lost > 0) == (expected > 0), "{lost}");
        }
    }

    fn ask_from_inside(&self, from: impl Fn(usize) -> Machine, at: TranslatedAt) {
        for node in [0, EMPTY_NODE] {
            let ways = [Way::ClusterIp, Way::LoadBalancer, Way::ExternalIp, Way::NodePort];
            let before = self.dropped(node);
            self.ask_all(&from(node), &ways, node, true, at);
            let lost = self.dropped(node) - before;
            assert_eq!(lost > 0, node == EMPTY_NODE, "{lost}");
        }
        // The NodePort of another node is served by that node, for which the client is outside.
        self.ask_all(
            &from(0),
            &[Way::NodePort],
            EMPTY_NODE,
            false,
            TranslatedAt::Device,
        );
    }

    fn ask_unknown_ports(&self, from: &Machine) {
        let [subject, ..] = SUBJECTS;
        let all = [
            subject.cluster_ips(),
            subject.load_balancers(),
            subject.external_ips(),
        ];
        for address in all.into_iter().flatten() {
            let to = SocketAddr::new(address, UNKNOWN_PORT);
            from.expect_tcp(to, &Outcome::Refused).unwrap();
            from.expect_udp(to, &Outcome::Refused).unwrap();
        }
    }
}

#[test]
fn hold_through_tc() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("policies-tc", SocketLb::Host, None);
    fixture.ask_from_outside();
    fixture.ask_from_inside(|node| fixture.client(node), TranslatedAt::Device);
    fixture.ask_unknown_ports(&fixture.cluster.outside);
    fixture.ask_unknown_ports(&fixture.clients[0]);
    fixture.ask_unknown_ports(fixture.host(0));
}

#[test]
fn hold_through_generic_xdp_and_for_node_processes() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("policies-generic", SocketLb::Host, Some(Xdp::Generic));
    fixture.ask_from_outside();
    fixture.ask_unknown_ports(&fixture.cluster.outside);
    fixture.ask_from_inside(|node| fixture.host(node).clone(), TranslatedAt::NodeSocket);
}

#[test]
fn hold_through_native_xdp_and_sockets() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("policies-native", SocketLb::All, Some(Xdp::Native));
    fixture.ask_from_outside();
    fixture.ask_unknown_ports(&fixture.cluster.outside);
    fixture.ask_from_inside(|node| fixture.client(node), TranslatedAt::PodSocket);
    fixture.ask_unknown_ports(&fixture.clients[0]);
}
