//! The demo's cluster: two nodes with their agents, the Pods of a Service, and its clients.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::lab::{Agent, AgentOptions, Capture, Lab, Machine, Node, PodManifest, Process};

/// The Service's ports: at its own addresses, at the nodes' addresses, and in the Pods.
pub(super) const PORT: u16 = 80;
pub(super) const NODE_PORT: u16 = 30080;
pub(super) const POD_PORT: u16 = 8080;

/// The Service's addresses.
pub(super) const VIPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];

/// The Service's manifest. Each node's NodePort leads to that node's own Pods.
pub(super) const SERVICE: &str = "apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: Local
  selector:
    app: web
  ports:
  - {port: 80, targetPort: 8080, nodePort: 30080}
";

/// The Service's file.
pub(super) const SERVICE_FILE: &str = "web.yaml";

/// The nodes. The demo counts them from 0.
pub(super) const NODES: [&str; 2] = ["node-1", "node-2"];

/// The Pods at the start, with their nodes.
const PODS: [(&str, usize); 4] = [("web-1", 0), ("web-2", 0), ("web-3", 1), ("web-4", 1)];

/// A Pod of the Service.
#[derive(Debug)]
pub(super) struct WebPod {
    /// The machine in which it runs.
    pub(super) machine: Machine,
    /// Index of its node.
    pub(super) node: usize,
    /// Whether it may get new connections.
    pub(super) is_ready: bool,
    server: Option<Process>,
}

/// Everything in the lab. The lab is dropped last.
#[derive(Debug)]
pub(super) struct Cluster {
    /// The agents by node; `None` while one is killed.
    pub(super) agents: Vec<Option<Agent>>,
    /// The Service's Pods by name.
    pub(super) pods: BTreeMap<String, WebPod>,
    /// By node: the capture that checks all packets of its devices.
    pub(super) captures: Vec<Capture>,
    /// The nodes by index.
    pub(super) nodes: Vec<Node>,
    /// A Pod of the first node that is only a client.
    pub(super) client: Machine,
    /// A client outside the cluster.
    pub(super) outside: Machine,
    /// The lab.
    pub(super) lab: Lab,
}

impl Cluster {
    /// Creates nodes, Pods and servers, without agents. The Pod `silent` gets no server.
    pub(super) fn build(silent: Option<&str>) -> Result<Self> {
        let lab = Lab::new("demo")?;
        let nodes = NODES
            .iter()
            .map(|name| lab.node(name))
            .collect::<Result<Vec<_>>>()?;
        let mut cluster = Self {
            agents: Vec::new(),
            pods: BTreeMap::new(),
            captures: Vec::new(),
            client: nodes[0].pod("client")?,
            outside: lab.outside_client("outside")?,
            nodes,
            lab,
        };
        for (name, node) in PODS {
            cluster.create_pod(name, node)?;
            if silent != Some(name) {
                cluster.start_server(name)?;
            }
        }
        Ok(cluster)
    }

    /// Creates a Pod without a server and without a manifest.
    pub(super) fn create_pod(&mut self, name: &str, node: usize) -> Result<()> {
        let pod = WebPod {
            machine: self.nodes[node].pod(name)?,
            node,
            is_ready: true,
            server: None,
        };
        self.pods.insert(name.to_owned(), pod);
        Ok(())
    }

    /// Starts the server of a Pod and waits until it listens.
    pub(super) fn start_server(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name)?;
        let server = pod.machine.serve().http(POD_PORT).without_time_limit();
        pod.server = Some(server.start()?);
        Ok(())
    }

    /// Stops the server of a Pod and waits until it has ended. It finishes open requests.
    pub(super) fn stop_server(&mut self, name: &str) -> Result<()> {
        let server = self.pod(name)?.server.take();
        server.context("it has no server")?.stop()?;
        Ok(())
    }

    /// Writes all manifests.
    pub(super) fn apply_all(&self) -> Result<()> {
        self.lab.apply_nodes_and_pods()?;
        self.lab.apply(SERVICE_FILE, SERVICE)
    }

    /// Writes the manifest of a Pod that is ready.
    pub(super) fn apply_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name)?;
        pod.is_ready = true;
        let manifest = self.pod_manifest(name)?;
        self.lab.apply(&pod_file(name), manifest)
    }

    /// Writes the manifest of a Pod with its deletion timestamp, as after `kubectl delete pod`.
    pub(super) fn apply_deletion(&mut self, name: &str) -> Result<()> {
        self.pod(name)?.is_ready = false;
        let manifest = self.pod_manifest(name)?.terminating();
        self.lab.apply(&pod_file(name), manifest)
    }

    /// Removes the manifest of a Pod.
    pub(super) fn remove_pod(&mut self, name: &str) -> Result<()> {
        self.pod(name)?.is_ready = false;
        self.lab.remove(&pod_file(name))
    }

    /// Starts an agent for every node, and captures that check the packets that their programs
    /// rewrite.
    pub(super) fn start_agents(&mut self) -> Result<()> {
        for node in &self.nodes {
            self.captures.push(Capture::start(node.host().namespace())?);
        }
        for node in 0..self.nodes.len() {
            let agent = self.start_agent(node)?;
            self.agents.push(Some(agent));
        }
        Ok(())
    }

    /// Starts the agent of a node. It gets in sync only after the verifier has checked its
    /// programs.
    pub(super) fn start_agent(&self, node: usize) -> Result<Agent> {
        self.nodes[node].start_agent_unready(&AgentOptions::default())
    }

    /// Whether all agents that were not killed are in sync.
    ///
    /// # Errors
    ///
    /// If one has ended by itself.
    pub(super) fn agents_in_sync(&mut self) -> Result<bool> {
        let mut all = true;
        for (name, agent) in NODES.iter().zip(&mut self.agents) {
            let Some(agent) = agent else { continue };
            if agent.process().has_ended() {
                bail!("the agent of {name} has ended\n{}", log_tail(name, agent));
            }
            all &= agent.is_in_sync();
        }
        Ok(all)
    }

    /// Names of the Pods that should get connections to a node's NodePort, or to a ClusterIP
    /// (`None`).
    pub(super) fn ready_pods(&self, node: Option<usize>) -> impl Iterator<Item = &str> {
        self.pods
            .iter()
            .filter(move |(_, pod)| pod.is_ready && node.is_none_or(|node| node == pod.node))
            .map(|(name, _)| name.as_str())
    }

    /// The end of each agent's log, to find the cause of a failure.
    pub(super) fn log_tails(&self) -> String {
        let agents = NODES.iter().zip(&self.agents);
        agents
            .filter_map(|(name, agent)| Some(log_tail(name, agent.as_ref()?)))
            .collect()
    }

    fn pod(&mut self, name: &str) -> Result<&mut WebPod> {
        self.pods
            .get_mut(name)
            .with_context(|| format!("there is no Pod {name}"))
    }

    fn pod_manifest(&self, name: &str) -> Result<PodManifest> {
        let pod = self
            .pods
            .get(name)
            .with_context(|| format!("there is no Pod {name}"))?;
        Ok(self.nodes[pod.node].pod_manifest(&pod.machine))
    }
}

fn pod_file(name: &str) -> String {
    format!("pod-{name}.yaml")
}

fn log_tail(node: &str, agent: &Agent) -> String {
    const LINES: usize = 8;
    let log = agent.log();
    let lines: Vec<&str> = log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    format!("the end of the log of {node}'s agent:\n{}\n", tail.join("\n"))
}
