//! The life cycle of the agent: it is killed and replaced, follows devices, cleans up, and runs
//! next to agents of other nodes.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use lb_agent::datapath::pins::Pins;
use lb_agent::maps::BackendState;
use lb_tests::lab::cluster::{ECHO, HTTP, STREAM, UDP, options, vips};
use lb_tests::lab::report::HttpReport;
use lb_tests::lab::{
    AgentOptions, Attached, Client, Cluster, Machine, Node, SocketLb, Talk, Xdp, require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Asserts that HTTP, UDP and a stream to every VIP are answered.
#[track_caller]
fn assert_works(from: &Machine) {
    for vip in vips() {
        let report = from.http(vip, HTTP.port).count(10).run().unwrap();
        assert_eq!(report.answered(), 10, "{vip}: {report:?}");
        let report = from.udp(vip, UDP.port).sockets(5).count(2).run().unwrap();
        assert_eq!(report.answered(), 10, "{vip}: {report:?}");
        let report = from.stream(vip, STREAM.port).run().unwrap();
        assert_eq!(report.bytes, 1 << 20);
    }
}

fn connect(cluster: &Cluster) -> [Talk; 2] {
    vips().map(|vip| cluster.client.connect(vip, ECHO.port).unwrap().0)
}

#[track_caller]
fn assert_lives(talks: &mut [Talk; 2]) {
    for talk in talks {
        talk.server().unwrap();
    }
}

fn load(from: &Machine) -> [Client<HttpReport>; 2] {
    vips().map(|vip| {
        from.http(vip, HTTP.port)
            .count(1_000_000)
            .concurrency(2)
            .interval(Duration::from_millis(2))
            .start()
            .unwrap()
    })
}

#[track_caller]
fn assert_none_failed(clients: impl IntoIterator<Item = Client<HttpReport>>) {
    for client in clients {
        let report = client.stop().unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_ne!(report.answered(), 0);
    }
}

fn links(node: &Node) -> BTreeSet<String> {
    Pins::new(node.pin_path()).link_names().unwrap()
}

fn attached(cluster: &Cluster, device: &str) -> Attached {
    let host = cluster.nodes[0].host().namespace();
    host.attached(device).unwrap()
}

#[test]
fn traffic_continues_without_the_agent() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let cluster = Cluster::new("killed", &[0, 1]).unwrap();
        let agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let mut talks = connect(&cluster);
        assert_lives(&mut talks);
        let before = cluster.nodes[0].map_image().unwrap();
        let links_before = links(&cluster.nodes[0]);

        agent.kill();
        assert_lives(&mut talks);
        assert_works(&cluster.client);

        // Nothing changed in the meantime: the next agent writes nothing.
        let agent = cluster.start_agent(socket_lb, &[]).unwrap();
        assert_eq!(cluster.nodes[0].map_image().unwrap(), before);
        assert_eq!(links(&cluster.nodes[0]), links_before);
        assert_lives(&mut talks);
        assert_works(&cluster.client);

        let status = agent.stop().unwrap();
        assert!(status.success(), "{status}");
        assert_lives(&mut talks);
        assert_works(&cluster.client);

        // A change without a running agent takes effect when the agent is back; connections stay
        // open.
        let [first, second] = &cluster.servers[..] else {
            panic!("two servers");
        };
        cluster.set_ready(first, false).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        cluster
            .wait_for_states(&[(first, BackendState::Draining), (second, BackendState::Active)])
            .unwrap();
        assert_lives(&mut talks);
        for vip in vips() {
            let report = cluster.client.http(vip, HTTP.port).count(20).run().unwrap();
            assert_eq!(report.answers[second.pod.name()], 20);
        }
    }
}

