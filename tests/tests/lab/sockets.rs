//! What happens to sockets that were translated at `connect` when their backend is removed: only
//! its connections end, and its UDP sockets move to another backend.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use lb_agent::datapath::live::LiveMaps;
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::sockets::SocketMaps;
use lb_agent::maps::BackendState;
use lb_tests::kernel::needs;
use lb_tests::lab::cluster::{ECHO, SERVICE_FILE, Server, UDP, options, service, vips};
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{
    Agent, AgentOptions, Cluster, Machine, Published, ServicePort, SocketLb, Talk, TcpState,
    require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// A port that no Service uses.
const UNKNOWN_PORT: u16 = 9;

/// The Service's addresses, and its IPv4 address as an IPv4-mapped IPv6 address.
fn addresses() -> [IpAddr; 3] {
    let [ipv4, ipv6] = vips();
    [ipv4, ipv6, mapped(ipv4)]
}

fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    }
}

/// Asserts that a socket was ended by the agent, not by its process.
#[track_caller]
fn assert_aborted(talk: &mut Talk) {
    // Answers that were not read yet come before the error.
    let is_answer = |event: &TalkEvent| matches!(event, TalkEvent::Line(_));
    let mut events = std::iter::from_fn(|| Some(talk.next_event().unwrap()));
    let event = events.find(|event| !is_answer(event));
    assert_eq!(
        event,
        Some(TalkEvent::Error("read: ConnectionAborted".to_owned()))
    );
}

/// Connected TCP and UDP sockets.
struct Talks {
    of: String,
    connections: Vec<Talk>,
    datagrams: Vec<Talk>,
}

impl Talks {
    /// Connects to a Pod through the Service.
    #[track_caller]
    fn through_service(from: &Machine, server: &Server) -> Self {
        let connect = |port: ServicePort| addresses().map(|to| connect_to(from, to, port.port, port, server));
        Self {
            of: server.pod.name().to_owned(),
            connections: connect(ECHO).into(),
            datagrams: connect(UDP).into(),
        }
    }

    /// Connects to a Pod's own addresses.
    #[track_caller]
    fn straight(from: &Machine, server: &Server) -> Self {
        let [ipv4, ipv6] = server.pod.addresses().both();
        let connect = |port: ServicePort| {
            [ipv4, ipv6, mapped(ipv4)].map(|to| connect_to(from, to, port.target_port, port, server))
        };
        Self {
            of: server.pod.name().to_owned(),
            connections: connect(ECHO).into(),
            datagrams: connect(UDP).into(),
        }
    }

    #[track_caller]
    fn assert_live(&mut self) {
        for talk in self.connections.iter_mut().chain(&mut self.datagrams) {
            assert_eq!(talk.server().unwrap(), self.of);
        }
    }

    /// Asserts that the connections have ended, and that the UDP sockets have another Pod.
    #[track_caller]
    fn assert_ended(mut self, other: &Server) {
        self.connections.iter_mut().for_each(assert_aborted);
        for talk in &mut self.datagrams {
            assert_goes_on(talk, other);
        }
    }
}

/// Waits until this Pod answers a UDP socket.
#[track_caller]
fn assert_goes_on(talk: &mut Talk, server: &Server) {
    wait_for("an answer from the other Pod", PATIENCE, || {
        let servers = talk.servers().unwrap();
        servers.iter().any(|name| name == server.pod.name()).then_some(())
    })
    .unwrap();
}

/// Connects with the protocol of `port`.
#[track_caller]
fn connect_to(from: &Machine, to: IpAddr, number: u16, port: ServicePort, server: &Server) -> Talk {
    match port.protocol {
        "UDP" => from.connect_udp_to(&server.pod, to, number).unwrap(),
        _ => from.connect_to(&server.pod, to, number).unwrap(),
    }
}

/// Waits until the agent has closed this many sockets in total, and asserts that it closed no more.
#[track_caller]
fn wait_for_closed(agent: &Agent, number: usize) {
    let closed = || -> usize {
        let log = agent.log();
        let lines = log.lines().filter(|line| line.contains("closed sockets"));
        let numbers = lines.flat_map(|line| {
            let words = line.split_whitespace();
            let numbers = words.filter_map(|word| word.strip_prefix("tcp=").or(word.strip_prefix("udp=")));
            numbers.map(|number| number.parse::<usize>().unwrap())
        });
        numbers.sum()
    };
    wait_for("closed sockets in the log", PATIENCE, || {
        (closed() >= number).then_some(())
    })
    .unwrap();
    assert_eq!(closed(), number);
}

