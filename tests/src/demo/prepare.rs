//! The phases before the traffic starts.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::cluster::{Cluster, NODES, SERVICE, SERVICE_FILE};
use super::{Plan, REFRESH, Screen};
use crate::lab::Machine;
use crate::stop::Stop;

/// The time limit for agents to get in sync.
const PATIENCE: Duration = Duration::from_secs(60);

/// Creates the lab.
pub(super) fn build(plan: &Plan, screen: &Screen) -> Result<Cluster> {
    screen.heading("1/8  Two nodes, Pods and clients, each a network namespace of this machine");
    let cluster = Cluster::build(plan.silent.as_deref())?;
    for (name, node) in NODES.iter().zip(&cluster.nodes) {
        let pods = node.pods();
        let pods: Vec<&str> = pods.iter().map(Machine::name).collect();
        screen.print(&place(name, node.host(), &pods.join(", ")));
    }
    screen.print(&place("outside client", &cluster.outside, "routed to the nodes"));
    Ok(cluster)
}

fn place(name: &str, machine: &Machine, remark: &str) -> String {
    let addresses = machine.addresses();
    let [ipv4, ipv6] = addresses.both().map(|address| address.to_string());
    format!("{name:14} {ipv4:12} {ipv6:14} {remark}")
}

/// Writes the manifests and starts the agents.
pub(super) fn start_agents(cluster: &mut Cluster, screen: &Screen, stop: &Stop) -> Result<()> {
    screen.heading("2/8  An lb-agent on each node, which reads ordinary Kubernetes YAML");
    let path = cluster.lab.manifests().join(SERVICE_FILE);
    screen.print(&format!("{}:", path.display()));
    for line in SERVICE.lines() {
        screen.print(&format!("    {line}"));
    }
    cluster.apply_all()?;
    let start = Instant::now();
    cluster.start_agents()?;
    while !cluster.agents_in_sync()? {
        if start.elapsed() > PATIENCE {
            bail!("the agents did not get in sync in time\n{}", cluster.log_tails());
        }
        screen.show("the verifier checks the programs ...".to_owned());
        stop.pause(REFRESH)?;
    }
    screen.keep(&format!(
        "In sync after {:.1} s: programs and maps are in the kernel, and pinned.",
        start.elapsed().as_secs_f32()
    ));
    Ok(())
}
