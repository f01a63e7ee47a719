//! A lab: nodes, Pods and outside clients as network namespaces of this machine. Real sockets
//! communicate between them.
//!
//! ```no_run
//! use lb_tests::lab::Lab;
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("example")?;
//! let node = lab.node("node-1")?;
//! let web = node.pod("web-1")?;
//! let client = lab.outside_client("client-1")?;
//! let _server = web.serve().http(8080).start()?;
//! let report = client.http(web.addresses().ipv4, 8080).count(10).run()?;
//! assert_eq!(report.answers["web-1"], 10);
//! # Ok(())
//! # }
//! ```
//!
//! The namespaces are linked only with each other: no packet reaches the machine's real network.
//! Dropping the [`Lab`] removes everything. The next lab removes the leftovers of a killed process.

mod address;
mod agent;
mod agents;
mod alone;
mod attached;
mod behind;
mod big_tcp;
pub mod capture;
pub mod cgroup;
pub mod cluster;
mod container;
mod directory;
mod foreign;
mod id;
mod layer3;
mod link;
mod machine;
mod manifest;
pub mod namespace;
mod node;
mod outcome;
mod outside;
mod pins;
mod process;
mod published;
pub mod report;
mod route_mtu;
mod talk;
mod tool;
mod wait;
mod wire;
mod xdp_peer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use nix::unistd::Uid;

pub use address::Addresses;
pub use agent::{Agent, AgentOptions, SocketLb, Xdp};
pub use agents::Agents;
pub use alone::LoneNamespace;
pub use attached::Attached;
pub use capture::{Capture, CaptureReport};
pub use cluster::Cluster;
pub use foreign::{ForeignHook, ForeignPrograms, ForeignVerdict};
use id::LabId;
pub use layer3::{Layer3Client, Layer3Link, SecondLink};
pub use machine::{Machine, TcpState};
pub use manifest::{
    EndpointManifest, EndpointSliceManifest, NodeManifest, PodManifest, ServiceManifest, ServicePort,
};
pub use namespace::Namespace;
pub use node::Node;
use node::NodePlan;
pub use outcome::Outcome;
pub use pins::PinDirectory;
pub use process::Process;
pub use published::Published;
pub use report::Fragmentation;
pub use talk::Talk;
pub use tool::{Client, ClientBuilder, ServerBuilder};
pub use wait::wait_for;
pub use wire::Wire;
pub use xdp_peer::XdpPeer;

/// Whether this process may create a lab. If not, prints to standard output that the test is
/// skipped.
///
/// ```no_run
/// if !lb_tests::lab::require_privileges() {
///     return;
/// }
/// ```
pub fn require_privileges() -> bool {
    let privileged = Uid::effective().is_root();
    if !privileged {
        println!("skipped: needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN)");
    }
    privileged
}

/// A lab. Dropping it removes everything that it created.
#[derive(Debug)]
pub struct Lab {
    id: LabId,
    options: LabOptions,
    fabric: Namespace,
    cgroup_root: PathBuf,
    /// The control group of outside machines: no agent attaches programs to it.
    outside: PathBuf,
    bpf_file_system: &'static Path,
    directory: PathBuf,
    manifests: PathBuf,
    members: Mutex<Members>,
}

/// Options of a lab.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LabOptions {
    /// If true, nodes send packets for each other's Pods through a VXLAN, and no other machine has
    /// a route to Pods. If false, every machine routes to them.
    pub overlay: bool,
}

#[derive(Debug, Default)]
struct Members {
    nodes: Vec<Node>,
    outside_machines: u8,
}

impl Lab {
    /// Creates a lab without nodes. `title` is only part of the name of its directory.
    ///
    /// # Errors
    ///
    /// If the kernel refuses: see [`require_privileges`].
    pub fn new(title: &str) -> Result<Self> {
        Self::with_options(title, &LabOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// If the kernel refuses: see [`require_privileges`].
    pub fn with_options(title: &str, options: &LabOptions) -> Result<Self> {
        Self::remove_leftovers()?;
        let id = LabId::new();
        let cgroup_root = cgroup::root()?;
        let bpf_file_system = directory::bpf_file_system()?;
        let directory = directory::temporary().join(id.part(title));
        let manifests = directory.join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("create {}", manifests.display()))?;
        // From here on a failure removes what was created.
        let guard = Cleanup(Some(id.clone()));
        let outside = cgroup::create(&cgroup_root, &id.part("outside"))?;
        let fabric = Namespace::create(id.part("fabric"))?;
        fabric.sysctl(&link::SYSCTLS)?;
        fabric.sysctl(&link::FORWARDING_SYSCTLS)?;
        fabric.sysctl(&link::SHARING_SYSCTLS)?;
        fabric.ip(&link::fabric())?;
        guard.disarm();
        Ok(Self {
            id,
            options: *options,
            fabric,
            cgroup_root,
            outside,
            bpf_file_system,
            directory,
            manifests,
            members: Mutex::default(),
        })
    }

    /// Removes the leftovers of labs whose processes were killed.
    ///
    /// # Errors
    ///
    /// If something cannot be removed.
    pub fn remove_leftovers() -> Result<()> {
        remove(id::is_leftover)
    }

    /// Adds a node. It and the other nodes get routes to each other's Pods.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn node(&self, name: &str) -> Result<Node> {
        let mut members = self.lock();
        let node = Node::create(&NodePlan {
            name,
            index: u8::try_from(members.nodes.len() + 1).context("too many nodes")?,
            lab: &self.id,
            overlay: self.options.overlay,
            fabric: &self.fabric,
            cgroup_root: &self.cgroup_root,
            bpf_file_system: self.bpf_file_system,
            directory: &self.directory,
            manifests: &self.manifests,
        })?;
        for other in &members.nodes {
            other.learn(&node)?;
            node.learn(other)?;
        }
        members.nodes.push(node.clone());
        Ok(node)
    }

    /// The prefix of the names of its namespaces, control groups and directories.
    pub fn name(&self) -> &str {
        self.id.as_str()
    }

    /// Its nodes so far.
    pub fn nodes(&self) -> Vec<Node> {
        self.lock().nodes.clone()
    }

    /// The namespace in the middle. It is a switch between the nodes, and a router between them and
    /// the outside clients.
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// The directory that every node's agent reads.
    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(Cleanup(Some(self.id.clone())));
    }
}

/// Removes a lab when dropped.
struct Cleanup(Option<LabId>);

impl Cleanup {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let Some(id) = &self.0 else { return };
        if let Err(error) = remove(|name| id.owns(name)) {
            // A panic here would hide an earlier panic that may be the cause.
            eprintln!("{} is not removed completely: {error:#}", id.as_str());
        }
    }
}

/// Removes everything whose name is `unwanted`. Processes come first because they use the rest.
fn remove(unwanted: impl Fn(&str) -> bool) -> Result<()> {
    cgroup::remove(&unwanted)?;
    directory::remove(&unwanted)?;
    namespace::remove(&unwanted)
}
