//! How long unused connections and flows are remembered. After the timeout, the next packet begins
//! a new connection, which goes to a Pod that takes new connections.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use etherparse::PacketBuilder;
use lb_agent::maps::BackendState;
use lb_tests::lab::cluster::{ECHO, SERVICE_FILE, Server, UDP, load_balancer_addresses, service, vips};
use lb_tests::lab::{Agents, Cluster, Machine, SocketLb, Talk, Wire, Xdp, require_privileges, wait_for};
use serde::Deserialize;

const PATIENCE: Duration = Duration::from_secs(20);
/// Timeouts in seconds. `LONG` is for connections that must also be used in time, even on a busy
/// machine; `SHORT` is for others.
const LONG: u64 = 6;
const SHORT: u64 = 2;
/// How many connections of each kind and IP version are left idle. As many are kept in use.
const TALKS: usize = 3;
/// Client ports of the idle connections that a test builds packet by packet.
const IDLE_PORTS: [u16; TALKS] = [20_000, 20_001, 20_002];
/// Client ports of the connections that are kept in use.
const BUSY_PORTS: [u16; TALKS] = [20_010, 20_011, 20_012];

/// Where the client is, and what translates its packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClientPath {
    Outside(Option<Xdp>),
    Pod,
}

/// Two Pods, on the first and the second node. Later they stop taking new connections, and a third
/// Pod takes them.
struct Fixture {
    _agents: Agents,
    client: Machine,
    vips: [IpAddr; 2],
    cluster: Cluster,
}

/// A connection in the maps of the first node.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Row {
    protocol: String,
    client: SocketAddr,
    backend: SocketAddr,
    state: String,
    idle_seconds: u64,
}

/// Connections by protocol and client.
type Rows = BTreeMap<(String, SocketAddr), Row>;

impl Fixture {
    fn new(title: &str, path: ClientPath, lifetimes: &[(&str, u64)]) -> Self {
        let option = |(what, seconds): &(&str, u64)| format!("--{what}-timeout={seconds}");
        let options: Vec<String> = lifetimes.iter().map(option).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let cluster = Cluster::new(title, &[0, 1, 0]).unwrap();
        let manifest = service().ingress(&load_balancer_addresses(), None);
        cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
        cluster.route_load_balancer(&[0]).unwrap();
        let leaving = &cluster.servers[..2];
        cluster
            .apply_slices(leaving.iter().map(Server::endpoint))
            .unwrap();
        let (client, vips, xdp) = match path {
            ClientPath::Outside(xdp) => (cluster.outside.clone(), load_balancer_addresses(), xdp),
            ClientPath::Pod => (cluster.client.clone(), vips(), None),
        };
        Self {
            _agents: cluster.start_agents(SocketLb::Off, xdp, &options).unwrap(),
            client,
            vips,
            cluster,
        }
    }

    fn leaving(&self) -> &[Server] {
        &self.cluster.servers[..2]
    }

    fn coming(&self) -> &Server {
        &self.cluster.servers[2]
    }

    /// The first two Pods start draining, and the third one takes new connections.
    fn change(&self) {
        let draining = self.leaving().iter().map(Server::draining_endpoint);
        let endpoints = draining.chain([self.coming().endpoint()]);
        self.cluster.apply_slices(endpoints).unwrap();
        let draining = self
            .leaving()
            .iter()
            .map(|server| (server, BackendState::Draining));
        let states: Vec<_> = draining.chain([(self.coming(), BackendState::Active)]).collect();
        self.cluster.wait_for_states(&states).unwrap();
    }

    fn rows(&self) -> Rows {
        let node = &self.cluster.nodes[0];
        let text = node.agent_command("connections", &["-o", "json"]).unwrap();
        let rows: Vec<Row> = serde_json::from_str(&text).unwrap();
        let key = |row: &Row| (row.protocol.clone(), row.client);
        rows.into_iter().map(|row| (key(&row), row)).collect()
    }

    /// Waits until connections are in this state.
    fn wait_for_state(&self, state: &str, which: &[(&str, SocketAddr)]) {
        self.wait_for_rows(state, which, |_| {}, |row| row.state == state);
    }

    /// Uses some connections until others have been idle for longer than their timeout.
    fn wait_for_end(&self, which: &[(&str, SocketAddr)], lifetime: u64, use_others: impl FnMut(&Rows)) {
        // The command reads the programs' clock with a resolution of a second.
        let ended = |row: &Row| row.state == "expired" && row.idle_seconds > lifetime + 1;
        self.wait_for_rows("ended", which, use_others, ended);
    }

    fn wait_for_rows(
        &self,
        what: &str,
        which: &[(&str, SocketAddr)],
        mut use_others: impl FnMut(&Rows),
        condition: impl Fn(&Row) -> bool,
    ) {
        wait_for(&format!("{which:?} {what}"), PATIENCE, || {
            let rows = self.rows();
            use_others(&rows);
            let row = |(protocol, client): &(&str, SocketAddr)| rows.get(&((*protocol).to_owned(), *client));
            which
                .iter()
                .all(|which| row(which).is_some_and(&condition))
                .then_some(())
        })
        .unwrap();
    }

