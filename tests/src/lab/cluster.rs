//! The usual setup of Service tests: three nodes, a Service with Pods that serve it, and clients
//! inside and outside.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lb_agent::datapath::maps::KernelMaps;
use lb_agent::datapath::pins::Pins;
use lb_agent::maps::{BackendState, FrontendKey, MapImage, Maps, Protocol};

use super::agent::{Agent, AgentOptions};
use super::machine::Machine;
use super::manifest::{EndpointManifest, EndpointSliceManifest, PodManifest, ServiceManifest, ServicePort};
use super::node::Node;
use super::process::Process;
use super::wait::wait_for;
use super::{Lab, LabOptions, SocketLb};

/// The time limit for a change to reach the maps.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ports of the Service [`SERVICE`].
pub const PORTS: [ServicePort; 4] = [HTTP, UDP, ECHO, STREAM];

/// Answers HTTP requests.
pub const HTTP: ServicePort = ServicePort {
    name: "http",
    protocol: "TCP",
    port: 80,
    target_port: 8080,
    node_port: Some(30_080),
};

/// Answers UDP datagrams.
pub const UDP: ServicePort = ServicePort {
    name: "udp",
    protocol: "UDP",
    port: 53,
    target_port: 5353,
    node_port: Some(30_053),
};

/// Echoes lines.
pub const ECHO: ServicePort = ServicePort {
    name: "echo",
    protocol: "TCP",
    port: 7,
    target_port: 7007,
    node_port: Some(30_007),
};

/// Sends streams back.
pub const STREAM: ServicePort = ServicePort {
    name: "stream",
    protocol: "TCP",
    port: 5001,
    target_port: 15_001,
    node_port: Some(30_501),
};

/// A port that the Service does not have.
pub const UNKNOWN_PORT: u16 = 81;

/// Name of the Service; its Pods are `web-1` and so on.
pub const SERVICE: &str = "web";

/// File of the Service in the lab's manifests.
pub const SERVICE_FILE: &str = "web.yaml";

/// File of the Service's EndpointSlices in the lab's manifests, if a test writes some.
pub const SLICES_FILE: &str = "slices.yaml";

/// The Service's addresses.
pub fn vips() -> [IpAddr; 2] {
    [
        IpAddr::from([10, 96, 0, 10]),
        IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10]),
    ]
}

/// Three nodes, a Service, its Pods and its clients. No agent is running yet.
#[derive(Debug)]
pub struct Cluster {
    /// The Pods of the Service.
    pub servers: Vec<Server>,
    /// A Pod of the first node that is only a client.
    pub client: Machine,
    /// A client outside the cluster.
    pub outside: Machine,
    /// The nodes.
    pub nodes: [Node; 3],
    /// The number of servers added so far, including removed ones.
    added: usize,
    // Last field: dropped after everything that uses it.
    /// The lab.
    pub lab: Lab,
}

/// Load balancer addresses, which [`Cluster::route_load_balancer`] routes to nodes.
pub fn load_balancer_addresses() -> [IpAddr; 2] {
    [
        IpAddr::from([198, 51, 100, 10]),
        IpAddr::from([0x2001, 0xdb8, 0x1b, 0, 0, 0, 0, 0x10]),
    ]
}

/// The Service's manifest as [`Cluster::apply_service`] writes it: of type NodePort.
pub fn service() -> ServiceManifest {
    ServiceManifest::new(SERVICE, &vips(), &PORTS)
}

/// A Pod that serves all [`PORTS`].
#[derive(Debug)]
pub struct Server {
    /// The Pod.
    pub pod: Machine,
    /// Its node.
    pub node: Node,
    process: Process,
}