fn two(cluster: &Cluster) -> [&Server; 2] {
    let [first, second] = &cluster.servers[..] else {
        panic!("two servers");
    };
    [first, second]
}

#[test]
fn only_sockets_of_a_removed_backend_end_immediately() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("end", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [gone, stays] = two(&cluster);
    let places = [&cluster.client, cluster.nodes[0].host()];
    let to_gone = places.map(|from| Talks::through_service(from, gone));
    let mut to_stays = places.map(|from| Talks::through_service(from, stays));
    let straight = |from: &&Machine| [gone, stays].map(|server| Talks::straight(from, server));
    let mut straight: Vec<Talks> = places.iter().flat_map(straight).collect();
    let number = to_gone.iter().map(|talks| talks.connections.len()).sum();

    cluster.remove_manifest(gone).unwrap();
    to_gone.into_iter().for_each(|talks| talks.assert_ended(stays));
    to_stays.iter_mut().for_each(Talks::assert_live);
    straight.iter_mut().for_each(Talks::assert_live);
    wait_for_closed(&agent, number);

    // The same address is a new backend now: rows about the old one do not apply to it.
    cluster.set_ready(gone, true).unwrap();
    cluster.wait_for_active(&[gone, stays]).unwrap();
    let mut to_gone = places.map(|from| Talks::through_service(from, gone));
    cluster.remove_manifest(stays).unwrap();
    to_stays.into_iter().for_each(|talks| talks.assert_ended(gone));
    to_gone.iter_mut().for_each(Talks::assert_live);
    straight.iter_mut().for_each(Talks::assert_live);
    wait_for_closed(&agent, 2 * number);
}

#[test]
fn connections_survive_draining_and_end_with_the_service() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("drain", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [drains, stays] = two(&cluster);
    let connect = |server| addresses().map(|to| connect_to(&cluster.client, to, ECHO.port, ECHO, server));
    let mut talks = [drains, stays].map(connect);
    // A UDP flow to a Pod that does not serve moves to another Pod.
    let places = [&cluster.client, cluster.nodes[0].host()];
    let udp_from = |from| addresses().map(|to| connect_to(from, to, UDP.port, UDP, drains));
    let mut udp = places.map(udp_from);

    cluster.set_ready(drains, false).unwrap();
    cluster
        .wait_for_states(&[(drains, BackendState::Draining), (stays, BackendState::Active)])
        .unwrap();
    for talk in udp.iter_mut().flatten() {
        assert_goes_on(talk, stays);
    }
    wait_for_closed(&agent, 0);
    for (talks, server) in talks.iter_mut().zip([drains, stays]) {
        for talk in talks {
            assert_eq!(talk.server().unwrap(), server.pod.name());
        }
    }

    cluster.lab.remove(SERVICE_FILE).unwrap();
    talks.iter_mut().flatten().for_each(assert_aborted);
    // Datagrams to the VIP itself would reach no endpoint: the agent aborts the UDP sockets of the
    // host. UDP sockets of Pods get no error.
    let [_, of_host] = &mut udp;
    of_host.iter_mut().for_each(assert_aborted);
}

/// A removed Pod keeps its TCP connections while it runs. Datagrams go to another Pod.
#[test]
fn sockets_to_removed_pods_continue_with_forward_option() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("kept", &[0, 1]).unwrap();
    let arguments = ["--on-removed-backend=forward"];
    let agent = cluster.start_agent(SocketLb::All, &arguments).unwrap();
    let [gone, stays] = two(&cluster);
    let places = [&cluster.client, cluster.nodes[0].host()];
    let talks = |port: ServicePort| -> Vec<Talk> {
        let to_all = |from| addresses().map(|to| connect_to(from, to, port.port, port, gone));
        places.into_iter().flat_map(to_all).collect()
    };
    let (mut tcp, mut udp) = (talks(ECHO), talks(UDP));
    cluster.remove_manifest(gone).unwrap();
    cluster.wait_for_active(&[stays]).unwrap();
    for talk in &mut udp {
        assert_goes_on(talk, stays);
    }
    wait_for_closed(&agent, 0);
    for talk in &mut tcp {
        assert_eq!(talk.server().unwrap(), gone.pod.name());
    }
}

