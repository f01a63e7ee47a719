//! Programs of others on the devices of a node: the agent's programs run first, whatever the other
//! programs return.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::lab::cluster::{HTTP, vips};
use lb_tests::lab::{
    Attached, Cluster, ForeignHook, ForeignPrograms, ForeignVerdict, Machine, SocketLb, require_privileges,
    wait_for,
};

/// Longer than the interval at which the agent checks the order without a notification.
const PATIENCE: Duration = Duration::from_secs(30);

/// The number of attached programs of others: both directions of two devices.
const PROGRAMS: usize = 4;

/// Attaches programs of others to the client's device and to the network's.
fn attach(cluster: &Cluster, verdict: ForeignVerdict, at: ForeignHook) -> ForeignPrograms {
    let host = cluster.nodes[0].host().namespace();
    let devices = [cluster.client.far_device(), "eth0"];
    cluster.lab.attach_foreign(host, &devices, verdict, at).unwrap()
}

/// The programs of others in the output of `status`.
fn foreign(cluster: &Cluster) -> Vec<serde_json::Value> {
    let status = cluster.nodes[0].agent_command("status", &["-o", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["foreign"].as_array().unwrap().clone()
}

/// Waits until there are `count` programs of others, all at these hooks and after the agent's.
#[track_caller]
fn wait_until_behind(cluster: &Cluster, hooks: [&str; 2], count: usize) {
    wait_for("the programs of others after the agent's", PATIENCE, || {
        let behind = |program: &serde_json::Value| {
            hooks.iter().any(|hook| program["hook"] == *hook) && program["order"] == "after"
        };
        let found = foreign(cluster);
        (found.len() == count && found.iter().all(behind)).then_some(())
    })
    .unwrap();
}

fn routes(cluster: &Cluster) -> [(&Machine, IpAddr, u16); 4] {
    let [vip4, vip6] = vips();
    let [node4, node6] = cluster.nodes[0].host().addresses().both();
    let port = HTTP.node_port.unwrap();
    [
        (&cluster.client, vip4, HTTP.port),
        (&cluster.client, vip6, HTTP.port),
        (&cluster.outside, node4, port),
        (&cluster.outside, node6, port),
    ]
}

/// Asserts that requests from inside and outside are answered, or that none is if the other
/// programs drop everything that the agent's programs pass.
#[track_caller]
fn assert_served(cluster: &Cluster, verdict: ForeignVerdict) {
    for (from, to, port) in routes(cluster) {
        if verdict == ForeignVerdict::Drop {
            let timeout = Duration::from_millis(100);
            let report = from.http(to, port).timeout(timeout).run().unwrap();
            assert_eq!(report.answered(), 0, "{to}: {report:?}");
        } else {
            let report = from.http(to, port).count(20).run().unwrap();
            assert_eq!(report.answered(), 20, "{verdict:?}: {to}: {report:?}");
            assert_eq!(report.answers.len(), 2, "{verdict:?}: {to}: {report:?}");
        }
    }
}

/// The agent's arguments, the place where other programs are attached with the same mechanism, and
/// the names of these hooks.
const MECHANISMS: [(&[&str], ForeignHook, [&str; 2]); 2] = [
    (
        &["--xdp=off"],
        ForeignHook::TcxHead,
        ["tcx-ingress", "tcx-egress"],
    ),
    (
        &["--xdp=off", "--tc=clsact"],
        ForeignHook::ClsactFirst,
        ["clsact-ingress", "clsact-egress"],
    ),
];

#[test]
fn our_programs_run_before_those_attached_earlier() {
    if !require_privileges() {
        return;
    }
    for (arguments, at, hooks) in MECHANISMS {
        for verdict in ForeignVerdict::ALL {
            let cluster = Cluster::new("order-before", &[0, 1]).unwrap();
            let _foreign = attach(&cluster, verdict, at);
            let _agent = cluster.start_agent(SocketLb::Off, arguments).unwrap();
            wait_until_behind(&cluster, hooks, PROGRAMS);
            assert_served(&cluster, verdict);
        }
    }
}

#[test]
fn our_programs_move_before_programs_attached_later() {
    if !require_privileges() {
        return;
    }
    for (arguments, at, hooks) in MECHANISMS {
        for verdict in ForeignVerdict::ALL {
            let cluster = Cluster::new("order-after", &[0, 1]).unwrap();
            let agent = cluster.start_agent(SocketLb::Off, arguments).unwrap();
            let foreign = attach(&cluster, verdict, at);
            // The agent checks the order immediately after a change of the devices.
            let host = cluster.nodes[0].host().namespace();
            host.ip(&["link add inner0 type veth peer name inner1"]).unwrap();
            wait_until_behind(&cluster, hooks, PROGRAMS);
            assert_served(&cluster, verdict);
            let is_said = agent.log().contains("before the programs of others again");
            assert!(is_said, "{}", agent.log());

            // The next agent also runs before programs that were attached while no agent ran.
            agent.kill();
            drop(foreign);
            let _foreign = attach(&cluster, verdict, at);
            let _agent = cluster.start_agent(SocketLb::Off, arguments).unwrap();
            // Filters are not removed with their handle: they stay on their devices.
            let count = if at == ForeignHook::TcxHead {
                PROGRAMS
            } else {
                2 * PROGRAMS
            };
            wait_until_behind(&cluster, hooks, count);
            assert_served(&cluster, verdict);
        }
    }
}

/// The agent's programs move to the head without an interruption.
#[test]
fn no_request_fails_while_our_programs_move() {
    if !require_privileges() {
        return;
    }
    for (arguments, at, hooks) in MECHANISMS {
        let cluster = Cluster::new("order-gap", &[0, 1]).unwrap();
        let _agent = cluster.start_agent(SocketLb::Off, arguments).unwrap();
        let clients = routes(&cluster).map(|(from, to, port)| {
            let client = from.http(to, port).count(1_000_000).concurrency(2);
            client.interval(Duration::from_millis(2)).start().unwrap()
        });
        let _foreign = attach(&cluster, ForeignVerdict::Continue, at);
        wait_until_behind(&cluster, hooks, PROGRAMS);
        for client in clients {
            let report = client.stop().unwrap();
            assert!(report.errors.is_empty(), "{report:?}");
            assert_ne!(report.answered(), 0);
        }
        // The agent leaves no second program or filter: each direction has one of the agent and one
        // of others.
        let host = cluster.nodes[0].host().namespace();
        let expected = match at {
            ForeignHook::TcxHead => Attached {
                tcx_ingress: 2,
                tcx_egress: 2,
                ..Attached::NOTHING
            },
            ForeignHook::ClsactFirst => Attached {
                clsact_ingress: 2,
                clsact_egress: 2,
                ..Attached::NOTHING
            },
        };
        for device in [cluster.client.far_device(), "eth0"] {
            assert_eq!(host.attached(device).unwrap(), expected, "{device}");
        }
    }
}

/// A filter that does not match all packets occupies the first priority. The agent's filter gets
/// the next one, and the agent logs that.
#[test]
fn an_occupied_filter_priority_is_reported() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("order-taken", &[0, 1]).unwrap();
    let host = cluster.nodes[0].host();
    host.exec("tc", &["qdisc", "add", "dev", "eth0", "clsact"])
        .unwrap();
    for direction in ["ingress", "egress"] {
        let place = [
            "filter", "add", "dev", "eth0", direction, "protocol", "ip", "prio", "1",
        ];
        // A classic BPF program that never matches.
        let filter = [&place[..], &["bpf", "bytecode", "1,6 0 0 0,"]].concat();
        host.exec("tc", &filter).unwrap();
    }
    let agent = cluster
        .start_agent(SocketLb::Off, &["--xdp=off", "--tc=clsact"])
        .unwrap();
    assert_served(&cluster, ForeignVerdict::Continue);
    assert!(
        agent.log().contains("filters of others run before"),
        "{}",
        agent.log()
    );
    let shown: Vec<_> = foreign(&cluster)
        .into_iter()
        .map(|program| {
            (
                program["name"].clone(),
                program["order"].clone(),
                program["id"].clone(),
            )
        })
        .collect();
    let expected = ("bpf".into(), "before".into(), serde_json::Value::Null);
    assert_eq!(shown, [expected.clone(), expected]);
}

/// `check` and `status` list programs of others as tables and as JSON, including those at XDP.
#[test]
fn commands_list_programs_of_others() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("order-shown", &[0]).unwrap();
    let node = &cluster.nodes[0];
    let _foreign = attach(&cluster, ForeignVerdict::Continue, ForeignHook::TcxHead);
    let _xdp = cluster
        .lab
        .attach_foreign_xdp(node.host().namespace(), "eth0")
        .unwrap();
    let check = |arguments: &[&str]| node.agent_command("check", arguments).unwrap();
    let name = ForeignVerdict::Continue.program();
    let features: Vec<serde_json::Value> = serde_json::from_str(&check(&["-o", "json"])).unwrap();
    let hooks = |order: &str, programs: &[serde_json::Value]| {
        let with_order = programs.iter().filter(|program| program["order"] == order);
        let mut hooks: Vec<String> = with_order
            .map(|program| {
                assert!(program["id"].is_u64(), "{program}");
                format!("{} {} {}", program["device"], program["hook"], program["name"]).replace('"', "")
            })
            .collect();
        hooks.sort_unstable();
        hooks
    };
    let feature = features
        .iter()
        .find(|feature| feature["name"] == "devices without programs of others")
        .unwrap();
    assert_eq!(feature["state"], "absent");
    let client = cluster.client.far_device();
    let at_tcx = [
        format!("eth0 tcx-egress {name}"),
        format!("eth0 tcx-ingress {name}"),
        format!("{client} tcx-egress {name}"),
        format!("{client} tcx-ingress {name}"),
    ];
    let at_xdp = "eth0 xdp lb_empty_xdp".to_owned();
    let programs = feature["programs"].as_array().unwrap();
    let mut all = [at_tcx.as_slice(), std::slice::from_ref(&at_xdp)].concat();
    all.sort_unstable();
    assert_eq!(hooks("alone", programs), all);
    assert!(check(&[]).contains(&format!("tcx egress of {client}, position 1")));

    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    assert_eq!(hooks("after", &foreign(&cluster)), at_tcx);
    assert_eq!(hooks("before", &foreign(&cluster)), [at_xdp]);
    let status = node.agent_command("status", &[]).unwrap();
    assert!(
        status.contains("xdp of eth0, position 1, before ours"),
        "{status}"
    );
    assert!(
        status.contains("tcx ingress of eth0, position 2, after ours"),
        "{status}"
    );
}
