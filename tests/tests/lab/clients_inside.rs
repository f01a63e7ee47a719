//! What happens to connections and flows from inside when Pods and Services change: those of a Pod
//! through TC and through its sockets, and those of processes of the node.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_agent::maps::{BackendState, FrontendKey, Protocol};
use lb_tests::lab::cluster::{
    ECHO, HTTP, PORTS, SERVICE, SERVICE_FILE, SLICES_FILE, Server, UDP, service, vips,
};
use lb_tests::lab::report::UdpReport;
use lb_tests::lab::{
    Agent, Client, Cluster, EndpointManifest, Machine, Outcome, ServiceManifest, ServicePort, SocketLb, Talk,
    require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// Timeout of datagrams that are not answered.
const TIMEOUT: Duration = Duration::from_millis(50);
/// The first client port of connections that reuse their ports.
const SOURCE_PORT: u16 = 20_000;
/// The first client port of new flows.
const LATER_PORTS: u16 = 21_000;
/// How many client ports are used at a time.
const SOURCE_PORTS: u32 = 10;

/// A Pod on the first node, one on the second, and a client on the first.
struct Fixture {
    from: Machine,
    /// Whether the sockets of the client translate its datagrams.
    is_socket: bool,
    /// The first client port that no flow has used.
    later_ports: Cell<u16>,
    _agent: Agent,
    cluster: Cluster,
}

/// Runs a check for each kind of client.
fn for_each_client(title: &str, check: impl Fn(&Fixture)) {
    if !require_privileges() {
        return;
    }
    for (socket_lb, is_pod) in [
        (SocketLb::Off, true),
        (SocketLb::All, true),
        (SocketLb::Host, false),
    ] {
        let cluster = Cluster::new(title, &[0, 1]).unwrap();
        check(&Fixture {
            from: match is_pod {
                true => cluster.client.clone(),
                false => cluster.nodes[0].host().clone(),
            },
            is_socket: !is_pod,
            later_ports: Cell::new(LATER_PORTS),
            _agent: cluster.start_agent(socket_lb, &[]).unwrap(),
            cluster,
        });
    }
}

impl Fixture {
    fn servers(&self) -> [&Server; 2] {
        let [first, second] = &self.cluster.servers[..] else {
            panic!("two servers");
        };
        [first, second]
    }

    /// Applies slices in which `other` is ready and `draining` is not.
    fn drain(&self, other: &Server, draining: EndpointManifest) {
        self.cluster.apply_slices([other.endpoint(), draining]).unwrap();
    }

    fn wait_until_drained(&self, draining: &Server, other: &Server) {
        let states = [(draining, BackendState::Draining), (other, BackendState::Active)];
        self.cluster.wait_for_states(&states).unwrap();
    }

    /// Opens connections and connected UDP sockets to a Pod, one for each address of the Service.
    fn talks(&self, server: &Server) -> (Vec<Talk>, Vec<Talk>) {
        let tcp = |vip| self.from.connect_to(&server.pod, vip, ECHO.port).unwrap();
        let udp = |vip| self.from.connect_udp_to(&server.pod, vip, UDP.port).unwrap();
        (vips().map(tcp).into(), vips().map(udp).into())
    }

    #[track_caller]
    fn assert_new_ones_go_to(&self, server: &Server) {
        let only = Outcome::pods([server.pod.name()]);
        for vip in vips() {
            self.from.expect_tcp((vip, HTTP.port).into(), &only).unwrap();
            // An ephemeral port may belong to a flow that is still remembered.
            let port = self.later_ports.get();
            self.later_ports.set(port + u16::try_from(SOURCE_PORTS).unwrap());
            let udp = self.from.udp(vip, UDP.port).connected().sockets(SOURCE_PORTS);
            let report = udp.source_port(port).run().unwrap();
            let expected = [(server.pod.name().to_owned(), u64::from(SOURCE_PORTS))];
            assert_eq!(report.answers, expected.into(), "{vip}");
        }
    }

    /// Starts an unconnected socket that sends until it is stopped.
    fn datagrams(&self, vip: IpAddr, timeout: Duration) -> Client<UdpReport> {
        let udp = self.from.udp(vip, UDP.port).count(1_000_000).timeout(timeout);
        udp.interval(Duration::from_millis(3)).start().unwrap()
    }
}

#[track_caller]
fn assert_stay_with(talks: &mut [Talk], server: &Server) {
    for talk in talks {
        assert_eq!(talk.server().unwrap(), server.pod.name());
    }
}

fn received(server: &Server) -> u64 {
    server.pod.received_datagrams().unwrap()
}

/// Waits until a Pod has received some more datagrams.
#[track_caller]
fn wait_for_datagrams(server: &Server) {
    let before = received(server);
    wait_for("datagrams", PATIENCE, || {
        (received(server) > before + 20).then_some(())
    })
    .unwrap();
}

#[test]
fn a_draining_pod_keeps_its_connections() {
    for_each_client("inside-drains", |fixture| {
        let [first, second] = fixture.servers();
        for (draining, other) in [(first, second), (second, first)] {
            let (mut tcp, mut udp) = fixture.talks(draining);
            for terminating in [false, true] {
                fixture.drain(other, draining.draining_endpoint().terminating(terminating));
                fixture.wait_until_drained(draining, other);
                assert_stay_with(&mut tcp, draining);
                assert_stay_with(&mut udp, draining);
                fixture.assert_new_ones_go_to(other);
            }
            fixture.drain(
                other,
                draining.draining_endpoint().serving(false).terminating(true),
            );
            for talk in &mut udp {
                wait_for("datagrams elsewhere", PATIENCE, || {
                    let servers = talk.servers().unwrap();
                    servers.iter().any(|name| name == other.pod.name()).then_some(())
                })
                .unwrap();
            }
            assert_stay_with(&mut tcp, draining);
            fixture.assert_new_ones_go_to(other);
            fixture.cluster.lab.remove(SLICES_FILE).unwrap();
            fixture.cluster.wait_for_active(&[first, second]).unwrap();
        }
    });
}

#[test]
fn unconnected_sockets_keep_a_draining_pod_while_it_serves() {
    for_each_client("inside-serves", |fixture| {
        for vip in vips() {
            let [first, second] = fixture.servers();
            let before = [first, second].map(received);
            let client = fixture.datagrams(vip, PATIENCE);
            let (used, other) = wait_for("the first datagram", PATIENCE, || {
                let more = |server, before: u64| received(server) > before;
                match (more(first, before[0]), more(second, before[1])) {
                    (true, _) => Some((first, second)),
                    (_, true) => Some((second, first)),
                    _ => None,
                }
            })
            .unwrap();
            let others = received(other);
            fixture.drain(other, used.draining_endpoint());
            fixture.wait_until_drained(used, other);
            wait_for_datagrams(used);
            assert_eq!(received(other), others, "{vip}");

            fixture.drain(other, used.draining_endpoint().serving(false));
            wait_for_datagrams(other);
            let last = received(used);
            wait_for_datagrams(other);
            assert_eq!(received(used), last, "{vip}");
            let report = client.stop().unwrap();
            assert!(report.errors.is_empty(), "{vip}: {report:?}");
            assert_eq!(report.sources, [SocketAddr::new(vip, UDP.port)].into());
            fixture.cluster.lab.remove(SLICES_FILE).unwrap();
            fixture.cluster.wait_for_active(&[first, second]).unwrap();
        }
    });
}

/// The programs do not remember that a Service had no endpoints.
#[test]
fn the_next_datagram_reaches_the_first_endpoint() {
    for_each_client("inside-first", |fixture| {
        let [first, second] = fixture.servers();
        for vip in vips() {
            fixture.cluster.remove_manifest(first).unwrap();
            fixture.cluster.remove_manifest(second).unwrap();
            fixture.cluster.wait_for_active(&[]).unwrap();
            let refused = Outcome::Refused;
            fixture.from.expect_udp((vip, UDP.port).into(), &refused).unwrap();
            fixture
                .from
                .expect_tcp((vip, HTTP.port).into(), &refused)
                .unwrap();
            // Sockets get the error immediately.
            let timeout = if fixture.is_socket { PATIENCE } else { TIMEOUT };
            let client = fixture.datagrams(vip, timeout);
            let before = received(first);
            fixture.cluster.set_ready(first, true).unwrap();
            wait_for("the first datagram", PATIENCE, || {
                (received(first) > before).then_some(())
            })
            .unwrap();
            fixture.cluster.remove_manifest(first).unwrap();
            fixture.cluster.wait_for_active(&[]).unwrap();
            fixture.from.expect_udp((vip, UDP.port).into(), &refused).unwrap();
            fixture.cluster.set_ready(second, true).unwrap();
            wait_for_datagrams(second);
            let report = client.stop().unwrap();
            let is_told = |error: &String| {
                let reason = if fixture.is_socket {
                    "ConnectionRefused"
                } else {
                    "TimedOut"
                };
                error.ends_with(reason)
            };
            assert!(report.errors.keys().all(is_told), "{vip}: {report:?}");
            fixture.cluster.set_ready(first, true).unwrap();
            fixture.cluster.wait_for_active(&[first, second]).unwrap();
        }
    });
}

/// Ports, policies and the type of the Service change; its endpoints do not.
#[test]
fn connections_survive_changes_of_their_service() {
    for_each_client("inside-service", |fixture| {
        let cluster = &fixture.cluster;
        let [near, far] = fixture.servers();
        let mut all: Vec<(Vec<Talk>, &Server)> = Vec::new();
        for server in [near, far] {
            let (tcp, udp) = fixture.talks(server);
            let node_port = ECHO.node_port.unwrap();
            let node = cluster.nodes[0].host().addresses().both();
            let at_node = node.map(|node| fixture.from.connect_to(&server.pod, node, node_port).unwrap());
            all.extend([(tcp, server), (udp, server), (at_node.into(), server)]);
        }
        let mut assert_all_stay = || {
            for (talks, server) in &mut all {
                assert_stay_with(talks, server);
            }
        };
        let wait_for_ports = |has: &[u16], lacks: &[u16]| {
            wait_for(&format!("ports {has:?} and not {lacks:?}"), PATIENCE, || {
                let image = cluster.nodes[0].map_image().ok()?;
                let is_there = |address, port: u16| {
                    let key = FrontendKey::Port(address, port, Protocol::Tcp);
                    image.frontends.contains_key(&key)
                };
                let node = cluster.nodes[0].host().addresses().both();
                let addresses = || vips().into_iter().chain(node);
                let has = has
                    .iter()
                    .all(|port| addresses().any(|address| is_there(address, *port)));
                let lacks = lacks
                    .iter()
                    .all(|port| !addresses().any(|address| is_there(address, *port)));
                (has && lacks).then_some(())
            })
            .unwrap();
        };

        // The port.
        let moved = PORTS.map(|port| match port {
            ECHO => ServicePort { port: 8, ..ECHO },
            port => port,
        });
        let moved = ServiceManifest::new(SERVICE, &vips(), &moved);
        cluster.lab.apply(SERVICE_FILE, moved).unwrap();
        wait_for_ports(&[8], &[ECHO.port]);
        assert_all_stay();
        for vip in vips() {
            let to = SocketAddr::new(vip, ECHO.port);
            fixture.from.expect_tcp(to, &Outcome::Refused).unwrap();
        }

        // The policy: new connections do not reach the other node's Pod any more.
        let local = service().internal_traffic_policy("Local");
        cluster.lab.apply(SERVICE_FILE, local).unwrap();
        wait_for_ports(&[ECHO.port], &[8]);
        fixture.assert_new_ones_go_to(near);
        assert_all_stay();

        // The type: there are no NodePorts any more.
        let ports = PORTS.map(ServicePort::without_node_port);
        let no_node_ports = ServiceManifest::new(SERVICE, &vips(), &ports);
        cluster.lab.apply(SERVICE_FILE, no_node_ports).unwrap();
        wait_for_ports(&[ECHO.port], &[ECHO.node_port.unwrap()]);
        assert_all_stay();
    });
}

/// A client reuses ports when it has used all of them.
#[test]
fn a_reused_source_port_begins_a_new_connection() {
    for_each_client("inside-again", |fixture| {
        let [draining, other] = fixture.servers();
        let connect = |vip| {
            let http = fixture.from.http(vip, HTTP.port).count(SOURCE_PORTS);
            let report = http.source_port(SOURCE_PORT).run().unwrap();
            assert_eq!(report.answered(), u64::from(SOURCE_PORTS), "{vip}: {report:?}");
            report.answers
        };
        for vip in vips() {
            wait_for("connections to the Pod", PATIENCE, || {
                connect(vip).contains_key(draining.pod.name()).then_some(())
            })
            .unwrap();
        }
        fixture.drain(other, draining.draining_endpoint());
        fixture.wait_until_drained(draining, other);
        for vip in vips() {
            let only = [(other.pod.name().to_owned(), u64::from(SOURCE_PORTS))];
            assert_eq!(connect(vip), only.into(), "{vip}");
        }
    });
}
