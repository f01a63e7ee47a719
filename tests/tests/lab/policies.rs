//! Who reaches which Pods under which traffic policy, and what is refused, dropped or left alone: from outside, from
//! Pods and from processes of the nodes, at every node and through every hook.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::{IpAddr, SocketAddr};
use std::thread;

use lb_tests::lab::cluster::{HTTP, UDP, UNKNOWN_PORT};
use lb_tests::lab::{
    Agents, Cluster, EndpointSliceManifest, Machine, Outcome, ServiceManifest, ServicePort, SocketLb, Xdp,
    require_privileges,
};

/// A Service of the table; its Pods are on the first and the second node.
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

    /// Where it is found; `node` is asked for NodePorts.
    fn addresses(&self, way: Way, node: &Machine) -> [IpAddr; 2] {
        match way {
            Way::ClusterIp => self.cluster_ips(),
            Way::LoadBalancer => self.load_balancers(),
            Way::ExternalIp => self.external_ips(),
            Way::NodePort => node.addresses().both(),
        }
    }

    /// What becomes of requests that come to a node. `socket`: from a socket that is translated there.
    fn outcome(&self, way: Way, from_inside: bool, node: usize, socket: bool) -> Outcome {
        if !self.has_pods {
            return Outcome::Refused;
        }
        let policy = match way {
            Way::ClusterIp => self.internal,
            _ if from_inside => "Cluster",
            _ => self.external,
        };
        match (policy, node) {
            ("Local", EMPTY_NODE) if socket => Outcome::NoWay,
            ("Local", EMPTY_NODE) => Outcome::Lost,
            ("Local", _) => Outcome::pods(["web-1"]),
            _ => Outcome::pods(["web-1", "web-2"]),
        }
    }
}

/// All Services of the table at work on all nodes.
struct Fixture {
    _agents: Agents,
    /// Pods that only ask: of the first node, and of that without a Pod of the Services.
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

    /// Sends what outside clients address to these Services to a node.
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

    /// Asks every Service in these ways, at or from this node. `socket`: the client's sockets are translated.
    fn ask_all(&self, from: &Machine, ways: &[Way], node: usize, from_inside: bool, socket: bool) {
        for subject in &SUBJECTS {
            let [http, udp] = subject.ports();
            for &way in ways {
                let expected = subject.outcome(way, from_inside, node, socket);
                for address in subject.addresses(way, self.host(node)) {
                    let what = format!("{way:?} of {subject:?} at node {node}");
                    let of = |port: ServicePort| match way {
                        Way::NodePort => SocketAddr::new(address, port.node_port.unwrap()),
                        _ => SocketAddr::new(address, port.port),
                    };
                    // Together: what is lost takes its time.
                    thread::scope(|scope| {
                        scope.spawn(|| from.expect_tcp(of(http), &expected).expect(&what));
                        from.expect_udp(of(udp), &expected).expect(&what);
                    });
                }
            }
        }
    }

    /// Packets dropped for want of a Pod on their node.
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
            self.ask_all(&self.cluster.outside, &ways, node, false, false);
            // By both protocols and families: three ways to one Service, one to the other.
            let lost = self.dropped(node) - before;
            let expected = if node == EMPTY_NODE { 2 * 2 * 4 } else { 0 };
            assert!(lost >= expected && (lost > 0) == (expected > 0), "{lost}");
        }
    }

    fn ask_from_inside(&self, from: impl Fn(usize) -> Machine, socket: bool) {
        for node in [0, EMPTY_NODE] {
            let ways = [Way::ClusterIp, Way::LoadBalancer, Way::ExternalIp, Way::NodePort];
            let before = self.dropped(node);
            self.ask_all(&from(node), &ways, node, true, socket);
            let lost = self.dropped(node) - before;
            assert_eq!(lost > 0, node == EMPTY_NODE, "{lost}");
        }
        // Another node's NodePort is that node's business, and there the client is one from outside.
        self.ask_all(&from(0), &[Way::NodePort], EMPTY_NODE, false, false);
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
fn through_tc() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("policies-tc", SocketLb::Host, None);
    fixture.ask_from_outside();
    fixture.ask_from_inside(|node| fixture.client(node), false);
    fixture.ask_unknown_ports(&fixture.cluster.outside);
    fixture.ask_unknown_ports(&fixture.clients[0]);
    fixture.ask_unknown_ports(fixture.host(0));
}

#[test]
fn through_generic_xdp_and_from_processes_of_the_nodes() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("policies-generic", SocketLb::Host, Some(Xdp::Generic));
    fixture.ask_from_outside();
    fixture.ask_unknown_ports(&fixture.cluster.outside);
    fixture.ask_from_inside(|node| fixture.host(node).clone(), true);
}

#[test]
fn through_native_xdp_and_the_sockets() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("policies-native", SocketLb::All, Some(Xdp::Native));
    fixture.ask_from_outside();
    fixture.ask_unknown_ports(&fixture.cluster.outside);
    fixture.ask_from_inside(|node| fixture.client(node), true);
    fixture.ask_unknown_ports(&fixture.clients[0]);
}
