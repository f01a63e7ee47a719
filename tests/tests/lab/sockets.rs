//! Sockets that were translated at `connect` end when their backend is removed, and no others.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use lb_agent::datapath::live::LiveMaps;
use lb_agent::datapath::pins::Pins;
use lb_agent::datapath::sockets::SocketMaps;
use lb_agent::maps::BackendState;
use lb_tests::lab::cluster::{ECHO, SERVICE_FILE, Server, UDP, options, vips};
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{
    Agent, AgentOptions, Cluster, Machine, ServicePort, SocketLb, Talk, TcpState, require_privileges,
    wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// The Service's addresses, and the IPv4 one as an IPv6 socket can name it.
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

/// Finds that a socket ended without a word from its owner.
#[track_caller]
fn assert_aborted(talk: &mut Talk) {
    let event = talk.next_event().unwrap();
    assert_eq!(event, TalkEvent::Error("read: ConnectionAborted".to_owned()));
}

/// Connected sockets of all kinds.
struct Talks {
    of: String,
    talks: Vec<Talk>,
}

impl Talks {
    /// To a Pod, through the Service.
    #[track_caller]
    fn through_service(from: &Machine, server: &Server) -> Self {
        let mut talks = Vec::new();
        for to in addresses() {
            for port in [ECHO, UDP] {
                talks.push(connect_to(from, to, port.port, port, server));
            }
        }
        Self {
            of: server.pod.name().to_owned(),
            talks,
        }
    }

    /// To a Pod's own addresses.
    #[track_caller]
    fn straight(from: &Machine, server: &Server) -> Self {
        let [ipv4, ipv6] = server.pod.addresses().both();
        let mut talks = Vec::new();
        for to in [ipv4, ipv6, mapped(ipv4)] {
            for way in [ECHO, UDP] {
                talks.push(connect_to(from, to, way.target_port, way, server));
            }
        }
        Self {
            of: server.pod.name().to_owned(),
            talks,
        }
    }

    #[track_caller]
    fn assert_live(&mut self) {
        for talk in &mut self.talks {
            assert_eq!(talk.server().unwrap(), self.of);
        }
    }

    #[track_caller]
    fn assert_aborted(mut self) {
        self.talks.iter_mut().for_each(assert_aborted);
    }
}

/// By the protocol of this port.
#[track_caller]
fn connect_to(from: &Machine, to: IpAddr, number: u16, port: ServicePort, server: &Server) -> Talk {
    match port.protocol {
        "UDP" => from.connect_udp_to(&server.pod, to, number).unwrap(),
        _ => from.connect_to(&server.pod, to, number).unwrap(),
    }
}

/// Waits until the agent has closed this many sockets in all, and asserts that it closed no more.
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
fn sockets_of_a_removed_backend_end_at_once_and_no_others() {
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
    let number = to_gone.iter().map(|talks| talks.talks.len()).sum();

    cluster.remove_manifest(gone).unwrap();
    to_gone.into_iter().for_each(Talks::assert_aborted);
    to_stays.iter_mut().for_each(Talks::assert_live);
    straight.iter_mut().for_each(Talks::assert_live);
    wait_for_closed(&agent, number);

    // The same address again is another backend: what was remembered of the first one is not true of it.
    cluster.set_ready(gone, true).unwrap();
    cluster.wait_for_active(&[gone, stays]).unwrap();
    let mut to_gone = places.map(|from| Talks::through_service(from, gone));
    cluster.remove_manifest(stays).unwrap();
    to_stays.into_iter().for_each(Talks::assert_aborted);
    to_gone.iter_mut().for_each(Talks::assert_live);
    straight.iter_mut().for_each(Talks::assert_live);
    wait_for_closed(&agent, 2 * number);
}

#[test]
fn connections_end_when_the_service_is_removed_and_not_while_a_backend_drains() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("drain", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [drains, stays] = two(&cluster);
    let connect = |server| addresses().map(|to| connect_to(&cluster.client, to, ECHO.port, ECHO, server));
    let mut talks = [drains, stays].map(connect);
    // A flow of datagrams to a Pod that does not serve goes elsewhere: that of a connected socket cannot.
    let udp_to = |server| vips().map(|to| connect_to(&cluster.client, to, UDP.port, UDP, server));
    let [mut udp, mut other_udp] = [drains, stays].map(udp_to);

    cluster.set_ready(drains, false).unwrap();
    cluster
        .wait_for_states(&[(drains, BackendState::Draining), (stays, BackendState::Active)])
        .unwrap();
    udp.iter_mut().for_each(assert_aborted);
    wait_for_closed(&agent, udp.len());
    for (talks, server) in talks.iter_mut().zip([drains, stays]) {
        for talk in talks {
            assert_eq!(talk.server().unwrap(), server.pod.name());
        }
    }

    cluster.lab.remove(SERVICE_FILE).unwrap();
    talks.iter_mut().flatten().for_each(assert_aborted);
    other_udp.iter_mut().for_each(assert_aborted);
}

/// As long as the Pod is there, so are its connections; datagrams are to go elsewhere, and a connected socket's cannot.
#[test]
fn connections_to_removed_pods_go_on_if_asked_for() {
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
    udp.iter_mut().for_each(assert_aborted);
    wait_for_closed(&agent, udp.len());
    for talk in &mut tcp {
        assert_eq!(talk.server().unwrap(), gone.pod.name());
    }
}

#[test]
fn what_was_removed_while_no_agent_ran_is_made_up_for() {
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
    ending.into_iter().for_each(Talks::assert_aborted);
    living.iter_mut().for_each(Talks::assert_live);
}

/// How many TCP sockets wait for an answer to their first packet.
fn half_open(machine: &Machine) -> usize {
    machine.tcp_sockets(&[TcpState::SynSent]).unwrap()
}

#[test]
fn sockets_that_a_removed_backend_never_answered_end_too() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("unanswered", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [server] = &cluster.servers[..] else {
        panic!("one server");
    };
    // It has no way to answer.
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
    udp.iter_mut().for_each(assert_aborted);
    assert_eq!(half_open(&cluster.client), 0);
}

/// A program that starts the agent without these capabilities.
fn agent_without(capabilities: &str, cluster: &Cluster) -> PathBuf {
    let agent = std::env::current_exe().unwrap();
    let agent = agent.ancestors().nth(2).unwrap().join("lb-agent");
    let agent = std::env::var_os("LB_AGENT").map_or(agent, PathBuf::from);
    let program = cluster.lab.manifests().with_file_name("agent-without");
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set={capabilities} {} \"$@\"\n",
        agent.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn without_the_capabilities_the_own_namespace_is_served() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("own", &[0, 1]).unwrap();
    let options = AgentOptions {
        program: Some(agent_without("-sys_admin,-sys_ptrace", &cluster)),
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
    let number = of_host.talks.len();
    of_host.assert_aborted();
    wait_for_closed(&agent, number);
    of_pod.assert_live();
}

#[test]
fn sockets_of_the_host_end_where_only_they_are_translated() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("host", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::Host, &[]).unwrap();
    let [gone, stays] = two(&cluster);
    let host = cluster.nodes[0].host();
    let ending = Talks::through_service(host, gone);
    let mut living = Talks::through_service(host, stays);
    let number = ending.talks.len();
    cluster.remove_manifest(gone).unwrap();
    ending.assert_aborted();
    living.assert_live();
    wait_for_closed(&agent, number);
}

/// Sockets that are not connected choose anew, as ever.
#[test]
fn unconnected_udp_sockets_stay() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("unconnected", &[0, 1]).unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let [gone, stays] = two(&cluster);
    let client = || cluster.client.udp(vips()[0], UDP.port);
    let clients = [(); 4].map(|()| {
        let client = client().count(1_000_000).interval(Duration::from_millis(5));
        client.start().unwrap()
    });
    // At least one of them is with the Pod that goes.
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
    // What was remembered of them and of sockets that are closed is of no use any more.
    let maps = SocketMaps::open(&Pins::new(cluster.nodes[0].pin_path()).maps()).unwrap();
    wait_for("no rows of the removed backend", PATIENCE, || {
        maps.removed().unwrap().is_empty().then_some(())
    })
    .unwrap();
}

/// How many rows of sockets the first node's maps hold.
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
    let mut talks = Talks::through_service(&cluster.client, &cluster.servers[0]);
    talks.assert_live();
    let connected = socket_rows(&cluster);
    assert_eq!(connected, talks.talks.len());
    for to in addresses() {
        // Unconnected ones, each with three rows.
        let client = cluster.client.udp(to, UDP.port).count(1_000_000);
        let client = client.interval(Duration::from_millis(5)).start().unwrap();
        wait_for("three rows more", PATIENCE, || {
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