#[test]
fn the_next_agent_closes_sockets_of_backends_removed_earlier() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("away", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [gone, stays] = two(&cluster);
    let places = [&cluster.client, cluster.nodes[0].host()];
    let ending = places.map(|from| Talks::through_service(from, gone));
    let mut living = places.map(|from| Talks::through_service(from, stays));
    agent.stop().unwrap();
    cluster.remove_manifest(gone).unwrap();
    living.iter_mut().for_each(Talks::assert_live);

    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    ending.into_iter().for_each(|talks| talks.assert_ended(stays));
    living.iter_mut().for_each(Talks::assert_live);
}

/// The number of TCP sockets that wait for an answer to their SYN.
fn half_open(machine: &Machine) -> usize {
    machine.tcp_sockets(&[TcpState::SynSent]).unwrap()
}

#[test]
fn unanswered_sockets_of_a_removed_backend_end() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("unanswered", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [server] = &cluster.servers[..] else {
        panic!("one server");
    };
    // The Pod has no route to the client.
    let [ipv4, ipv6] = cluster.client.addresses().both();
    let routes = [ipv4, ipv6].map(|client| format!("route add blackhole {client}"));
    server.pod.namespace().ip(&routes).unwrap();
    let mut tcp = addresses().map(|to| cluster.client.talk(to, ECHO.port).unwrap());
    let mut udp = addresses().map(|to| cluster.client.talk_udp(to, UDP.port).unwrap());
    wait_for("half-open connections", PATIENCE, || {
        (half_open(&cluster.client) == tcp.len()).then_some(())
    })
    .unwrap();
    for talk in &mut udp {
        talk.connected().unwrap();
    }

    cluster.remove_manifest(server).unwrap();
    for talk in &mut tcp {
        let event = talk.next_event().unwrap();
        assert_eq!(event, TalkEvent::Error("connect: ConnectionAborted".to_owned()));
    }
    for talk in &mut udp {
        let event = talk.exchange("hello").unwrap();
        assert_eq!(event, TalkEvent::Error("read: ConnectionRefused".to_owned()));
    }
    assert_eq!(half_open(&cluster.client), 0);
}

/// Writes a shell script that starts the agent. Returns its path.
pub(crate) fn agent_by(cluster: &Cluster, script: impl FnOnce(&str) -> String) -> PathBuf {
    let agent = std::env::current_exe().unwrap();
    let agent = agent.ancestors().nth(2).unwrap().join("lb-agent");
    let agent = std::env::var_os("LB_AGENT").map_or(agent, PathBuf::from);
    let program = cluster.lab.manifests().with_file_name("agent-by");
    let script = script(&agent.display().to_string());
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn without_capabilities_only_host_sockets_are_translated() {
    if !require_privileges()
        || !needs(
            "5.14",
            "SO_NETNS_COOKIE: without it all namespaces are treated as Pods'",
        )
    {
        return;
    }
    let cluster = Cluster::new("own", &[0, 1]).unwrap();
    let options = AgentOptions {
        program: Some(agent_by(&cluster, |agent| {
            format!("exec setpriv --bounding-set=-sys_admin,-sys_ptrace {agent} \"$@\"")
        })),
        ..options(SocketLb::All, &[])
    };
    let mut agent = cluster.nodes[0].start_agent(&options).unwrap();
    agent
        .wait_until_logged("lacks CAP_SYS_ADMIN, CAP_SYS_PTRACE")
        .unwrap();
    let [gone, stays] = two(&cluster);
    let [mut of_pod, of_host] =
        [&cluster.client, cluster.nodes[0].host()].map(|from| Talks::through_service(from, gone));

    cluster.remove_manifest(gone).unwrap();
    cluster.wait_for_active(&[stays]).unwrap();
    // The agent closes UDP sockets too, because it cannot connect them again.
    let mut of_host: Vec<Talk> = of_host.connections.into_iter().chain(of_host.datagrams).collect();
    of_host.iter_mut().for_each(assert_aborted);
    wait_for_closed(&agent, of_host.len());
    // Connections of Pods are translated at their devices.
    for talk in &mut of_pod.connections {
        talk.expect_reset().unwrap();
    }
    for talk in &mut of_pod.datagrams {
        assert_goes_on(talk, stays);
    }
}

#[test]
fn sockets_of_the_host_end_if_only_they_are_translated() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("host", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::Host, &[]).unwrap();
    let [gone, stays] = two(&cluster);
    let host = cluster.nodes[0].host();
    let ending = Talks::through_service(host, gone);
    let mut living = Talks::through_service(host, stays);
    let number = ending.connections.len();
    cluster.remove_manifest(gone).unwrap();
    ending.assert_ended(stays);
    living.assert_live();
    wait_for_closed(&agent, number);
}

