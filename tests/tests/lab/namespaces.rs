//! Whose sockets are translated: those of the node and of Pods, but not those in other network
//! namespaces.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_agent::datapath::live::LiveMaps;
use lb_agent::datapath::namespaces::{NamespaceCounts, NamespaceTable};
use lb_agent::datapath::pins::Pins;
use lb_tests::kernel::needs;
use lb_tests::lab::cluster::{ECHO, UDP, vips};
use lb_tests::lab::{Attached, Cluster, Machine, Process, SocketLb, Talk, require_privileges, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);
/// No Service uses this port; inside of containers a server listens on it.
const UNKNOWN_PORT: u16 = 4040;

/// Whether the kernel can distinguish network namespaces and a lab can be started.
fn can_run() -> bool {
    require_privileges()
        && needs(
            "5.14",
            "SO_NETNS_COOKIE: without it all namespaces are treated as Pods'",
        )
}

/// The Service's addresses, and its IPv4 address as an IPv4-mapped IPv6 address.
fn addresses() -> [IpAddr; 3] {
    let [ipv4, ipv6] = vips();
    let mapped = match ipv4 {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(_) => ipv4,
    };
    [ipv4, ipv6, mapped]
}

fn counts(cluster: &Cluster) -> NamespaceCounts {
    let maps = Pins::new(cluster.nodes[0].pin_path()).maps();
    NamespaceTable::counts(&maps).unwrap().unwrap()
}

#[track_caller]
fn wait_for_counts(cluster: &Cluster, at_sockets: usize, left: usize) {
    let expected = NamespaceCounts { at_sockets, left };
    wait_for(&format!("{expected:?}"), PATIENCE, || {
        (counts(cluster) == expected).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", counts(cluster)));
}

/// The numbers of sockets and flows in the first node's maps.
fn remembered(cluster: &Cluster) -> (usize, usize) {
    let maps = LiveMaps::open(&Pins::new(cluster.nodes[0].pin_path()).maps()).unwrap();
    let (ipv4, ipv6) = (maps.ipv4(), maps.ipv6());
    let sockets = ipv4.sockets().unwrap().len() + ipv6.sockets().unwrap().len();
    (sockets, ipv4.flows().unwrap().len() + ipv6.flows().unwrap().len())
}

/// Where connections to the Service are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Sockets,
    Devices,
}

/// Opens one connection to each of the Service's addresses. Asserts that they are translated at
/// `at`, and that `getpeername` returns the Service's address.
#[track_caller]
fn connect(cluster: &Cluster, from: &Machine, at: At) -> Vec<Talk> {
    let (sockets, flows) = remembered(cluster);
    let mut talks = Vec::new();
    for to in addresses() {
        let mut talk = from.talk(to, ECHO.port).unwrap();
        let (_, peer) = talk.connected().unwrap();
        assert_eq!(peer, (to, ECHO.port).into());
        talk.server().unwrap();
        talks.push(talk);
    }
    let expected = match at {
        At::Sockets => (sockets + talks.len(), flows),
        // A connection has an entry for each direction.
        At::Devices => (sockets, flows + 2 * talks.len()),
    };
    assert_eq!(remembered(cluster), expected, "{at:?} of {}", from.name());
    talks
}

/// A container that runs a cluster with the same Service network: the addresses are the container's
/// own.
struct Foreign {
    container: Machine,
    inner_pod: Machine,
    _servers: [Process; 2],
}

impl Foreign {
    fn on_first_node(cluster: &Cluster) -> Self {
        let node = &cluster.nodes[0];
        let container = node.container("box").unwrap();
        let inner_pod = node.inner_pod(&container, "inner").unwrap();
        container.own(&vips()).unwrap();
        let servers = [
            container.serve().echo(ECHO.port).udp(UDP.port),
            container.serve().echo(UNKNOWN_PORT),
        ];
        Self {
            _servers: servers.map(|server| server.start().unwrap()),
            container,
            inner_pod,
        }
    }

    /// Asserts that the agent does not affect sockets inside the container.
    #[track_caller]
    fn assert_left_alone(&self) {
        for from in [&self.container, &self.inner_pod] {
            for to in addresses() {
                for port in [ECHO.port, UNKNOWN_PORT] {
                    let (mut talk, server) = from.connect(to, port).unwrap();
                    assert_eq!(server, self.container.name(), "{to} from {}", from.name());
                    talk.server().unwrap();
                }
                let (_, server) = from.connect_udp(to, UDP.port).unwrap();
                assert_eq!(server, self.container.name(), "{to} from {}", from.name());
            }
            for to in vips().map(|vip| SocketAddr::new(vip, UDP.port)) {
                let answer = from.asker(to.ip()).unwrap().ask(to).unwrap();
                assert_eq!(answer, (self.container.name().to_owned(), to));
            }
        }
    }
}

#[test]
fn traffic_within_a_foreign_namespace_is_left_alone() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::new("foreign", &[0, 1]).unwrap();
    let before = Foreign::on_first_node(&cluster);
    let mut agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    // At sockets: the client and the server of this node. Left to devices: the container. The inner
    // Pod's namespace has no device that leads to the node.
    assert_eq!(
        counts(&cluster),
        NamespaceCounts {
            at_sockets: 2,
            left: 1
        }
    );
    before.assert_left_alone();
    assert_eq!(remembered(&cluster), (0, 0));
    let status = cluster.nodes[0].agent_command("status", &[]).unwrap();
    for row in [
        ["namespaces", "translated", "at", "sockets", "2"],
        ["namespaces", "left", "to", "devices", "1"],
    ] {
        let is_row = |line: &str| line.split_whitespace().eq(row);
        assert!(status.lines().any(is_row), "{status}");
    }
    agent = agent.restart().unwrap();
    before.assert_left_alone();
    drop(agent);
    before.assert_left_alone();
    assert_eq!(remembered(&cluster), (0, 0));
}