impl Cluster {
    /// Creates a cluster. `servers` contains the node, from 0, of each of the Service's Pods.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn new(title: &str, servers: &[usize]) -> Result<Self> {
        Self::with_options(title, &LabOptions::default(), servers)
    }

    /// The same in a lab with options.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn with_options(title: &str, options: &LabOptions, servers: &[usize]) -> Result<Self> {
        let lab = Lab::with_options(title, options)?;
        let nodes = [lab.node("node-1")?, lab.node("node-2")?, lab.node("node-3")?];
        let mut cluster = Self {
            servers: Vec::new(),
            client: nodes[0].pod("client")?,
            outside: lab.outside_client("outside")?,
            nodes,
            added: 0,
            lab,
        };
        cluster.lab.apply_nodes_and_pods()?;
        for &node in servers {
            cluster.add_server(node)?;
        }
        cluster.apply_service()?;
        Ok(cluster)
    }

    /// Adds a Pod to the Service, on this node.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn add_server(&mut self, node: usize) -> Result<&Server> {
        let node = self.nodes[node].clone();
        self.added += 1;
        let pod = node.pod(&format!("{SERVICE}-{}", self.added))?;
        let process = pod
            .serve()
            .http(HTTP.target_port)
            .udp(UDP.target_port)
            .echo(ECHO.target_port)
            .stream(STREAM.target_port)
            .start()?;
        let server = Server { pod, node, process };
        self.set_ready(&server, true)?;
        self.servers.push(server);
        self.servers.last().context("a server was added")
    }

    /// Writes the Service's manifest.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn apply_service(&self) -> Result<()> {
        self.lab.apply(SERVICE_FILE, service())
    }

    /// Routes packets of outside clients to [`load_balancer_addresses`] to these nodes, in equal
    /// shares.
    ///
    /// # Errors
    ///
    /// As [`Lab::route`].
    pub fn route_load_balancer(&self, nodes: &[usize]) -> Result<()> {
        let nodes: Vec<&Node> = nodes.iter().map(|&node| &self.nodes[node]).collect();
        load_balancer_addresses()
            .iter()
            .try_for_each(|address| self.lab.route(&address.to_string(), &nodes))
    }

    /// Writes a Pod's manifest.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn set_ready(&self, server: &Server, ready: bool) -> Result<()> {
        self.lab
            .apply(&server.manifest_file(), server.manifest().ready(ready))
    }

    /// Removes a Pod's manifest. The Pod itself keeps running.
    ///
    /// # Errors
    ///
    /// If it is already removed.
    pub fn remove_manifest(&self, server: &Server) -> Result<()> {
        self.lab.remove(&server.manifest_file())
    }

    /// Gives the Service these endpoints instead of those of the Pods' manifests, until
    /// [`SLICES_FILE`] is removed.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn apply_slices(&self, endpoints: impl IntoIterator<Item = EndpointManifest>) -> Result<()> {
        let slices = EndpointSliceManifest::new("web-1", SERVICE, &PORTS);
        let slices = endpoints
            .into_iter()
            .fold(slices, EndpointSliceManifest::endpoint);
        self.lab.apply(SLICES_FILE, slices)
    }

    /// Starts the agent of the first node.
    ///
    /// # Errors
    ///
    /// As [`Node::start_agent`].
    pub fn start_agent(&self, socket_lb: SocketLb, arguments: &[&str]) -> Result<Agent> {
        self.start_agent_on(0, socket_lb, arguments)
    }

    /// Starts the agent of a node.
    ///
    /// # Errors
    ///
    /// As [`Node::start_agent`].
    pub fn start_agent_on(&self, node: usize, socket_lb: SocketLb, arguments: &[&str]) -> Result<Agent> {
        self.nodes[node].start_agent(&options(socket_lb, arguments))
    }

    /// Waits until new connections go to exactly these Pods according to the first node's maps, and
    /// other Pods have no connections left.
    ///
    /// # Errors
    ///
    /// If they do not in time.
    pub fn wait_for_active(&self, servers: &[&Server]) -> Result<()> {
        self.wait_for_active_on(0, servers)
    }

    /// The same according to another node's maps.
    ///
    /// # Errors
    ///
    /// If they do not in time.
    pub fn wait_for_active_on(&self, node: usize, servers: &[&Server]) -> Result<()> {
        let active: Vec<_> = servers
            .iter()
            .map(|server| (*server, BackendState::Active))
            .collect();
        self.wait_for_states_on(node, &active)
    }

    /// Waits until the first node's maps have a row for this TCP port of the Service.
    ///
    /// # Errors
    ///
    /// If they do not in time.
    pub fn wait_for_frontend(&self, port: u16) -> Result<()> {
        self.wait_for_frontends_on(0, &vips(), port)
    }

    /// Waits until a node's maps have a row for this TCP port of all these addresses.
    ///
    /// # Errors
    ///
    /// If they do not in time.
    pub fn wait_for_frontends_on(&self, node: usize, addresses: &[IpAddr], port: u16) -> Result<()> {
        let key = |&address| FrontendKey::Port(address, port, Protocol::Tcp);
        let keys: Vec<FrontendKey> = addresses.iter().map(key).collect();
        wait_for(&format!("{keys:?} in the maps"), PATIENCE, || {
            let image = self.nodes[node].map_image().ok()?;
            keys.iter()
                .all(|key| image.frontends.contains_key(key))
                .then_some(())
        })
    }

    /// Waits until the first node's maps contain exactly these Pods in these states.
    ///
    /// # Errors
    ///
    /// If they do not in time.
    pub fn wait_for_states(&self, servers: &[(&Server, BackendState)]) -> Result<()> {
        self.wait_for_states_on(0, servers)
    }

    /// The same for another node's maps.
    ///
    /// # Errors
    ///
    /// If they do not in time.
    pub fn wait_for_states_on(&self, node: usize, servers: &[(&Server, BackendState)]) -> Result<()> {
        let expected: BTreeMap<IpAddr, BackendState> = servers
            .iter()
            .flat_map(|(server, state)| {
                let addresses = server.pod.addresses().both();
                addresses.map(|address| (address, *state))
            })
            .collect();
        wait_for(
            &format!("backends {expected:?} in the maps"),
            PATIENCE,
            || -> Option<()> {
                let image = self.nodes[node].map_image().ok()?;
                (backends(&image) == Some(expected.clone())).then_some(())
            },
        )
    }
}