#[test]
fn no_request_fails_while_the_agent_is_replaced() {
    if !require_privileges() {
        return;
    }
    for arguments in [&[][..], &["--tc=clsact"]] {
        let cluster = Cluster::new("upgrade", &[0, 1]).unwrap();
        let mut agent = cluster.start_agent(SocketLb::Off, arguments).unwrap();
        let inside = load(&cluster.client);
        let nodes = cluster.nodes[0].host().addresses().both();
        let outside = nodes.map(|node| {
            cluster
                .outside
                .http(node, HTTP.node_port.unwrap())
                .count(1_000_000)
                .interval(Duration::from_millis(2))
                .start()
                .unwrap()
        });
        for _ in 0..5 {
            agent = agent.restart().unwrap();
        }
        assert_none_failed(inside.into_iter().chain(outside));
    }
}

/// How often the agent is replaced while answers arrive.
const REPLACEMENTS: u64 = 20;
/// Environment variable with the minimum number of answers that arrive while the agent is replaced.
/// A million takes some minutes.
const ANSWERS_VARIABLE: &str = "LB_TESTS_ANSWERS";
/// The number if the variable is not set.
const ANSWERS: u64 = 40_000;
/// Timeout for the answers of one replacement.
const PATIENCE_FOR_ANSWERS: Duration = Duration::from_secs(120);

fn wanted_answers() -> u64 {
    match std::env::var(ANSWERS_VARIABLE) {
        Ok(number) => number.parse().unwrap(),
        Err(_) => ANSWERS,
    }
}

/// While programs are replaced, an answer may pass an old program and a new one.
#[test]
fn answers_come_from_the_vip_while_the_agent_is_replaced() {
    if !require_privileges() {
        return;
    }
    let wanted = wanted_answers();
    let cluster = Cluster::new("upgrade-names", &[0, 1]).unwrap();
    let mut agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let places = [&cluster.client, cluster.nodes[0].host()];
    let start = |from: &Machine| {
        let client = |vip| from.udp(vip, UDP.port).count(u32::MAX).start();
        vips().map(|vip| (vip, client(vip).unwrap()))
    };
    let clients: Vec<_> = places.into_iter().flat_map(start).collect();
    let received = || {
        places
            .map(|place| place.received_datagrams().unwrap())
            .iter()
            .sum::<u64>()
    };
    for replacement in 1..=REPLACEMENTS {
        agent = agent.restart().unwrap();
        let share = wanted * replacement / REPLACEMENTS;
        wait_for(
            "this replacement's share of answers",
            PATIENCE_FOR_ANSWERS,
            || (received() >= share).then_some(()),
        )
        .unwrap();
    }
    let mut answers = 0;
    for (vip, client) in clients {
        let report = client.stop().unwrap();
        assert!(report.errors.is_empty(), "{vip}: {report:?}");
        assert!(report.answered() > 1000, "{vip}: {report:?}");
        assert_eq!(report.sources, [(vip, UDP.port).into()].into(), "{vip}");
        answers += report.answered();
    }
    println!("{answers} answers while the agent was replaced {REPLACEMENTS} times");
    assert!(answers >= wanted, "{answers} of {wanted}");
}

/// The same with sockets of Pods and of the node.
#[test]
fn no_connect_fails_while_the_agent_is_replaced() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("upgrade-sockets", &[0, 1]).unwrap();
    let mut agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let clients = [&cluster.client, cluster.nodes[0].host()].map(load);
    for _ in 0..5 {
        agent = agent.restart().unwrap();
    }
    assert_none_failed(clients.into_iter().flatten());
}

