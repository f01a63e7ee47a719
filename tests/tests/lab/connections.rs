//! What happens to connections and flows of outside clients when Pods and Services change. One Pod
//! is on the node that the clients address, the other on another node.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_agent::maps::{BackendState, FrontendKey, Protocol};
use lb_tests::lab::cluster::{
    ECHO, HTTP, PORTS, SERVICE, SERVICE_FILE, SLICES_FILE, Server, UDP, load_balancer_addresses, service,
    vips,
};
use lb_tests::lab::{
    Agents, Cluster, EndpointManifest, Machine, ServiceManifest, ServicePort, SocketLb, Talk, Xdp,
    require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// Timeout of datagrams that are not answered.
const TIMEOUT: Duration = Duration::from_millis(20);
/// The first client port of UDP flows, outside the ephemeral port range.
const FLOWS: u16 = 20_000;
const FLOW_COUNT: u32 = 16;
/// The first client port of connections that reuse their ports.
const REUSED_PORTS: u16 = 19_000;
/// The first client port of flows that begin later.
const LATER_FLOWS: u16 = 21_000;

/// The Pod that answers each address and port of the client.
type Flows = BTreeMap<SocketAddr, String>;

/// A Pod on the first node and one on the second. The load balancer sends all traffic to the first
/// node.
struct Fixture {
    /// The first client port that no flow has used.
    later_flows: Cell<u16>,
    _agents: Agents,
    cluster: Cluster,
}

impl Fixture {
    fn new(title: &str, xdp: Option<Xdp>, arguments: &[&str]) -> Self {
        let cluster = Cluster::new(title, &[0, 1]).unwrap();
        cluster.lab.apply(SERVICE_FILE, manifest()).unwrap();
        cluster.route_load_balancer(&[0]).unwrap();
        Self {
            later_flows: Cell::new(LATER_FLOWS),
            _agents: cluster.start_agents(SocketLb::Off, xdp, arguments).unwrap(),
            cluster,
        }
    }

    fn servers(&self) -> [&Server; 2] {
        let [near, far] = &self.cluster.servers[..] else {
            panic!("two servers");
        };
        [near, far]
    }

    fn outside(&self) -> &Machine {
        &self.cluster.outside
    }

    fn wait_for_active(&self, servers: &[&Server]) {
        self.cluster.wait_for_active(servers).unwrap();
    }

    /// Opens a connection to each of the Pods, in their order.
    fn connect(&self, to: IpAddr, port: u16) -> Vec<Talk> {
        let connect = |server: &&Server| self.outside().connect_to(&server.pod, to, port).unwrap();
        self.servers().iter().map(connect).collect()
    }

    /// Opens a connection to each Pod with each IP version.
    fn connect_to_load_balancer(&self) -> Vec<Talk> {
        let vips = load_balancer_addresses();
        vips.into_iter()
            .flat_map(|vip| self.connect(vip, ECHO.port))
            .collect()
    }

    /// Returns the Pods that answer the UDP flows from `first_port` on.
    fn flows(&self, vip: IpAddr, first_port: u16) -> Flows {
        let udp = self.outside().udp(vip, UDP.port).sockets(FLOW_COUNT);
        let report = udp.source_port(first_port).run().unwrap();
        assert_eq!(report.answered(), u64::from(FLOW_COUNT), "{vip}: {report:?}");
        report.servers
    }

    fn all_flows(&self) -> [Flows; 2] {
        load_balancer_addresses().map(|vip| self.flows(vip, FLOWS))
    }

    fn assert_new_connections_go_to(&self, server: &Server) {
        let only: BTreeSet<&str> = [server.pod.name()].into();
        for vip in load_balancer_addresses() {
            let report = self.outside().http(vip, HTTP.port).count(20).run().unwrap();
            assert_eq!(report.answered(), 20, "{vip}: {report:?}");
            let pods: BTreeSet<&str> = report.answers.keys().map(String::as_str).collect();
            assert_eq!(pods, only, "{vip}");
            let flows = self.flows(vip, self.later_flows.get());
            let pods: BTreeSet<&str> = flows.values().map(String::as_str).collect();
            assert_eq!(pods, only, "{vip}");
        }
        let used = u16::try_from(FLOW_COUNT).unwrap();
        self.later_flows.set(self.later_flows.get() + used);
    }

    /// A Pod becomes unready, then terminates. Its connections stay, and its UDP flows stay while
    /// the Pod is serving. New ones go to the other Pod.
    fn a_pod_drains(&self) {
        let [near, far] = self.servers();
        for (draining, other) in [(near, far), (far, near)] {
            let mut talks = self.connect_to_load_balancer();
            let flows = self.all_flows();
            assert!(pods(&flows).contains(draining.pod.name()), "{flows:?}");
            let states = [(draining, BackendState::Draining), (other, BackendState::Active)];
            for terminating in [false, true] {
                self.apply_slices(other, draining, |endpoint| {
                    endpoint.serving(true).terminating(terminating)
                });
                self.cluster.wait_for_states(&states).unwrap();
                assert_all_live(&mut talks);
                assert_eq!(self.all_flows(), flows, "terminating: {terminating}");
                self.assert_new_connections_go_to(other);
            }
            self.apply_slices(other, draining, |endpoint| {
                endpoint.serving(false).terminating(true)
            });
            wait_for("flows to move to the other Pod", PATIENCE, || {
                (pods(&self.all_flows()) == [other.pod.name().to_owned()].into()).then_some(())
            })
            .unwrap();
            assert_all_live(&mut talks);
            self.assert_new_connections_go_to(other);
            self.cluster.lab.remove(SLICES_FILE).unwrap();
            self.wait_for_active(&[near, far]);
            assert_all_live(&mut talks);
        }
    }

    /// Applies two endpoints: `ready`, and `other`, which is not ready and has these conditions.
    fn apply_slices(
        &self,
        ready: &Server,
        other: &Server,
        conditions: impl Fn(EndpointManifest) -> EndpointManifest,
    ) {
        let endpoints = [ready.endpoint(), conditions(other.endpoint().ready(false))];
        self.cluster.apply_slices(endpoints).unwrap();
    }

    /// A Pod is removed: the next packet of its TCP connections is answered with RST, and its UDP
    /// flows move to the other Pod. Connections to the other Pod stay.
    fn a_pod_is_removed(&self) {
        let servers = self.servers();
        for (index, gone) in servers.into_iter().enumerate() {
            let other = servers[1 - index];
            let mut talks = self.connect_to_load_balancer();
            let before = self.all_flows();
            self.cluster.remove_manifest(gone).unwrap();
            self.wait_for_active(&[other]);
            for pair in talks.chunks_mut(2) {
                pair[index].expect_reset().unwrap();
                assert_eq!(pair[1 - index].server().unwrap(), other.pod.name());
            }
            self.assert_new_connections_go_to(other);
            let after = self.all_flows();
            assert_ne!(before, after);
            assert!(
                after
                    .iter()
                    .flat_map(BTreeMap::values)
                    .all(|pod| pod == other.pod.name())
            );
            // A Pod that comes back is a new endpoint: flows do not move back to it.
            self.cluster.set_ready(gone, true).unwrap();
            self.wait_for_active(&servers);
            assert_eq!(self.all_flows(), after);
        }
    }

    /// The last Pod is removed, and a first one is added again. No refusal is remembered.
    fn all_pods_are_removed(&self) {
        let servers = self.servers();
        let mut talks = self.connect_to_load_balancer();
        let refused = |vip, port| {
            let udp = self.outside().udp(vip, UDP.port).connected();
            let report = udp.sockets(FLOW_COUNT).source_port(port).run().unwrap();
            let count = u64::from(FLOW_COUNT);
            assert_eq!(
                report.errors,
                [("receive: ConnectionRefused".to_owned(), count)].into()
            );
        };
        self.all_flows();
        for server in servers {
            self.cluster.remove_manifest(server).unwrap();
        }
        self.wait_for_active(&[]);
        assert_all_reset(&mut talks);
        for vip in load_balancer_addresses() {
            refused(vip, FLOWS);
            refused(vip, LATER_FLOWS);
        }
        for server in servers {
            self.cluster.set_ready(server, true).unwrap();
        }
        self.wait_for_active(&servers);
        for vip in load_balancer_addresses() {
            self.flows(vip, FLOWS);
            self.flows(vip, LATER_FLOWS);
        }
    }

    /// Ports, policies, addresses and the type change; the endpoints do not.
    fn the_service_changes(&self) {
        let mut talks = self.connect_to_load_balancer();
        for node in self.cluster.nodes[0].host().addresses().both() {
            talks.extend(self.connect(node, ECHO.node_port.unwrap()));
        }
        let flows = self.all_flows();
        let moved_echo = PORTS.map(|port| match port {
            ECHO => ServicePort { port: 8, ..ECHO },
            port => port,
        });
        let balancers = load_balancer_addresses();
        let moved = ServiceManifest::new(SERVICE, &vips(), &moved_echo).ingress(&balancers, None);
        self.change(moved, |has| has(8) && !has(ECHO.port), &mut talks);
        for vip in balancers {
            let report = self.outside().http(vip, ECHO.port).run().unwrap();
            assert!(
                report.errors.contains_key("connect: ConnectionRefused"),
                "{report:?}"
            );
        }
        assert_eq!(self.all_flows(), flows);
        self.change(manifest(), |has| has(ECHO.port) && !has(8), &mut talks);

        let local = manifest().external_traffic_policy("Local");
        self.cluster.lab.apply(SERVICE_FILE, local).unwrap();
        // Existing flows may belong to another Pod than the one that new connections get.
        wait_for("the policy", PATIENCE, || {
            let vip = load_balancer_addresses()[1];
            let report = self.outside().http(vip, HTTP.port).count(30).run().unwrap();
            (report.answers.len() == 1).then_some(())
        })
        .unwrap();
        assert_all_live(&mut talks);
        assert_eq!(self.all_flows(), flows);

        // The Service is not a load balancer any more: its addresses take no new connections.
        self.change(service(), |has| !has(HTTP.port), &mut talks);
        assert_eq!(self.all_flows(), flows);
        self.change(manifest(), |has| has(HTTP.port), &mut talks);
    }

    /// Applies another manifest of the Service and waits until `arrived` returns true. `arrived`
    /// gets a function that checks whether the load balancer addresses have a port. Asserts that
    /// all connections are still open.
    fn change(
        &self,
        manifest: ServiceManifest,
        arrived: impl Fn(&dyn Fn(u16) -> bool) -> bool,
        talks: &mut [Talk],
    ) {
        self.cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
        wait_for("the change", PATIENCE, || {
            let image = self.cluster.nodes[0].map_image().ok()?;
            load_balancer_addresses()
                .iter()
                .all(|vip| {
                    arrived(&|port| {
                        let key = FrontendKey::Port(*vip, port, Protocol::Tcp);
                        image.frontends.contains_key(&key)
                    })
                })
                .then_some(())
        })
        .unwrap();
        assert_all_live(talks);
    }

    /// A client address and port whose connection has ended can be reused: the packets belong to a
    /// new connection.
    fn ports_are_reused(&self) {
        let [draining, other] = self.servers();
        let used = FLOW_COUNT;
        let connect = |vip| {
            let http = self.outside().http(vip, HTTP.port).count(used);
            let report = http.source_port(REUSED_PORTS).run().unwrap();
            assert_eq!(report.answered(), u64::from(used), "{vip}: {report:?}");
            report.answers
        };
        for vip in load_balancer_addresses() {
            assert!(connect(vip).contains_key(draining.pod.name()), "{vip}");
        }
        self.apply_slices(other, draining, |endpoint| endpoint.serving(true));
        let states = [(draining, BackendState::Draining), (other, BackendState::Active)];
        self.cluster.wait_for_states(&states).unwrap();
        for vip in load_balancer_addresses() {
            let only = [(other.pod.name().to_owned(), u64::from(used))];
            assert_eq!(connect(vip), only.into(), "{vip}");
        }
        self.cluster.lab.remove(SLICES_FILE).unwrap();
        self.wait_for_active(&self.servers());
    }

    /// The Service is removed: its connections are reset, and its datagrams reach no Pod.
    fn the_service_is_removed(&self) {
        let mut talks = self.connect_to_load_balancer();
        self.all_flows();
        self.cluster.lab.remove(SERVICE_FILE).unwrap();
        self.wait_for_active(&[]);
        assert_all_reset(&mut talks);
        let received = || {
            self.servers()
                .map(|server| server.pod.received_datagrams().unwrap())
        };
        let before = received();
        for vip in load_balancer_addresses() {
            let udp = self
                .outside()
                .udp(vip, UDP.port)
                .sockets(FLOW_COUNT)
                .source_port(FLOWS);
            let report = udp.timeout(TIMEOUT).run().unwrap();
            assert_eq!(report.answered(), 0, "{vip}: {report:?}");
        }
        assert_eq!(received(), before);
        self.cluster.lab.apply(SERVICE_FILE, manifest()).unwrap();
        self.wait_for_active(&self.servers());
        self.all_flows();
        assert_all_live(&mut self.connect_to_load_balancer());
    }
}

/// The Pods that flows reach.
fn pods(flows: &[Flows]) -> BTreeSet<String> {
    flows.iter().flat_map(BTreeMap::values).cloned().collect()
}

fn manifest() -> ServiceManifest {
    service().ingress(&load_balancer_addresses(), None)
}

#[track_caller]
fn assert_all_live(talks: &mut [Talk]) {
    for talk in talks {
        talk.server().unwrap();
    }
}

#[track_caller]
fn assert_all_reset(talks: &mut [Talk]) {
    for talk in talks {
        talk.expect_reset().unwrap();
    }
}

fn changes(title: &str, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new(title, xdp, &[]);
    fixture.a_pod_drains();
    fixture.a_pod_is_removed();
    fixture.all_pods_are_removed();
    fixture.the_service_changes();
    fixture.ports_are_reused();
    fixture.the_service_is_removed();
}

#[test]
fn follow_pod_and_service_changes_through_tc() {
    changes("connections-tc", None);
}

#[test]
fn follow_pod_and_service_changes_through_generic_xdp() {
    changes("connections-generic", Some(Xdp::Generic));
}

#[test]
fn follow_pod_and_service_changes_through_native_xdp() {
    changes("connections-native", Some(Xdp::Native));
}

/// A removed Pod keeps its TCP connections while it runs. UDP flows move to another Pod.
#[test]
fn connections_to_removed_pods_continue_with_forward_option() {
    if !require_privileges() {
        return;
    }
    for xdp in [None, Some(Xdp::Generic), Some(Xdp::Native)] {
        let fixture = Fixture::new("connections-kept", xdp, &["--on-removed-backend=forward"]);
        let mut talks = fixture.connect_to_load_balancer();
        let client = &fixture.cluster.client;
        for (vip, server) in vips()
            .into_iter()
            .flat_map(|vip| fixture.servers().map(|server| (vip, server)))
        {
            talks.push(client.connect_to(&server.pod, vip, ECHO.port).unwrap());
        }
        fixture.all_flows();
        let [near, far] = fixture.servers();
        for (gone, other) in [(near, far), (far, near)] {
            fixture.cluster.remove_manifest(gone).unwrap();
            fixture.wait_for_active(&[other]);
            assert_all_live(&mut talks);
            fixture.assert_new_connections_go_to(other);
            let flows = fixture.all_flows();
            assert_eq!(pods(&flows), [other.pod.name().to_owned()].into());
            fixture.cluster.set_ready(gone, true).unwrap();
            fixture.wait_for_active(&[near, far]);
        }
    }
}