/// This also holds before the agent has inspected the namespace.
#[test]
fn a_new_foreign_namespace_is_left_alone() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::new("new-foreign", &[0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let foreign = Foreign::on_first_node(&cluster);
    foreign.assert_left_alone();
    wait_for_counts(&cluster, 2, 1);
    foreign.assert_left_alone();
    assert_eq!(remembered(&cluster), (0, 0));
}

/// Packets that leave a container are translated like those of a Pod, as with kube-proxy.
#[test]
fn traffic_leaving_a_foreign_namespace_is_translated_at_its_device() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::new("container", &[0]).unwrap();
    let container = cluster.nodes[0].container("box").unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    connect(&cluster, &container, At::Devices);
    for to in addresses() {
        container.connect_udp(to, UDP.port).unwrap();
    }
}

#[test]
fn pods_are_recognized_by_their_addresses() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::new("known", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    connect(&cluster, &cluster.client, At::Sockets);
    // No object contains its address, but the node's Pod CIDRs do.
    let late = cluster.nodes[0].pod("late").unwrap();
    wait_for_counts(&cluster, 3, 0);
    let talks = connect(&cluster, &late, At::Sockets);

    // Without the CIDRs, the agent recognizes only Pods whose addresses are in objects.
    cluster.lab.remove("node-node-1.yaml").unwrap();
    wait_for_counts(&cluster, 2, 1);
    connect(&cluster, &late, At::Devices);
    connect(&cluster, &cluster.client, At::Sockets);
    cluster.lab.remove("pod-client.yaml").unwrap();
    wait_for_counts(&cluster, 1, 2);
    connect(&cluster, &cluster.client, At::Devices);
    // Open connections continue.
    for mut talk in talks {
        talk.server().unwrap();
    }
}

#[test]
fn pods_are_recognized_by_the_named_devices() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::new("device", &[0]).unwrap();
    cluster.lab.remove("node-node-1.yaml").unwrap();
    let late = cluster.nodes[0].pod("late").unwrap();
    let _container = cluster.nodes[0].container("box").unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    connect(&cluster, &late, At::Devices);
    drop(agent);
    let named = [
        "--pod-device=lxc-late",
        "--pod-device=lxc-client",
        "--pod-device=lxc-web-*",
    ];
    let _agent = cluster.start_agent(SocketLb::All, &named).unwrap();
    // With these options the container's device gets no programs.
    assert_eq!(
        counts(&cluster),
        NamespaceCounts {
            at_sockets: 3,
            left: 0
        }
    );
    connect(&cluster, &late, At::Sockets);
}

/// A Pod that the agent does not know yet is translated at its device.
#[test]
fn the_first_connection_of_a_new_pod_works() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::new("first", &[0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let host = cluster.nodes[0].host().namespace();
    for index in 1..=5 {
        let pod = cluster.nodes[0].pod(&format!("new-{index}")).unwrap();
        wait_for("programs on the new device", PATIENCE, || {
            (host.attached(pod.far_device()).unwrap() == Attached::TCX).then_some(())
        })
        .unwrap();
        for to in addresses() {
            pod.connect(to, ECHO.port).unwrap();
            pod.connect_udp(to, UDP.port).unwrap();
        }
        wait_for_counts(&cluster, 2 + index, 0);
        pod.connect(vips()[0], ECHO.port).unwrap();
    }
}

/// The rows of namespaces exist before the next agent inspects any. They are deleted with their
/// namespaces.
#[test]
fn namespace_rows_of_pods_outlive_the_agent() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::new("outlives", &[0]).unwrap();
    let late = cluster.nodes[0].pod("late").unwrap();
    let agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    assert_eq!(counts(&cluster).at_sockets, 3);
    let mut talks = connect(&cluster, &late, At::Sockets);
    agent.kill();
    talks.extend(connect(&cluster, &late, At::Sockets));
    let mut agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    assert_eq!(counts(&cluster).at_sockets, 3);
    for _ in 0..3 {
        agent = agent.restart().unwrap();
        talks.extend(connect(&cluster, &late, At::Sockets));
    }
    for talk in &mut talks {
        talk.server().unwrap();
    }
    drop(talks);
    late.namespace().remove().unwrap();
    wait_for_counts(&cluster, 2, 0);
    // An agent that does not translate Pods at their sockets deletes all rows.
    agent.stop().unwrap();
    let _agent = cluster.start_agent(SocketLb::Host, &[]).unwrap();
    assert_eq!(
        counts(&cluster),
        NamespaceCounts {
            at_sockets: 0,
            left: 0
        }
    );
}
