//! Session affinity by client address: from outside through every node, and from Pods through TC
//! and the sockets.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::lab::cluster::{HTTP, SERVICE_FILE, Server, UDP, load_balancer_addresses, service, vips};
use lb_tests::lab::{Agents, Cluster, Machine, SocketLb, Xdp, require_privileges};

/// Addresses of the client outside. With this many, each Pod is chosen by some of them.
const CLIENTS: u8 = 20;
/// Connections per client address.
const CONNECTIONS: u32 = 2;

/// The chosen Pod of each client.
type Choices = BTreeMap<IpAddr, String>;

/// One Pod of the Service on each node, and an agent on each node.
struct Fixture {
    agents: Agents,
    cluster: Cluster,
}

impl Fixture {
    fn new(title: &str, seconds: Option<i32>, socket_lb: SocketLb, xdp: Option<Xdp>) -> Self {
        let cluster = Cluster::new(title, &[0, 1, 2]).unwrap();
        let manifest = service()
            .ingress(&load_balancer_addresses(), None)
            .client_ip_affinity(seconds);
        cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
        cluster.route_load_balancer(&[0]).unwrap();
        Self {
            agents: cluster.start_agents(socket_lb, xdp, &[]).unwrap(),
            cluster,
        }
    }

    fn wait_for_active(&self, servers: &[&Server]) {
        for node in 0..3 {
            self.cluster.wait_for_active_on(node, servers).unwrap();
        }
    }

    fn restart_agents(self) -> Self {
        let Self { agents, cluster } = self;
        let agents = agents.restart().unwrap();
        Self { agents, cluster }
    }

    /// The addresses of the Service in one IP version: ClusterIP, load balancer address and
    /// NodePort address of the first node, with the ports for HTTP and UDP.
    fn ways(&self, version: usize) -> [(IpAddr, u16, u16); 3] {
        let node = self.cluster.nodes[0].host().addresses().both()[version];
        let (http, udp) = (HTTP.node_port.unwrap(), UDP.node_port.unwrap());
        [
            (vips()[version], HTTP.port, UDP.port),
            (load_balancer_addresses()[version], HTTP.port, UDP.port),
            (node, http, udp),
        ]
    }
}

/// Returns the Pod of each client, for HTTP and for UDP. Asserts that all connections of a client
/// have the same Pod.
fn choices(from: &Machine, clients: &[IpAddr], to: IpAddr, http: u16, udp: u16) -> [Choices; 2] {
    let count = u32::try_from(clients.len()).unwrap() * CONNECTIONS;
    let http = from.http(to, http).count(count).concurrency(4);
    let http = http.source_addresses(clients.to_vec()).run().unwrap();
    assert_eq!(http.answered(), u64::from(count), "{to}: {http:?}");
    let udp = from.udp(to, udp).sockets(count);
    let udp = udp.source_addresses(clients.to_vec()).run().unwrap();
    assert_eq!(udp.answered(), u64::from(count), "{to}: {udp:?}");
    [http.servers, udp.servers].map(|servers| by_client(&servers))
}

/// Asserts that all connections of a client have the same Pod.
fn by_client(servers: &BTreeMap<SocketAddr, String>) -> Choices {
    let mut choices = Choices::new();
    for (client, server) in servers {
        let chosen = choices.entry(client.ip()).or_insert_with(|| server.clone());
        assert_eq!(chosen, server, "{client}: {servers:?}");
    }
    choices
}

fn pods(choices: &Choices) -> BTreeSet<&str> {
    choices.values().map(String::as_str).collect()
}