impl Server {
    /// Its manifest; it is ready.
    pub fn manifest(&self) -> PodManifest {
        self.node.pod_manifest(&self.pod)
    }

    /// Itself as an endpoint, ready.
    pub fn endpoint(&self) -> EndpointManifest {
        EndpointManifest::of(&self.pod).node(self.node.name())
    }

    /// The same endpoint, not ready but serving: it keeps its connections.
    pub fn draining_endpoint(&self) -> EndpointManifest {
        self.endpoint().ready(false).serving(true)
    }

    /// Its Pod and node, for [`Cluster::publish`].
    pub fn place(&self) -> (&Machine, &Node) {
        (&self.pod, &self.node)
    }

    /// Name of the file of its manifest.
    pub fn manifest_file(&self) -> String {
        format!("pod-{}.yaml", self.pod.name())
    }

    /// Stops its server, which finishes open requests.
    ///
    /// # Errors
    ///
    /// If it does not end in time.
    pub fn stop(self) -> Result<()> {
        self.process.stop()?;
        Ok(())
    }
}

/// Options of an agent. Maps are small unless `arguments` sets their sizes, because tests read them
/// repeatedly while they wait for a change.
pub fn options(socket_lb: SocketLb, arguments: &[&str]) -> AgentOptions {
    let small = [
        "--max-backends=1024",
        "--max-slots=262144",
        "--max-frontends=1024",
        "--max-services=1024",
        "--max-flows=16384",
    ];
    let option = |argument: &str| argument.split_once('=').map(|(option, _)| option.to_owned());
    AgentOptions {
        socket_lb: Some(socket_lb),
        arguments: small
            .iter()
            .filter(|small| !arguments.iter().any(|argument| option(argument) == option(small)))
            .chain(arguments)
            .copied()
            .map(str::to_owned)
            .collect(),
        ..AgentOptions::default()
    }
}

impl Node {
    /// The content of its agent's maps, whether the agent runs or not.
    ///
    /// # Errors
    ///
    /// If there are no maps.
    pub fn map_image(&self) -> Result<MapImage> {
        let maps = KernelMaps::open(&Pins::new(self.pin_path()).maps())?;
        Ok(maps.image()?)
    }
}

/// The state of every backend that is not gone. `None` while the slots of the frontends do not
/// refer to exactly the active ones.
fn backends(image: &MapImage) -> Option<BTreeMap<IpAddr, BackendState>> {
    let rows = image.backends4.values().chain(image.backends6.values());
    let states: BTreeMap<IpAddr, BackendState> = rows
        .filter(|row| row.state != BackendState::Gone)
        .map(|row| (row.address, row.state))
        .collect();
    let ports = image
        .frontends
        .iter()
        .filter(|(key, _)| matches!(key, FrontendKey::Port(..)));
    for (key, frontend) in ports {
        let is_ipv4 = key.address().is_ipv4();
        let rows = match is_ipv4 {
            true => &image.backends4,
            false => &image.backends6,
        };
        let region = frontend.cluster;
        let mut led_to: Vec<IpAddr> = (region.base..region.base + region.length)
            .filter_map(|index| image.slots.get(&index))
            .filter_map(|slot| rows.get(&slot.backend))
            .map(|row| row.address)
            .collect();
        led_to.sort_unstable();
        led_to.dedup();
        let active: Vec<IpAddr> = states
            .iter()
            .filter(|(address, state)| **state == BackendState::Active && address.is_ipv4() == is_ipv4)
            .map(|(address, _)| *address)
            .collect();
        if led_to != active {
            return None;
        }
    }
    Some(states)
}
