//! Privileges of the agent and its commands: what they need, and no more.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use lb_tests::lab::{Cluster, SocketLb, require_privileges};

const PATIENCE: Duration = Duration::from_secs(10);

/// The path of the agent's program that the lab uses.
fn agent_program() -> PathBuf {
    let running = std::env::current_exe().unwrap();
    running.ancestors().nth(2).unwrap().join("lb-agent")
}

#[test]
fn commands_name_the_capabilities_that_they_lack() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("unprivileged", &[]).unwrap();
    let node = &cluster.nodes[0];
    let program = agent_program();
    let manifests = cluster.lab.manifests().to_str().unwrap();
    for (command, arguments, lacks) in [
        ("run", vec!["--manifests", manifests], "CAP_NET_ADMIN"),
        ("cleanup", vec![], "CAP_NET_ADMIN"),
        ("status", vec![], "CAP_BPF"),
        ("services", vec![], "CAP_BPF"),
        ("connections", vec![], "CAP_BPF"),
        ("affinity", vec!["list"], "CAP_BPF"),
        ("check", vec![], "CAP_NET_ADMIN"),
    ] {
        let unprivileged = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let program = [program.to_str().unwrap(), command];
        let arguments: Vec<&str> = [&unprivileged[..], &program, &arguments].concat();
        let mut process = node.host().start("setpriv", &arguments).unwrap();
        let status = process.wait(PATIENCE).unwrap();
        let said = process.output_so_far() + &process.log();
        assert_eq!(status.code(), Some(1), "{command}: {said}");
        assert!(said.contains(lacks), "{command}: {said}");
    }
    assert!(!node.pin_path().exists());
}

/// The name and the effective capabilities of each thread of a process.
fn threads(process: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let thread = |task: PathBuf| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        let value = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap().trim().to_owned()
        };
        let set = |name: &str| u64::from_str_radix(&value(name), 16).unwrap();
        let held = set("CapEff:");
        assert_eq!([set("CapPrm:"), set("CapBnd:")], [held; 2], "{status}");
        assert_eq!([set("CapInh:"), set("CapAmb:")], [0; 2], "{status}");
        (value("Name:"), held)
    };
    tasks.map(|task| thread(task.unwrap().path())).collect()
}

#[test]
fn the_agent_drops_capabilities_that_it_does_not_need() {
    if !require_privileges() {
        return;
    }
    // Capability numbers.
    let [net_admin, sys_ptrace, sys_admin, perfmon, bpf] = [12, 19, 21, 38, 39].map(|number| 1_u64 << number);
    let cluster = Cluster::new("capabilities", &[0]).unwrap();
    let all = net_admin | sys_ptrace | sys_admin;
    for (socket_lb, searches) in [
        (SocketLb::All, vec![("pod-finder", all), ("socket-closer", all)]),
        (
            SocketLb::Host,
            vec![("socket-closer", net_admin | sys_ptrace | bpf)],
        ),
        (SocketLb::Off, vec![]),
    ] {
        let mut agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let threads = threads(agent.process().pid());
        let is_search = |name: &str| ["pod-finder", "socket-closer"].contains(&name);
        let (mut searching, others): (Vec<_>, Vec<_>) = threads
            .iter()
            .map(|(name, held)| (name.as_str(), *held))
            .partition(|(name, _)| is_search(name));
        searching.sort_unstable();
        assert_eq!(searching, searches, "{socket_lb}");
        assert!(!others.is_empty());
        for (name, held) in others {
            assert_eq!(held, net_admin | perfmon | bpf, "{socket_lb}: {name}");
        }
        agent.stop().unwrap();
    }
}