fn from_outside(title: &str, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let mut fixture = Fixture::new(title, None, SocketLb::Off, xdp);
    let outside = fixture.cluster.outside.clone();
    let clients = outside.more_addresses(CLIENTS).unwrap();
    for version in 0..2 {
        let clients: Vec<IpAddr> = clients.iter().map(|client| client.both()[version]).collect();
        let [_, (vip, http, udp), (node, node_http, node_udp)] = fixture.ways(version);
        // Another node first: the nodes do not share their affinity rows.
        fixture.cluster.route_load_balancer(&[1]).unwrap();
        let first = choices(&outside, &clients, vip, http, udp);
        for choices in &first {
            assert_eq!(pods(choices).len(), 3, "{vip}: {choices:?}");
        }
        assert_ne!(first[0], first[1], "the ports of a Service are independent");
        for route in [2, 0] {
            fixture.cluster.route_load_balancer(&[route]).unwrap();
            assert_eq!(choices(&outside, &clients, vip, http, udp), first, "node {route}");
        }
        let at_node_port = choices(&outside, &clients, node, node_http, node_udp);
        assert_eq!(at_node_port, first, "NodePort");

        let [gone, stays @ ..] = &fixture.cluster.servers[..] else {
            panic!("three servers");
        };
        let name = gone.pod.name().to_owned();
        fixture.cluster.remove_manifest(gone).unwrap();
        fixture.wait_for_active(&stays.iter().collect::<Vec<_>>());
        let second = choices(&outside, &clients, vip, http, udp);
        for (before, after) in first.iter().zip(&second) {
            for (client, pod) in after {
                assert_ne!(*pod, name, "{client}");
                assert!(
                    before[client] == *pod || before[client] == name,
                    "{client}: {pod}"
                );
            }
        }
        // Clients that had to move stay with their new Pod.
        fixture.cluster.set_ready(gone, true).unwrap();
        fixture.wait_for_active(&fixture.cluster.servers.iter().collect::<Vec<_>>());
        assert_eq!(choices(&outside, &clients, vip, http, udp), second);
        assert_eq!(
            choices(&outside, &clients, node, node_http, node_udp),
            second,
            "the NodePort shares the affinity"
        );
        fixture = fixture.restart_agents();
        assert_eq!(
            choices(&outside, &clients, vip, http, udp),
            second,
            "after a restart"
        );
    }
}

#[test]
fn clients_outside_keep_their_pod_through_tc() {
    from_outside("affinity-tc", None);
}

#[test]
fn clients_outside_keep_their_pod_through_generic_xdp() {
    from_outside("affinity-generic", Some(Xdp::Generic));
}

#[test]
fn clients_outside_keep_their_pod_through_native_xdp() {
    from_outside("affinity-native", Some(Xdp::Native));
}

/// Returns the only Pod that answered.
#[track_caller]
fn only<'a>(answers: &'a BTreeMap<String, u64>, what: &str) -> &'a str {
    let names: Vec<&str> = answers.keys().map(String::as_str).collect();
    let [name] = names[..] else {
        panic!("{what}: {answers:?}");
    };
    name
}

/// The Pods of a client inside, for each IP version, for HTTP and UDP. Asserts that all addresses
/// of the Service lead to the same ones.
fn choices_inside(fixture: &Fixture, from: &Machine) -> Vec<String> {
    let mut choices = Vec::new();
    for version in 0..2 {
        let mut by_way = BTreeSet::new();
        for (to, http, udp) in fixture.ways(version) {
            let report = from.http(to, http).count(10).run().unwrap();
            let http = only(&report.answers, &format!("{to} from {}", from.name())).to_owned();
            let report = from.udp(to, udp).connected().sockets(10).run().unwrap();
            let udp = only(&report.answers, &format!("{to} from {}", from.name())).to_owned();
            let report = from.udp(to, udp_port(fixture, to)).sockets(10).run().unwrap();
            assert_eq!(only(&report.answers, "unconnected"), udp);
            by_way.insert([http, udp]);
        }
        assert_eq!(by_way.len(), 1, "{}: {by_way:?}", from.name());
        choices.extend(by_way.into_iter().flatten());
    }
    choices
}

fn udp_port(fixture: &Fixture, to: IpAddr) -> u16 {
    let is_node = fixture.cluster.nodes[0].host().addresses().both().contains(&to);
    if is_node { UDP.node_port.unwrap() } else { UDP.port }
}