/// Unconnected sockets choose another backend with their next datagram.
#[test]
fn unconnected_udp_sockets_choose_another_backend() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("unconnected", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [gone, stays] = two(&cluster);
    let client = || cluster.nodes[0].host().udp(vips()[0], UDP.port);
    let clients = [(); 4].map(|()| {
        let client = client().count(1_000_000).interval(Duration::from_millis(5));
        client.start().unwrap()
    });
    // At least one of them uses the Pod that is removed.
    let _sockets = client().sockets(20).run().unwrap();
    cluster.remove_manifest(gone).unwrap();
    cluster.wait_for_active(&[stays]).unwrap();
    let report = client().sockets(20).run().unwrap();
    assert_eq!(report.answers.into_keys().collect::<Vec<_>>(), [stays.pod.name()]);
    for client in clients {
        let report = client.stop().unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
    }
    wait_for_closed(&agent, 0);
    // Rows of these sockets and of closed sockets are not needed any more.
    let maps = SocketMaps::open(&Pins::new(cluster.nodes[0].pin_path()).maps()).unwrap();
    wait_for("the rows of the removed backend to be deleted", PATIENCE, || {
        maps.stranded().unwrap().is_empty().then_some(())
    })
    .unwrap();
}

/// The number of socket rows in the first node's maps.
fn socket_rows(cluster: &Cluster) -> usize {
    let maps = LiveMaps::open(&Pins::new(cluster.nodes[0].pin_path()).maps()).unwrap();
    maps.ipv4().sockets().unwrap().len() + maps.ipv6().sockets().unwrap().len()
}

#[test]
fn closed_sockets_leave_no_rows() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("closed", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let host = cluster.nodes[0].host();
    let mut talks = Talks::through_service(host, &cluster.servers[0]);
    talks.assert_live();
    let connected = socket_rows(&cluster);
    // UDP sockets have three rows each, whether they are connected or not.
    assert_eq!(connected, talks.connections.len() + 3 * talks.datagrams.len());
    for to in addresses() {
        let client = host.udp(to, UDP.port).count(1_000_000);
        let client = client.interval(Duration::from_millis(5)).start().unwrap();
        wait_for("three more rows", PATIENCE, || {
            (socket_rows(&cluster) == connected + 3).then_some(())
        })
        .unwrap();
        let report = client.stop().unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        wait_for("the rows of connected sockets only", PATIENCE, || {
            (socket_rows(&cluster) == connected).then_some(())
        })
        .unwrap();
    }
    talks.assert_live();
    drop(talks);
    wait_for("no rows", PATIENCE, || (socket_rows(&cluster) == 0).then_some(())).unwrap();
}

/// The `connect` of a UDP socket succeeds. Its datagrams are refused until there is an endpoint.
#[test]
fn a_udp_socket_connects_to_a_service_without_endpoints() {
    if !require_privileges() {
        return;
    }
    let mut cluster = Cluster::new("nobody-yet", &[]).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let connect = |from: &Machine, to: IpAddr, port| {
        let mut talk = from.talk_udp(to, port).unwrap();
        let (local, peer) = talk.connected().unwrap();
        assert_eq!(peer, (to, port).into());
        let own = from.addresses().both();
        assert!(own.contains(&local.ip().to_canonical()), "{local}");
        talk
    };
    let places = || [&cluster.client, cluster.nodes[0].host()].into_iter();
    let mut waiting = Vec::new();
    for from in places() {
        for to in addresses() {
            for port in [UDP.port, UNKNOWN_PORT] {
                let event = connect(from, to, port).exchange("hello").unwrap();
                assert_eq!(
                    event,
                    TalkEvent::Error("read: ConnectionRefused".to_owned()),
                    "{to}"
                );
            }
            waiting.push(connect(from, to, UDP.port));
        }
    }
    cluster.add_server(0).unwrap();
    let server = &cluster.servers[0];
    cluster.wait_for_active(&[server]).unwrap();
    for talk in &mut waiting {
        wait_for("a socket to be connected again", PATIENCE, || {
            let log = agent.log();
            log.contains("connected sockets without a backend").then_some(())
        })
        .unwrap();
        assert_eq!(talk.server().unwrap(), server.pod.name());
    }
    drop(waiting);
    wait_for("no rows", PATIENCE, || (socket_rows(&cluster) == 0).then_some(())).unwrap();
}