#[test]
fn programs_follow_added_and_deleted_pod_devices() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("devices", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let node = &cluster.nodes[0];
    let host = node.host().namespace();
    let others = ["tap0", "bridge0", "inner0", "inner1"];
    host.ip(&[
        "tuntap add tap0 mode tap",
        "link add bridge0 type bridge",
        // Both ends are in the node's namespace: the device is not a Pod's.
        "link add inner0 type veth peer name inner1",
        "link set inner0 master bridge0 up",
        "link set tap0 up",
        "link set bridge0 up",
    ])
    .unwrap();
    let before = links(node);

    let late = node.pod("late").unwrap();
    let prefix = format!("{}-", host.device_index(late.far_device()).unwrap());
    let own = || -> usize {
        links(node)
            .iter()
            .filter(|name| name.starts_with(&prefix))
            .count()
    };
    wait_for("programs on the new device", PATIENCE, || {
        (own() == 2).then_some(())
    })
    .unwrap();
    assert_eq!(attached(&cluster, late.far_device()), Attached::TCX);
    assert_works(&late);
    for device in others {
        assert_eq!(attached(&cluster, device), Attached::NOTHING, "{device}");
    }

    host.ip(&[format!("link delete {}", late.far_device())]).unwrap();
    wait_for("its links to be removed", PATIENCE, || (own() == 0).then_some(())).unwrap();
    assert_eq!(links(node), before);
    assert_works(&cluster.client);
}

#[test]
fn clsact_filters_serve_traffic_and_outlive_the_agent() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("clsact", &[0, 1]).unwrap();
    let client = cluster.client.far_device();
    let agent = cluster.start_agent(SocketLb::Off, &["--tc=clsact"]).unwrap();
    assert_works(&cluster.client);
    let mut talks = connect(&cluster);
    for device in [client, "eth0"] {
        assert_eq!(attached(&cluster, device), Attached::CLSACT, "{device}");
    }
    let agent = agent.restart().unwrap();
    for device in [client, "eth0"] {
        assert_eq!(attached(&cluster, device), Attached::CLSACT, "{device}");
    }
    assert_lives(&mut talks);
    assert_works(&cluster.client);

    // A new Pod is served too. After the agent is killed, the filters continue to work.
    let late = cluster.nodes[0].pod("late").unwrap();
    wait_for("filters on the new device", PATIENCE, || {
        (attached(&cluster, late.far_device()) == Attached::CLSACT).then_some(())
    })
    .unwrap();
    assert_works(&late);
    agent.kill();
    assert_works(&late);
}

/// An upgrade may change how programs are attached. The new agent detaches what was attached in the
/// old mode.
#[test]
fn another_attach_mode_replaces_the_old_programs() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("other-way", &[0, 1]).unwrap();
    let _peer = cluster.lab.prepare_for_xdp(&cluster.nodes[0]).unwrap();
    let client = cluster.client.far_device();
    let clients = load(&cluster.client);
    let start = |tc: &str, xdp| {
        let options = AgentOptions {
            xdp: Some(xdp),
            ..options(SocketLb::Off, &[tc])
        };
        cluster.nodes[0].start_agent(&options).unwrap()
    };
    // Only the first start has a gap without service.
    let agent = start("--tc=auto", Xdp::Generic);
    drop(clients);
    let clients = load(&cluster.client);
    agent.kill();
    for (tc, xdp, expected) in [
        ("--tc=clsact", Xdp::Native, Attached::CLSACT),
        ("--tc=auto", Xdp::Generic, Attached::TCX),
        ("--tc=clsact", Xdp::Off, Attached::CLSACT),
        ("--tc=auto", Xdp::Native, Attached::TCX),
    ] {
        let agent = start(tc, xdp);
        for device in [client, "eth0"] {
            assert_eq!(attached(&cluster, device), expected, "{tc}: {device}");
        }
        let xdp_links: Vec<_> = links(&cluster.nodes[0])
            .into_iter()
            .filter(|name| name.contains("xdp"))
            .collect();
        let expected = usize::from(xdp != Xdp::Off);
        assert_eq!(xdp_links.len(), expected, "{xdp}: {xdp_links:?}");
        agent.kill();
    }
    assert_none_failed(clients);
}