/// Asserts that clients on the first node keep their Pods, also when the agent restarts, and that
/// not all clients have the same Pods.
fn from_inside(title: &str, socket_lb: SocketLb) {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new(title, None, socket_lb, None);
    let node = &fixture.cluster.nodes[0];
    let mut clients = vec![fixture.cluster.client.clone()];
    clients.extend(["other-1", "other-2", "other-3"].map(|name| node.pod(name).unwrap()));
    if socket_lb == SocketLb::All {
        clients.push(node.host().clone());
    }
    let all = |fixture: &Fixture| -> Vec<Vec<String>> {
        clients
            .iter()
            .map(|client| choices_inside(fixture, client))
            .collect()
    };
    let first = all(&fixture);
    let different: BTreeSet<&Vec<String>> = first.iter().collect();
    assert!(different.len() > 1, "{first:?}");
    let fixture = fixture.restart_agents();
    assert_eq!(all(&fixture), first);

    let gone = &fixture.cluster.servers[0];
    fixture.cluster.remove_manifest(gone).unwrap();
    let stays: Vec<&Server> = fixture.cluster.servers[1..].iter().collect();
    fixture.wait_for_active(&stays);
    let second = all(&fixture);
    for (before, after) in first.iter().flatten().zip(second.iter().flatten()) {
        assert_ne!(after, gone.pod.name());
        assert!(
            before == after || before == gone.pod.name(),
            "{first:?} {second:?}"
        );
    }
}

#[test]
fn pods_keep_their_backend_through_tc() {
    from_inside("affinity-pods", SocketLb::Off);
}

#[test]
fn pods_and_node_processes_keep_their_backend_through_sockets() {
    from_inside("affinity-sockets", SocketLb::All);
}

/// Affinity timeout in seconds.
const SECONDS: i32 = 3;
/// Number and interval of connections that renew the affinity in time. Together they take longer
/// than the timeout.
const OFTEN: (u32, Duration) = (14, Duration::from_millis(300));
/// An interval longer than the timeout.
const SELDOM: Duration = Duration::from_millis(3300);

/// A client that draws one of two Pods this often gets each of them at least once, unless something
/// is wrong.
const DRAWS: usize = 30;

/// Each connection renews the affinity. After it has expired, the Pod is chosen at random.
#[test]
fn affinity_expires_after_the_last_connection() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("affinity-ends", Some(SECONDS), SocketLb::Off, None);
    let cluster = &fixture.cluster;
    let http = |vip: IpAddr, count| cluster.client.http(vip, HTTP.port).count(count);
    let pod = |vip| only(&http(vip, 1).run().unwrap().answers, "one request").to_owned();
    let (count, interval) = OFTEN;
    for vip in vips() {
        let first = pod(vip);
        let (gone, stay): (Vec<&Server>, Vec<&Server>) = cluster
            .servers
            .iter()
            .partition(|server| server.pod.name() == first);
        cluster.remove_manifest(gone[0]).unwrap();
        fixture.wait_for_active(&stay);
        let second = pod(vip);
        assert_ne!(second, first);
        cluster.set_ready(gone[0], true).unwrap();
        fixture.wait_for_active(&cluster.servers.iter().collect::<Vec<_>>());
        let report = http(vip, count).interval(interval).run().unwrap();
        assert_eq!(report.answers, [(second.clone(), count.into())].into(), "{vip}");
        let draw = |_| http(vip, 2).interval(SELDOM).run().unwrap().answers;
        let drawn = (0..DRAWS).map(draw).find(|answers| answers.contains_key(&first));
        assert!(drawn.is_some(), "{vip}: no Pod but {second}");
    }
}

/// The same at the sockets, which always choose at random.
#[test]
fn affinity_expires_after_the_last_socket() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("affinity-ends", Some(SECONDS), SocketLb::All, None);
    let client = &fixture.cluster.client;
    let (count, interval) = OFTEN;
    let often = vips().map(|vip| {
        let http = client.http(vip, HTTP.port).count(count).interval(interval);
        http.start().unwrap()
    });
    let host = fixture.cluster.nodes[0].host();
    let seldom = [client, host].map(|from| {
        vips().map(|vip| {
            let udp = from.udp(vip, UDP.port).connected().sockets(4);
            udp.interval(SELDOM).start().unwrap()
        })
    });
    for report in often.map(|client| client.finish().unwrap()) {
        assert_eq!(
            (report.answered(), report.answers.len()),
            (count.into(), 1),
            "{report:?}"
        );
    }
    let pods: Vec<BTreeMap<String, u64>> = seldom
        .into_iter()
        .flatten()
        .map(|client| client.finish().unwrap().answers)
        .collect();
    // Twelve random choices among three Pods: the probability that none differs from the one before
    // it is one in half a million.
    assert!(pods.iter().any(|pods| pods.len() > 1), "{pods:?}");
}
