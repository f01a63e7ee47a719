//! The namespaces of one contender: two nodes, Pods that serve, and clients in a Pod and outside.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::contender::{ClientLocation, Contender, Means};
use super::metric::Operation;
use crate::bench::filter::Filter;
use crate::bench::load::{self, LoadGenerator, Order, Role, Sample};
use crate::bench::objects::{Made, PORT, Shape};
use crate::lab::{Agent, AgentOptions, Lab, Machine, Node, Process, SocketLb, Xdp, XdpPeer, wait_for};

/// Pods of each Service.
const ENDPOINTS: u32 = 4;
/// Services in each manifest file: the agent rejects files that are too large.
const FILE: usize = 10_000;
/// Timeout of an agent for all Services.
const PATIENCE: Duration = Duration::from_secs(120);
/// The load balancer's addresses, which are routed to the first node.
const INGRESS: &str = "198.51.100.0/24";

/// The destination of the load generator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// The Service's address.
    Service,
    /// Its Pods.
    Pods,
}

/// The namespaces and everything that runs in them.
pub(super) struct World {
    inside: LoadGenerator,
    outside: LoadGenerator,
    services: Vec<Made>,
    near: Vec<Ipv4Addr>,
    far: Vec<Ipv4Addr>,
    cgroups: Vec<PathBuf>,
    _servers: Vec<Process>,
    _agent: Option<Agent>,
    _peer: XdpPeer,
    // The last field: it is dropped after everything that uses it.
    _lab: Lab,
}

impl World {
    /// Namespaces without Services.
    pub(super) fn bare() -> Result<Self> {
        Self::build(0, |_, _, _| Ok(None))
    }

    /// Namespaces with this number of Services, of which those of [`loaded`] have Pods.
    pub(super) fn of(way: &Contender, services: u32) -> Result<Self> {
        Self::build(services, |lab, node, services| match way.means {
            Means::Rules(filter) => load_rules(filter, node, services).map(|()| None),
            Means::Agent {
                socket_lb,
                xdp,
                arguments,
            } => start_agent(lab, node, services, (socket_lb, xdp, arguments)).map(Some),
        })
    }

    fn build(
        services: u32,
        translate: impl FnOnce(&Lab, &Node, &[Made]) -> Result<Option<Agent>>,
    ) -> Result<Self> {
        let lab = Lab::new("bench")?;
        let (node, other) = (lab.node("node-1")?, lab.node("node-2")?);
        let client = node.pod("client")?;
        let outside = lab.outside_client("outside")?;
        let near = pods(&node, "near", ENDPOINTS)?;
        let far = pods(&other, "far", ENDPOINTS)?;
        let servers = near.iter().chain(&far).map(load::serve).collect::<Result<_>>()?;
        lab.route(INGRESS, &[&node])?;
        // All worlds do this, because it makes streams from outside slower.
        let peer = lab.prepare_for_xdp(&node)?;

        let addresses =
            |pods: &[Machine]| -> Vec<Ipv4Addr> { pods.iter().map(|pod| pod.addresses().ipv4).collect() };
        let (near, far) = (addresses(&near), addresses(&far));
        let shape = Shape {
            services,
            endpoints: ENDPOINTS,
        };
        let mut services: Vec<Made> = shape.all().collect();
        if !services.is_empty() {
            give_pods(&mut services, (&near, node.name()), (&far, other.name()));
        }
        let agent = translate(&lab, &node, &services)?;
        for address in [other.host(), &outside].map(|machine| machine.addresses().ipv4) {
            resolve_neighbour(&node, address.into())?;
        }
        let inside = LoadGenerator::start(&client)?;
        Ok(Self {
            inside,
            outside: LoadGenerator::start(&outside)?,
            services,
            near,
            far,
            cgroups: [node.cgroup(), other.cgroup(), outside.cgroup()]
                .map(std::path::Path::to_owned)
                .into(),
            _servers: servers,
            _agent: agent,
            _peer: peer,
            _lab: lab,
        })
    }