    fn is_leaving(&self, backend: SocketAddr) -> bool {
        let mut leaving = self
            .leaving()
            .iter()
            .flat_map(|server| server.pod.addresses().both());
        leaving.any(|address| address == backend.ip())
    }

    fn is_coming(&self, backend: SocketAddr) -> bool {
        self.coming().pod.addresses().both().contains(&backend.ip())
    }

    /// Asserts that a connection still belongs to one of the first two Pods and has not expired.
    #[track_caller]
    fn assert_stays(&self, rows: &Rows, protocol: &str, client: SocketAddr) {
        let row = &rows[&(protocol.to_owned(), client)];
        assert!(self.is_leaving(row.backend) && row.state != "expired", "{row:?}");
    }
}

/// Two connections, or UDP sockets, that a Pod has answered.
struct Pair<'a> {
    pod: &'a Machine,
    protocol: &'static str,
    idle: Talk,
    busy: Talk,
}

impl Pair<'_> {
    #[track_caller]
    fn use_busy(&mut self) {
        assert_eq!(self.busy.server().unwrap(), self.pod.name(), "{}", self.protocol);
    }
}

/// TCP connections used by both sides, and UDP flows that were answered.
fn answered(title: &str, path: ClientPath) {
    if !require_privileges() {
        return;
    }
    let lifetimes = [("tcp-established", LONG), ("udp-answered", LONG)];
    let fixture = Fixture::new(title, path, &lifetimes);
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for vip in fixture.vips {
        for Server { pod, .. } in fixture.leaving() {
            let tcp = || fixture.client.connect_to(pod, vip, ECHO.port).unwrap();
            let udp = || fixture.client.connect_udp_to(pod, vip, UDP.port).unwrap();
            for (protocol, idle, busy) in [("TCP", tcp(), tcp()), ("UDP", udp(), udp())] {
                pairs.iter_mut().for_each(Pair::use_busy);
                pairs.push(Pair {
                    pod,
                    protocol,
                    idle,
                    busy,
                });
            }
        }
    }
    fixture.change();
    let idle: Vec<_> = pairs
        .iter()
        .map(|pair| (pair.protocol, pair.idle.local().unwrap()))
        .collect();
    fixture.wait_for_end(&idle, LONG, |_| pairs.iter_mut().for_each(Pair::use_busy));
    for pair in &mut pairs {
        if pair.protocol == "TCP" {
            // No other connection has replaced it: it continues with its Pod.
            assert_eq!(pair.idle.server().unwrap(), pair.pod.name());
        } else {
            assert_eq!(pair.idle.server().unwrap(), fixture.coming().pod.name());
        }
        pair.use_busy();
    }
}

#[test]
fn answered_connections_of_pods_expire_through_tc() {
    answered("answered-pods", ClientPath::Pod);
}

#[test]
fn answered_connections_of_outside_clients_expire_through_tc() {
    answered("answered-tc", ClientPath::Outside(None));
}

#[test]
fn answered_connections_of_outside_clients_expire_through_generic_xdp() {
    answered("answered-generic", ClientPath::Outside(Some(Xdp::Generic)));
}

#[test]
fn answered_connections_of_outside_clients_expire_through_native_xdp() {
    answered("answered-native", ClientPath::Outside(Some(Xdp::Native)));
}

/// Makes the kernel double the pause between SYN retransmissions from the start. By default (since
/// 6.5) it first sends some at equal intervals.
fn grow_pauses(client: &Machine) {
    let variable = "ipv4/tcp_syn_linear_timeouts";
    let exists = || Ok(Path::new("/proc/sys/net").join(variable).exists());
    if client.namespace().run(exists).unwrap() {
        client.namespace().sysctl(&[(variable, "0")]).unwrap();
    }
}

/// The first Pods cannot answer; later another Pod takes new connections.
fn unanswered(title: &str, path: ClientPath) {
    if !require_privileges() {
        return;
    }
    let lifetimes = [("tcp-opening", SHORT), ("udp-unanswered", LONG)];
    let fixture = Fixture::new(title, path, &lifetimes);
    for server in fixture.leaving() {
        let clients = [&fixture.client, fixture.cluster.nodes[0].host()];
        let clients = clients.into_iter().flat_map(|machine| machine.addresses().both());
        let routes: Vec<String> = clients
            .map(|client| format!("route add blackhole {client}"))
            .collect();
        server.pod.namespace().ip(&routes).unwrap();
    }
    grow_pauses(&fixture.client);
    let all = || fixture.vips.into_iter().flat_map(|vip| [vip; TALKS]);
    let mut tcp: Vec<Talk> = all()
        .map(|vip| fixture.client.talk(vip, ECHO.port).unwrap())
        .collect();
    let udp = || -> Vec<Talk> {
        let talk = |vip| {
            let mut talk = fixture.client.talk_udp(vip, UDP.port).unwrap();
            talk.connected().unwrap();
            talk.send("hello").unwrap();
            talk
        };
        all().map(talk).collect()
    };
    let (mut idle, mut busy) = (udp(), udp());
    let of = |talks: &[Talk]| -> Vec<(&str, SocketAddr)> {
        talks.iter().map(|talk| ("UDP", talk.local().unwrap())).collect()
    };
    let (idle_keys, busy_keys) = (of(&idle), of(&busy));
    let mut use_busy = || busy.iter_mut().for_each(|talk| talk.send("hello").unwrap());
    fixture.wait_for_state("opening", &idle_keys);
    fixture.change();
    fixture.wait_for_end(&idle_keys, LONG, |rows| {
        for (protocol, client) in &busy_keys {
            fixture.assert_stays(rows, protocol, *client);
        }
        use_busy();
    });
    for talk in &mut idle {
        assert_eq!(talk.server().unwrap(), fixture.coming().pod.name());
    }
    // The next retransmission of the SYN reaches the other Pod.
    for talk in &mut tcp {
        talk.connected().unwrap();
        assert_eq!(talk.server().unwrap(), fixture.coming().pod.name());
    }
}

