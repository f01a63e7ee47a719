//! Agents on all nodes of a cluster.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::agent::{Agent, AgentOptions, SocketLb, Xdp};
use super::cluster::{Cluster, options};
use super::node::Node;
use super::xdp_peer::XdpPeer;

/// The agents of all nodes, and the peers that their XDP programs need.
#[derive(Debug)]
pub struct Agents {
    /// In the order of the nodes.
    pub agents: Vec<Agent>,
    _peers: Vec<XdpPeer>,
}

impl Agents {
    /// Kills all agents and starts others in their place, with the same options.
    ///
    /// # Errors
    ///
    /// As [`Agent::restart`].
    pub fn restart(self) -> Result<Self> {
        let agents = self.agents.into_iter().map(Agent::restart);
        Ok(Self {
            agents: agents.collect::<Result<_>>()?,
            ..self
        })
    }
}

impl Cluster {
    /// Starts the agents of all nodes, with XDP on their network devices if a mode is given. Then
    /// resolves the neighbours of all nodes: XDP leaves packets to TC until they are known.
    ///
    /// # Errors
    ///
    /// As [`Node::start_agent`].
    pub fn start_agents(&self, socket_lb: SocketLb, xdp: Option<Xdp>, arguments: &[&str]) -> Result<Agents> {
        let prepared = self.nodes.iter().filter(|_| xdp.is_some());
        let peers = prepared
            .map(|node| self.lab.prepare_for_xdp(node))
            .collect::<Result<_>>()?;
        let options = AgentOptions {
            xdp,
            ..options(socket_lb, arguments)
        };
        let agents = self.nodes.iter().map(|node| node.start_agent(&options));
        let agents = agents.collect::<Result<_>>()?;
        self.nodes
            .iter()
            .try_for_each(|node| self.resolve_neighbours(node))?;
        Ok(Agents {
            agents,
            _peers: peers,
        })
    }

    /// Resolves a node's neighbours: the other nodes and the next hop to the outside client.
    fn resolve_neighbours(&self, node: &Node) -> Result<()> {
        let others = self.nodes.iter().filter(|other| other.name() != node.name());
        let machines = others.map(Node::host).chain([&self.outside]);
        for address in machines.flat_map(|machine| machine.addresses().both()) {
            let report = node.host().ping(address).run()?;
            ensure!(
                report.lost == 0,
                "{} does not reach {address}: {report:?}",
                node.name()
            );
        }
        Ok(())
    }
}

impl Node {
    /// The number of packets that the agent's programs have counted under a reason, according to
    /// `lb-agent status`.
    ///
    /// # Errors
    ///
    /// If no agent has run or there is no such reason.
    pub fn reason_count(&self, reason: &str) -> Result<u64> {
        let status = self.agent_command("status", &["-o", "json"])?;
        let status: Value = serde_json::from_str(&status).context("read the status")?;
        let mut reasons = status["reasons"].as_array().into_iter().flatten();
        let count = reasons.find(|row| row["reason"] == reason);
        count
            .and_then(|row| row["packets"].as_u64())
            .with_context(|| format!("no reason {reason} in {status}"))
    }
}
