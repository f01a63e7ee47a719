//! Backends that are absent from the objects for a while, as when a port is renamed, an endpoint
//! moves between slices or a Service is recreated. Open connections survive, whether sockets, TC or
//! XDP translate them.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_agent::maps::{Backend, BackendState};
use lb_tests::lab::cluster::{ECHO, HTTP, PORTS, SERVICE, SERVICE_FILE, SLICES_FILE, Server, UDP, vips};
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{
    Agents, Cluster, EndpointSliceManifest, Machine, ServiceManifest, ServicePort, SocketLb, Talk, Xdp,
    require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// File of a second slice.
const SECOND_FILE: &str = "slices-2.yaml";

/// Longer than the slowest of these tests.
const LONG: &str = "--removed-backend-grace=600";

/// The Service's ports with other names.
const RENAMED: [ServicePort; 4] = {
    let [http, udp, echo, stream] = PORTS;
    [
        ServicePort {
            name: "http-2",
            ..http
        },
        ServicePort { name: "udp-2", ..udp },
        ServicePort {
            name: "echo-2",
            ..echo
        },
        ServicePort {
            name: "stream-2",
            ..stream
        },
    ]
};

/// A connection and the Pod that serves it.
struct Open {
    talk: Talk,
    pod: String,
    end: End,
}

/// What happens to a connection whose Pod is removed.
#[derive(Clone, Copy)]
enum End {
    /// The agent closes the socket immediately: the connection was translated at `connect`.
    Aborted,
    /// The next packet of the client is answered with RST.
    Reset,
    /// Another Pod answers.
    GoesOn,
}

struct Fixture {
    talks: Vec<Open>,
    socket_lb: SocketLb,
    _agents: Agents,
    cluster: Cluster,
}

impl Fixture {
    /// Starts a Pod on the first node and one on the second, with slices as their endpoints, and
    /// connects to both.
    fn new(title: &str, socket_lb: SocketLb, xdp: Option<Xdp>, grace: &str) -> Self {
        let cluster = Cluster::new(title, &[0, 1]).unwrap();
        cluster
            .apply_slices(cluster.servers.iter().map(Server::endpoint))
            .unwrap();
        let agents = cluster.start_agents(socket_lb, xdp, &[grace]).unwrap();
        let mut fixture = Self {
            talks: Vec::new(),
            socket_lb,
            _agents: agents,
            cluster,
        };
        fixture.connect();
        fixture
    }

    fn servers(&self) -> [&Server; 2] {
        let [near, far] = &self.cluster.servers[..] else {
            panic!("two servers");
        };
        [near, far]
    }

    /// Connects to the ClusterIPs from inside and to NodePorts from outside, by TCP and UDP, in
    /// both families.
    fn connect(&mut self) {
        let [node4, node6] = self.cluster.nodes[0].host().addresses().both();
        let host = (self.socket_lb != SocketLb::Off).then(|| self.cluster.nodes[0].host());
        let inside = [&self.cluster.client].into_iter().chain(host);
        let at_socket = |from: &Machine| match self.socket_lb {
            SocketLb::All => true,
            _ => from.name() != self.cluster.client.name(),
        };
        let inside =
            inside.flat_map(|from| vips().map(|vip| (from, vip, ECHO.port, UDP.port, at_socket(from))));
        let [tcp, udp] = [ECHO, UDP].map(|port| port.node_port.unwrap());
        let outside = [node4, node6].map(|node| (&self.cluster.outside, node, tcp, udp, false));
        let mut talks = Vec::new();
        for (from, address, tcp, udp, is_at_socket) in inside.chain(outside) {
            for server in self.servers() {
                let pod = server.pod.name().to_owned();
                let tcp = from.connect_to(&server.pod, address, tcp).unwrap();
                let udp = from.connect_udp_to(&server.pod, address, udp).unwrap();
                talks.push(Open {
                    talk: tcp,
                    pod: pod.clone(),
                    end: if is_at_socket { End::Aborted } else { End::Reset },
                });
                talks.push(Open {
                    talk: udp,
                    pod,
                    end: End::GoesOn,
                });
            }
        }
        self.talks = talks;
    }

    #[track_caller]
    fn assert_all_live(&mut self) {
        for Open { talk, pod, .. } in &mut self.talks {
            assert_eq!(talk.server().unwrap(), *pod);
        }
    }

    /// Rows, generations and states of all backends, without those in state `Gone`.
    fn rows(&self) -> BTreeSet<(u32, Backend)> {
        let image = self.cluster.nodes[0].map_image().unwrap();
        let rows = image.backends4.into_iter().chain(image.backends6);
        rows.filter(|(_, row)| row.state != BackendState::Gone).collect()
    }

    fn wait_for(&self, states: [BackendState; 2]) {
        let [near, far] = self.servers();
        let [of_near, of_far] = states;
        self.cluster
            .wait_for_states(&[(near, of_near), (far, of_far)])
            .unwrap();
    }

    /// Applies `change`, after which the backends get these states, then applies `back`. Open
    /// connections survive, and the rows are the same afterwards. `new` checks new connections in
    /// between.
    fn passes(
        &mut self,
        states: [BackendState; 2],
        change: impl FnOnce(&Self),
        new: impl FnOnce(&Self),
        back: impl FnOnce(&Self),
    ) {
        let before = self.rows();
        change(self);
        self.wait_for(states);
        self.assert_all_live();
        new(self);
        self.assert_all_live();
        back(self);
        self.wait_for([BackendState::Active; 2]);
        self.assert_all_live();
        assert_eq!(self.rows(), before);
    }

    fn apply_slice(&self, file: &str, ports: &[ServicePort], servers: &[&Server]) {
        let name = file.trim_end_matches(".yaml");
        let endpoints = servers.iter().map(|server| server.endpoint());
        let slice = EndpointSliceManifest::new(name, SERVICE, ports);
        let slice = endpoints.fold(slice, EndpointSliceManifest::endpoint);
        self.cluster.lab.apply(file, slice).unwrap();
    }

    fn apply_service(&self, ports: &[ServicePort]) {
        let manifest = ServiceManifest::new(SERVICE, &vips(), ports);
        self.cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
    }

    fn clients(&self) -> [(&Machine, [IpAddr; 2], u16); 2] {
        let nodes = self.cluster.nodes[0].host().addresses().both();
        [
            (&self.cluster.client, vips(), HTTP.port),
            (&self.cluster.outside, nodes, HTTP.node_port.unwrap()),
        ]
    }

    fn assert_new_connections_are_refused(&self) {
        for (from, addresses, port) in self.clients() {
            for address in addresses {
                let report = from.http(address, port).count(2).run().unwrap();
                assert!(
                    report.errors.contains_key("connect: ConnectionRefused"),
                    "{report:?}"
                );
            }
        }
    }

    fn assert_new_go_to(&self, server: &Server) {
        for (from, addresses, port) in self.clients() {
            for address in addresses {
                let report = from.http(address, port).count(20).run().unwrap();
                let only = [(server.pod.name().to_owned(), 20)];
                assert_eq!(report.answers, only.into(), "{address}: {report:?}");
            }
        }
    }

    fn a_port_is_renamed(&mut self) {
        // The Service changes first, then the slice; then in the opposite order.
        let none = [BackendState::Absent; 2];
        self.passes(
            none,
            |fixture| fixture.apply_service(&RENAMED),
            Self::assert_new_connections_are_refused,
            |fixture| fixture.apply_slice(SLICES_FILE, &RENAMED, &fixture.servers()),
        );
        self.passes(
            none,
            |fixture| fixture.apply_slice(SLICES_FILE, &PORTS, &fixture.servers()),
            Self::assert_new_connections_are_refused,
            |fixture| fixture.apply_service(&PORTS),
        );
    }

    fn endpoints_move_between_slices(&mut self) {
        for moving in [0, 1] {
            let states = [0, 1].map(|index| match index == moving {
                true => BackendState::Absent,
                false => BackendState::Active,
            });
            self.passes(
                states,
                |fixture| fixture.apply_slice(SLICES_FILE, &PORTS, &[fixture.servers()[1 - moving]]),
                |fixture| fixture.assert_new_go_to(fixture.servers()[1 - moving]),
                |fixture| fixture.apply_slice(SECOND_FILE, &PORTS, &[fixture.servers()[moving]]),
            );
            self.apply_slice(SLICES_FILE, &PORTS, &self.servers());
            self.cluster.lab.remove(SECOND_FILE).unwrap();
            self.wait_for([BackendState::Active; 2]);
            self.assert_all_live();
        }
    }

    fn the_service_is_recreated(&mut self) {
        self.passes(
            [BackendState::Absent; 2],
            |fixture| fixture.cluster.lab.remove(SERVICE_FILE).unwrap(),
            |_| {},
            |fixture| fixture.apply_service(&PORTS),
        );
        // The same with its slices, as when a namespace is restored.
        self.passes(
            [BackendState::Absent; 2],
            |fixture| {
                fixture.cluster.lab.remove(SERVICE_FILE).unwrap();
                fixture.cluster.lab.remove(SLICES_FILE).unwrap();
            },
            |_| {},
            |fixture| {
                fixture.apply_slice(SLICES_FILE, &PORTS, &fixture.servers());
                fixture.apply_service(&PORTS);
            },
        );
    }

    fn the_agents_are_restarted(mut self) {
        let [_, far] = self.servers();
        self.apply_slice(SLICES_FILE, &PORTS, &[far]);
        self.wait_for([BackendState::Absent, BackendState::Active]);
        let before = self.rows();
        self._agents = self._agents.restart().unwrap();
        self.assert_all_live();
        assert_eq!(self.rows(), before);
        self.apply_slice(SLICES_FILE, &PORTS, &self.servers());
        self.wait_for([BackendState::Active; 2]);
        self.assert_all_live();
    }
}

fn absence(title: &str, socket_lb: SocketLb, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let mut fixture = Fixture::new(title, socket_lb, xdp, LONG);
    fixture.a_port_is_renamed();
    fixture.endpoints_move_between_slices();
    fixture.the_service_is_recreated();
    fixture.the_agents_are_restarted();
}

#[test]
fn keep_connections_through_tc() {
    absence("absence-tc", SocketLb::Off, None);
}

#[test]
fn keep_connections_through_sockets_and_native_xdp() {
    absence("absence-native", SocketLb::All, Some(Xdp::Native));
}

#[test]
fn keep_connections_through_host_sockets_and_generic_xdp() {
    absence("absence-generic", SocketLb::Host, Some(Xdp::Generic));
}

/// Asserts that the connections to the Pod `gone` have ended: TCP is reset or, if translated at
/// sockets, aborted; datagrams reach another Pod. All other connections are still open.
#[track_caller]
fn assert_ended(talks: Vec<Open>, gone: &str) {
    for Open { mut talk, pod, end } in talks {
        if pod != gone {
            assert_eq!(talk.server().unwrap(), pod);
            continue;
        }
        let error = match end {
            End::Aborted => "ConnectionAborted",
            End::Reset => {
                talk.send("still there?").unwrap();
                "ConnectionReset"
            }
            End::GoesOn => {
                wait_for("an answer from another Pod", PATIENCE, || {
                    let servers = talk.servers().unwrap();
                    servers.iter().any(|name| name != gone).then_some(())
                })
                .unwrap();
                continue;
            }
        };
        let event = talk.next_event().unwrap();
        let is_ended = matches!(&event, TalkEvent::Error(text) if text.ends_with(&format!(": {error}")));
        assert!(is_ended, "{event:?} to {:?}", talk.local());
    }
}

#[test]
fn lose_connections_after_the_grace_period() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let fixture = Fixture::new("absence-ends", socket_lb, None, "--removed-backend-grace=1");
        let [near, far] = fixture.servers();
        fixture.apply_slice(SLICES_FILE, &PORTS, &[far]);
        fixture.cluster.wait_for_active(&[far]).unwrap();
        let gone = near.pod.name().to_owned();
        assert_ended(fixture.talks, &gone);
    }
}