/// The Service has a Pod, but not on this node, as its traffic policy requires. Other changes do
/// not help, and the socket keeps its peer address in the meantime.
#[test]
fn a_udp_socket_waits_for_a_pod_that_the_policy_allows() {
    if !require_privileges()
        || !needs(
            "5.14",
            "SO_NETNS_COOKIE: the lab's nodes are not the initial namespace",
        )
    {
        return;
    }
    let mut cluster = Cluster::new("policy-waits", &[1]).unwrap();
    let manifest = || service().internal_traffic_policy("Local");
    cluster.lab.apply(SERVICE_FILE, manifest()).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let host = cluster.nodes[0].host().clone();
    let mut waiting = addresses().map(|to| {
        let mut talk = host.talk_udp(to, UDP.port).unwrap();
        assert_eq!(talk.connected().unwrap().1, (to, UDP.port).into());
        talk
    });
    let rows = socket_rows(&cluster);
    assert_eq!(rows, waiting.len());
    // Another Pod that the policy does not allow. The socket closer has processed it when it takes
    // the next order.
    cluster.add_server(2).unwrap();
    let elsewhere: Vec<&Server> = cluster.servers.iter().collect();
    cluster.wait_for_active(&elsewhere).unwrap();
    assert_eq!(socket_rows(&cluster), rows);
    cluster.add_server(0).unwrap();
    let here = cluster.servers.last().unwrap();
    wait_for("sockets to be connected again", PATIENCE, || {
        agent
            .log()
            .contains("connected sockets without a backend")
            .then_some(())
    })
    .unwrap();
    for talk in &mut waiting {
        assert_goes_on(talk, here);
    }
    assert_eq!(
        agent.log().matches("connected sockets without a backend").count(),
        1
    );
}

/// A socket has one backend per frontend, with `send` and with `sendto`.
#[test]
fn a_connected_socket_keeps_its_backend_with_sendto() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("named", &[0, 0, 0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    for from in [&cluster.client, cluster.nodes[0].host()] {
        for to in addresses() {
            for _ in 0..5 {
                let mut talk = from.talk_udp_named(to, UDP.port).unwrap();
                talk.connected().unwrap();
                let server = talk.server().unwrap();
                for _ in 0..4 {
                    assert_eq!(talk.server().unwrap(), server);
                }
            }
        }
    }
}

/// Two Services share a Pod. A client uses one socket for both of them and for the Pod itself.
#[test]
fn answers_come_from_the_requested_address() {
    if !require_privileges() {
        return;
    }
    let services = [Published::new("first", 41), Published::new("second", 42)];
    let cluster = Cluster::new("names", &[0]).unwrap();
    let server = &cluster.servers[0];
    for service in services {
        let ports = [UDP.without_node_port()];
        cluster.publish(service, &ports, &[server.place()]).unwrap();
    }
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let host = cluster.nodes[0].host();
    for from in [&cluster.client, host] {
        for (index, pod) in server.pod.addresses().both().into_iter().enumerate() {
            let [first, second] =
                services.map(|service| SocketAddr::new(service.addresses()[index], UDP.port));
            let itself = SocketAddr::new(pod, UDP.target_port);
            let mut asked = vec![first, second, first, second];
            if std::ptr::eq(from, host) {
                asked.extend([itself, first, itself, second]);
            }
            let mut asker = from.asker(pod).unwrap();
            for to in asked {
                assert_eq!(asker.ask(to).unwrap(), (server.pod.name().to_owned(), to));
            }
        }
    }
}