#[test]
fn a_second_agent_waits_and_cleanup_refuses_while_an_agent_runs() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("two-agents", &[0, 1]).unwrap();
    let node = &cluster.nodes[0];
    let first = cluster.start_agent(SocketLb::All, &[]).unwrap();
    assert_works(&cluster.client);
    let clients = load(&cluster.client);
    let mut second = node.start_agent_unready(&options(SocketLb::All, &[])).unwrap();
    second.wait_until_logged("another agent uses the pins").unwrap();

    let error = format!("{:#}", node.agent_command("cleanup", &[]).unwrap_err());
    assert!(error.contains("--force"), "{error}");
    assert!(!second.is_in_sync());
    first.kill();
    second.wait_until_logged("in sync").unwrap();
    assert_none_failed(clients);
    assert_works(&cluster.client);

    // What another program has pinned there stays.
    let foreign = node.pin_path().join("globals");
    std::fs::create_dir(&foreign).unwrap();
    let text = node.agent_command("cleanup", &["--force"]).unwrap();
    assert!(text.contains("which lb-agent did not create"), "{text}");
    assert!(foreign.exists());
    assert_eq!(attached(&cluster, "eth0"), Attached::NOTHING);
    second.kill();
    node.agent_command("cleanup", &[]).unwrap();
    std::fs::remove_dir(&foreign).unwrap();
    node.agent_command("cleanup", &[]).unwrap();
    assert!(!node.pin_path().exists());
}

#[test]
fn cleanup_removes_pins_and_programs() {
    if !require_privileges() {
        return;
    }
    for tc in ["--tc=auto", "--tc=clsact"] {
        let cluster = Cluster::new("cleanup", &[0, 1]).unwrap();
        let node = &cluster.nodes[0];
        let agent = cluster.start_agent(SocketLb::All, &[tc]).unwrap();
        assert_works(&cluster.client);
        agent.kill();
        node.agent_command("cleanup", &[]).unwrap();

        assert!(!node.pin_path().exists());
        for device in [cluster.client.far_device(), "eth0"] {
            assert_eq!(attached(&cluster, device), Attached::NOTHING, "{tc}: {device}");
        }
        for server in &cluster.servers {
            for pod in server.pod.addresses().both() {
                let client = cluster.client.http(pod, HTTP.target_port);
                assert_eq!(client.count(5).run().unwrap().answered(), 5);
            }
        }
        for vip in vips() {
            let report = cluster.client.http(vip, HTTP.port).run().unwrap();
            assert_eq!(report.answered(), 0, "{tc}: {report:?}");
        }
        // A second cleanup finds nothing, which is not an error.
        node.agent_command("cleanup", &[]).unwrap();
        let _agent = cluster.start_agent(SocketLb::All, &[tc]).unwrap();
        assert_works(&cluster.client);
    }
}

#[test]
fn agents_of_two_nodes_do_not_affect_each_other() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("neighbours", &[0, 1]).unwrap();
    let other = cluster.nodes[1].pod("other").unwrap();
    let [first, second, _] = &cluster.nodes;
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let agents = [first, second].map(|node| node.start_agent(&options(socket_lb, &[])).unwrap());
        assert_works(&cluster.client);
        assert_works(&other);
        for node in [first, second] {
            for address in node.host().addresses().both() {
                let port = HTTP.node_port.unwrap();
                let report = cluster.outside.http(address, port).count(40).run().unwrap();
                assert_eq!(report.answered(), 40, "{report:?}");
                assert_eq!(report.answers.len(), 2, "{report:?}");
            }
        }
        // The NodePort of another node is served by that node's agent.
        for address in second.host().addresses().both() {
            let port = HTTP.node_port.unwrap();
            let report = cluster.client.http(address, port).count(10).run().unwrap();
            assert_eq!(report.answered(), 10, "{report:?}");
        }

        let clients = load(&other);
        let [agent, _other_agent] = agents;
        agent.kill();
        first.agent_command("cleanup", &[]).unwrap();
        let _agent = first.start_agent(&options(socket_lb, &[])).unwrap();
        assert_none_failed(clients);
        assert_works(&cluster.client);
    }
}