#[test]
fn unanswered_connections_of_pods_expire_through_tc() {
    unanswered("unanswered-pods", ClientPath::Pod);
}

#[test]
fn unanswered_connections_of_outside_clients_expire_through_tc() {
    unanswered("unanswered-tc", ClientPath::Outside(None));
}

#[test]
fn unanswered_connections_of_outside_clients_expire_through_generic_xdp() {
    unanswered("unanswered-generic", ClientPath::Outside(Some(Xdp::Generic)));
}

#[test]
fn unanswered_connections_of_outside_clients_expire_through_native_xdp() {
    unanswered("unanswered-native", ClientPath::Outside(Some(Xdp::Native)));
}

/// The kind of a TCP segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Segment {
    Syn,
    Ack,
    Reset,
}

fn send(wire: &Wire, source: SocketAddr, destination: SocketAddr, segment: Segment) {
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("{source} and {destination}"),
    };
    let first = 1000;
    let tcp = |sequence| ip.tcp(source.port(), destination.port(), sequence, 64_000);
    let packet = match segment {
        Segment::Syn => tcp(first).syn(),
        Segment::Ack => tcp(first + 1).ack(1),
        Segment::Reset => tcp(first + 1).rst(),
    };
    let mut bytes = Vec::new();
    packet.write(&mut bytes, &[]).unwrap();
    wire.send(&bytes).unwrap();
}

/// Connections that a test builds packet by packet: packets after the end of a connection still go
/// to its Pod for a while.
fn closed(title: &str, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new(title, ClientPath::Outside(xdp), &[("tcp-reset", LONG)]);
    let wire = fixture.client.wire().unwrap();
    let phantom = fixture.client.phantom().unwrap().both();
    let pairs: Vec<_> = phantom.into_iter().zip(fixture.vips).collect();
    let clients = |ports: [u16; TALKS]| -> Vec<(SocketAddr, SocketAddr)> {
        let of = |&(client, vip): &(IpAddr, IpAddr)| {
            ports.map(|port| (SocketAddr::new(client, port), SocketAddr::new(vip, ECHO.port)))
        };
        pairs.iter().flat_map(of).collect()
    };
    let (idle, busy) = (clients(IDLE_PORTS), clients(BUSY_PORTS));
    let send_all = |which: &[(SocketAddr, SocketAddr)], segment| {
        for (client, vip) in which {
            send(&wire, *client, *vip, segment);
        }
    };
    let keys = |which: &[(SocketAddr, SocketAddr)]| -> Vec<(&str, SocketAddr)> {
        which.iter().map(|(client, _)| ("TCP", *client)).collect()
    };
    let both = [&idle[..], &busy].concat();
    send_all(&both, Segment::Syn);
    // The client does not acknowledge the answer.
    fixture.wait_for_state("opening", &keys(&both));
    send_all(&both, Segment::Reset);
    fixture.wait_for_state("closed", &keys(&both));
    fixture.change();
    send_all(&busy, Segment::Ack);
    fixture.wait_for_end(&keys(&idle), LONG, |rows| {
        for (client, _) in &busy {
            fixture.assert_stays(rows, "TCP", *client);
        }
        send_all(&busy, Segment::Ack);
    });
    send_all(&idle, Segment::Ack);
    wait_for("other connections", PATIENCE, || {
        let rows = fixture.rows();
        let is_other = |(client, _): &(SocketAddr, SocketAddr)| {
            fixture.is_coming(rows[&("TCP".to_owned(), *client)].backend)
        };
        idle.iter().all(is_other).then_some(())
    })
    .unwrap();
}

#[test]
fn closed_connections_of_outside_clients_expire_through_tc() {
    closed("closed-tc", None);
}

#[test]
fn closed_connections_of_outside_clients_expire_through_generic_xdp() {
    closed("closed-generic", Some(Xdp::Generic));
}

#[test]
fn closed_connections_of_outside_clients_expire_through_native_xdp() {
    closed("closed-native", Some(Xdp::Native));
}
