//! What a person can do with a lab that was kept.

use std::env;
use std::path::PathBuf;

use super::cluster::{Cluster, NODE_PORT, VIPS};
use super::screen::Screen;
use crate::lab::Machine;

/// Prints commands to try.
pub(super) fn print(cluster: &Cluster, screen: &Screen) {
    screen.heading("The lab stays until you press Enter here. Try in another terminal, as root:");
    let [vip, _] = VIPS;
    let [node, other] = [&cluster.nodes[0], &cluster.nodes[1]];
    let in_node = enter(node.host());
    let agent = program("lb-agent");
    let pins = node.pin_path().display();
    let examples = [
        (
            "the client Pod asks the Service",
            format!("{} curl http://{vip}/", enter(&cluster.client)),
        ),
        (
            "the outside client asks a node",
            format!(
                "{} curl http://{}:{NODE_PORT}/",
                enter(&cluster.outside),
                node.host().addresses().ipv4
            ),
        ),
        (
            "a host process asks the Service (lab-tool also enters the node's control group)",
            format!(
                "{} --netns {} --cgroup {} http {vip}:80 --count 20",
                program("lab-tool"),
                other.host().namespace().name(),
                other.host().cgroup().display()
            ),
        ),
        (
            "what the kernel holds, and how it is attached",
            format!(
                "{in_node} {agent} services --pin-path {pins}\n  {in_node} {agent} status --pin-path {pins}"
            ),
        ),
        (
            "edit, add or remove Services and Pods: the agents notice at once",
            format!("ls {}", cluster.lab.manifests().display()),
        ),
    ];
    for (what, command) in examples {
        screen.print(&format!("# {what}\n  {command}"));
    }
    for agent in cluster.agents.iter().flatten() {
        screen.print(&format!(
            "# log of an agent\n  tail -f {}",
            agent.log_path().display()
        ));
    }
}

/// `ip netns exec` would also mount another `/sys`, which hides what is pinned in the BPF file system.
fn enter(machine: &Machine) -> String {
    format!("nsenter --net=/run/netns/{}", machine.namespace().name())
}

/// A program beside this one; from the working directory if it is below it.
fn program(name: &str) -> String {
    let directory = env::current_exe()
        .ok()
        .and_then(|path| path.parent().map(PathBuf::from))
        .unwrap_or_default();
    directory.join(name).display().to_string()
}