/// One Pod was terminating, and the object of the other one is deleted.
#[test]
fn lose_connections_immediately_if_known_to_be_deleted() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let mut fixture = Fixture::new("absence-known", socket_lb, None, LONG);
        let [near, far] = fixture.servers();
        let (near_pod, far_pod) = (near.pod.name().to_owned(), far.pod.name().to_owned());
        let terminating = near.draining_endpoint().terminating(true);
        fixture
            .cluster
            .apply_slices([terminating, far.endpoint()])
            .unwrap();
        fixture.wait_for([BackendState::Draining, BackendState::Active]);
        fixture.apply_slice(SLICES_FILE, &PORTS, &[far]);
        fixture.cluster.wait_for_active(&[far]).unwrap();
        let talks = std::mem::take(&mut fixture.talks);
        let (of_near, of_far): (Vec<_>, Vec<_>) = talks.into_iter().partition(|open| open.pod == near_pod);
        assert_ended(of_near, &near_pod);

        // Without slices, the Pods' objects are the endpoints.
        fixture.talks = of_far;
        fixture.cluster.lab.remove(SLICES_FILE).unwrap();
        fixture.wait_for([BackendState::Active; 2]);
        fixture.assert_all_live();
        let [near, far] = fixture.servers();
        fixture.cluster.remove_manifest(far).unwrap();
        fixture.cluster.wait_for_active(&[near]).unwrap();
        assert_ended(fixture.talks, &far_pod);
    }
}
