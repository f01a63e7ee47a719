//! Commands for exploring a lab that was kept.

use std::env;
use std::path::Path;

use super::cluster::{Cluster, NODE_PORT, PORT, VIPS};
use super::screen::Screen;
use crate::lab::Machine;

/// Prints commands to try.
pub(super) fn print(cluster: &Cluster, screen: &Screen) {
    screen.heading("The lab stays until you press Enter here. Try in another terminal, as root:");
    let [vip, _] = VIPS;
    let [node, other] = [&cluster.nodes[0], &cluster.nodes[1]];
    let agent = program("lb-agent");
    let pins = node.pin_path().display();
    let tell = |what: &str, command: String| screen.print(&format!("\n# {what}\n{command}"));
    tell(
        "send a request from the client Pod to the Service",
        format!("{} curl http://{vip}:{PORT}/", enter(&cluster.client)),
    );
    tell(
        "send a request from the outside client to a node",
        format!(
            "{} curl http://{}:{NODE_PORT}/",
            enter(&cluster.outside),
            node.host().addresses().ipv4
        ),
    );
    tell(
        "send requests from a process of the other node, in that node's control group",
        format!(
            "{} --netns {} --cgroup {} http {vip}:{PORT} --count 20",
            program("lab-tool"),
            other.host().namespace().name(),
            other.host().cgroup().display()
        ),
    );
    tell(
        "list the Services in the kernel's maps",
        format!("{agent} services --pin-path {pins}"),
    );
    tell(
        "show what is attached, and how full the maps are",
        format!("{} {agent} status --pin-path {pins}", enter(node.host())),
    );
    tell(
        "change, add or remove a Service or a Pod here: the agents follow immediately",
        format!("ls {}", cluster.lab.manifests().display()),
    );
    for agent in cluster.agents.iter().flatten().take(1) {
        tell(
            "follow an agent's log",
            format!("tail -f {}", agent.log_path().display()),
        );
    }
}

/// `ip netns exec` would also mount another `/sys`, which hides the pins in the BPF file system.
fn enter(machine: &Machine) -> String {
    format!("nsenter --net=/run/netns/{}", machine.namespace().name())
}

/// The path of a program next to this one, relative to the working directory where possible.
fn program(name: &str) -> String {
    let path = env::current_exe().unwrap_or_default().with_file_name(name);
    let here = env::current_dir().unwrap_or_default();
    let short: &Path = path.strip_prefix(here).unwrap_or(&path);
    short.display().to_string()
}