    /// Measures an operation.
    pub(super) fn measure(
        &mut self,
        operation: Operation,
        view: ClientLocation,
        target: Target,
        milliseconds: u32,
    ) -> Result<Sample> {
        let mode = operation.mode();
        let order = Order {
            mode,
            to: self.addresses(mode.role(), view, target),
            threads: operation.threads(),
            milliseconds,
            cgroups: self.cgroups.clone(),
        };
        match view {
            ClientLocation::Pod => self.inside.measure(&order),
            ClientLocation::Outside | ClientLocation::Forwarded => self.outside.measure(&order),
        }
    }

    fn addresses(&self, role: Role, view: ClientLocation, target: Target) -> Vec<SocketAddr> {
        let (pods, is_far) = match view {
            ClientLocation::Pod | ClientLocation::Outside => (&self.near, false),
            ClientLocation::Forwarded => (&self.far, true),
        };
        if target == Target::Pods {
            let port = role.bare_port();
            return pods.iter().map(|&address| (address, port).into()).collect();
        }
        let made = &self.services[loaded(self.services.len(), role, is_far)];
        let address = match view {
            ClientLocation::Pod => made.vip(),
            ClientLocation::Outside | ClientLocation::Forwarded => ingress(role, is_far),
        };
        vec![(address, PORT).into()]
    }
}

fn pods(node: &Node, name: &str, count: u32) -> Result<Vec<Machine>> {
    (1..=count)
        .map(|number| node.pod(&format!("{name}-{number}")))
        .collect()
}

/// The index of the Service that is measured. It is in the middle, because rules may be evaluated
/// in sequence.
fn loaded(services: usize, role: Role, is_far: bool) -> usize {
    let roles = Role::ALL.len();
    services / 2 + usize::from(role.index()) + if is_far { roles } else { 0 }
}

fn ingress(role: Role, is_far: bool) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, role.index() + if is_far { 20 } else { 10 })
}

/// Gives real Pods to the Services that are measured.
fn give_pods(services: &mut [Made], near: (&[Ipv4Addr], &str), far: (&[Ipv4Addr], &str)) {
    for role in Role::ALL {
        for (is_far, (pods, node)) in [(false, near), (true, far)] {
            let made = &mut services[loaded(services.len(), role, is_far)];
            made.endpoints = pods.to_owned();
            made.protocol = role.protocol();
            made.target_port = role.target_port();
            made.node = Some(node.to_owned());
            made.ingress = Some(ingress(role, is_far));
        }
    }
}

fn load_rules(filter: Filter, node: &Node, services: &[Made]) -> Result<()> {
    let (base, all) = (filter.base(), filter.all(services));
    node.host().namespace().run(|| {
        filter.load(&base)?;
        filter.load(&all)?;
        Ok(())
    })
}

fn start_agent(
    lab: &Lab,
    node: &Node,
    services: &[Made],
    (socket_lb, xdp, arguments): (SocketLb, Xdp, &[&str]),
) -> Result<Agent> {
    lab.apply_nodes_and_pods()?;
    for (number, part) in services.chunks(FILE).enumerate() {
        lab.apply(&format!("services-{number}.yaml"), manifest(part)?)?;
    }
    let mut agent = node.start_agent_unready(&AgentOptions {
        socket_lb: Some(socket_lb),
        xdp: Some(xdp),
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        ..AgentOptions::default()
    })?;
    wait_for("the agent to be in sync", PATIENCE, || {
        (agent.is_in_sync() || agent.process().has_ended()).then_some(())
    })?;
    ensure!(agent.is_in_sync(), "the agent has ended:\n{}", agent.log());
    Ok(agent)
}

/// A manifest of Services and their slices. JSON lines are valid YAML.
fn manifest(services: &[Made]) -> Result<String> {
    let mut manifest = String::new();
    for made in services {
        let service = serde_json::to_value(made.service())?;
        writeln!(manifest, "---\n{service}")?;
        for slice in made.slices() {
            writeln!(manifest, "---\n{}", serde_json::to_value(slice)?)?;
        }
    }
    Ok(manifest)
}

/// Resolves a neighbour. XDP leaves packets to the stack until the node knows their next hop's
/// link-layer address.
fn resolve_neighbour(node: &Node, address: IpAddr) -> Result<()> {
    let report = node.host().ping(address).run()?;
    ensure!(report.lost == 0, "{} does not reach {address}", node.name());
    Ok(())
}
