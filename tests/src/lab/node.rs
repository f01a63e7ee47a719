//! Nodes and their Pods.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use super::address::{self, Addresses, LEAF_GATEWAY_MAC};
use super::cgroup;
use super::id::LabId;
use super::link;
use super::machine::Machine;
use super::namespace::Namespace;

/// A node with its Pods. A clone is the same node.
#[derive(Clone, Debug)]
pub struct Node {
    /// From 1.
    pub(super) index: u8,
    host: Machine,
    lab: LabId,
    overlay: bool,
    /// The control group of all processes of the node, including those of its Pods.
    cgroup: PathBuf,
    pub(super) pin_path: PathBuf,
    pub(super) manifests: PathBuf,
    state: PathBuf,
    pods: Arc<Mutex<Vec<Machine>>>,
}

/// The parts of the lab that a new node needs.
pub(super) struct NodePlan<'a> {
    pub(super) name: &'a str,
    pub(super) index: u8,
    pub(super) lab: &'a LabId,
    pub(super) overlay: bool,
    pub(super) fabric: &'a Namespace,
    pub(super) cgroup_root: &'a Path,
    pub(super) bpf_file_system: &'a Path,
    pub(super) directory: &'a Path,
    pub(super) manifests: &'a Path,
}

impl Node {
    pub(super) fn create(plan: &NodePlan<'_>) -> Result<Self> {
        let part = plan.lab.part(plan.name);
        let cgroup = cgroup::create(plan.cgroup_root, &part)?;
        let namespace = Namespace::create(part.clone())?;
        for settings in [
            link::SYSCTLS.as_slice(),
            &link::FORWARDING_SYSCTLS,
            &link::NODE_SYSCTLS,
        ] {
            namespace.sysctl(settings)?;
        }
        plan.fabric.ip(&link::fabric_to_node(plan.index, &namespace))?;
        namespace.ip(&link::node(plan.index))?;
        match plan.overlay {
            true => namespace.ip(&link::overlay(plan.index))?,
            false => plan.fabric.ip(&link::routes_to_pods(plan.index))?,
        }
        let far_device = link::node_far_device(plan.index);
        plan.fabric.wait_until_running(&[&far_device, link::BRIDGE])?;
        let host = Machine {
            name: plan.name.to_owned(),
            namespace,
            cgroup: cgroup::create(&cgroup, "host")?,
            addresses: address::node(plan.index),
            far_device,
            outside_index: None,
            logs: plan.directory.to_owned(),
        };
        Ok(Self {
            index: plan.index,
            host,
            lab: plan.lab.clone(),
            overlay: plan.overlay,
            cgroup,
            pin_path: plan.bpf_file_system.join(part),
            manifests: plan.manifests.to_owned(),
            state: plan.directory.join(format!("state-{}", plan.name)),
            pods: Arc::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// The machine of its own processes, those in the host's network namespace.
    pub fn host(&self) -> &Machine {
        &self.host
    }

    /// The control group of all its processes, including those of its Pods.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The directory in which its agent pins maps, programs and links. Removed with the lab.
    pub fn pin_path(&self) -> &Path {
        &self.pin_path
    }

    /// The directory in which its agent stores its allocations for Services. Removed with the lab.
    pub fn state_directory(&self) -> &Path {
        &self.state
    }

    /// Its Pod CIDRs: IPv4, IPv6.
    pub fn pod_cidrs(&self) -> (String, String) {
        address::pod_cidrs(self.index)
    }

    /// The addresses of its overlay device, from which it sends to Pods of other nodes.
    pub fn overlay_addresses(&self) -> Option<Addresses> {
        self.overlay.then(|| address::overlay(self.index))
    }

    /// Its Pods so far.
    pub fn pods(&self) -> Vec<Machine> {
        self.lock_pods().clone()
    }

    /// Adds a Pod. A name has at most 11 characters, because it is part of the name of its device
    /// on the node.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn pod(&self, name: &str) -> Result<Machine> {
        self.add_pod(name, |leaf| leaf.create())
    }

    /// Adds a Pod whose kernel does not have the Pod's addresses and therefore answers nothing. It
    /// is for packets that a test builds and answers itself, through [`Machine::wire`].
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn silent_pod(&self, name: &str) -> Result<Machine> {
        self.add_pod(name, |leaf| leaf.create_silent())
    }

    fn add_pod(&self, name: &str, create: impl FnOnce(&Leaf<'_>) -> Result<Machine>) -> Result<Machine> {
        let mut pods = self.lock_pods();
        let index = u8::try_from(pods.len() + 1).context("too many Pods")?;
        let leaf = self.leaf(name, address::pod(self.index, index), self.host.namespace());
        let pod = create(&leaf)?;
        pods.push(pod.clone());
        Ok(pod)
    }

    /// The plan of a machine whose processes belong to the node and whose link leads to `host`.
    pub(super) fn leaf<'a>(&'a self, name: &'a str, addresses: Addresses, host: &'a Namespace) -> Leaf<'a> {
        Leaf {
            name,
            lab: &self.lab,
            addresses,
            mtu: if self.overlay {
                link::OVERLAY_MTU
            } else {
                link::MTU
            },
            host,
            cgroup: &self.cgroup,
            logs: &self.host.logs,
        }
    }

    /// Limits the MTU of the route to a Pod of this node. The node answers larger packets with ICMP
    /// errors, or fragments them if the sender allows it. The devices keep their MTU, so the Pod
    /// does not know the limit.
    ///
    /// # Errors
    ///
    /// As [`Namespace::limit_mtu_to`].
    pub fn limit_mtu_to_pod(&self, pod: &Machine, mtu: u16) -> Result<()> {
        let addresses = pod.addresses().both();
        addresses
            .iter()
            .try_for_each(|address| self.host.namespace().limit_mtu_to(&address.to_string(), mtu))
    }

    /// Makes the devices of these Pods ports of a new bridge, as many CNIs do. The bridge has the
    /// link-layer address of the Pods' gateway.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn add_bridge(&self, name: &str, pods: &[&Machine]) -> Result<()> {
        let mut devices = vec![name];
        let mut lines = vec![
            format!("link add {name} address {LEAF_GATEWAY_MAC} type bridge forward_delay 0"),
            format!("link set {name} up"),
        ];
        for (number, pod) in pods.iter().enumerate() {
            let device = pod.far_device();
            let Addresses { ipv4, ipv6 } = pod.addresses();
            lines.extend([
                format!("link set {device} down"),
                format!("link set {device} address 02:00:00:00:0a:{number:02x} master {name}"),
                format!("link set {device} up"),
                format!("route replace {ipv4} dev {name} scope link"),
                format!("route replace {ipv6} dev {name}"),
            ]);
            devices.push(device);
        }
        let namespace = self.host.namespace();
        namespace.ip(&lines)?;
        namespace.wait_until_running(&devices)
    }

    /// Adds routes to the Pods of another node.
    pub(super) fn learn(&self, other: &Self) -> Result<()> {
        let namespace = self.host.namespace();
        if !self.overlay {
            return namespace.ip(&link::routes_to_pods(other.index));
        }
        namespace.bridge(&[link::overlay_exit(other.index)])?;
        namespace.ip(&link::overlay_to_pods(other.index))
    }

    fn lock_pods(&self) -> MutexGuard<'_, Vec<Machine>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new machine with a single link.
pub(super) struct Leaf<'a> {
    pub(super) name: &'a str,
    pub(super) lab: &'a LabId,
    pub(super) addresses: Addresses,
    /// The MTU of both ends of the link.
    pub(super) mtu: u16,
    /// The namespace of the other end of the link.
    pub(super) host: &'a Namespace,
    /// The group in which its own one is created.
    pub(super) cgroup: &'a Path,
    pub(super) logs: &'a Path,
}

impl Leaf<'_> {
    pub(super) fn create(&self) -> Result<Machine> {
        self.create_with(&[], &link::leaf(self.addresses))
    }

    fn create_silent(&self) -> Result<Machine> {
        let device = self.device()?;
        let neighbours = link::host_to_silent_leaf(&device, self.addresses);
        self.create_with(&neighbours, &link::silent_leaf())
    }

    /// Creates the machine. Runs these `ip` commands at both ends, after those that every leaf
    /// needs.
    fn create_with(&self, at_host: &[String], at_leaf: &[String]) -> Result<Machine> {
        let device = self.device()?;
        let namespace = Namespace::create(self.lab.part(self.name))?;
        namespace.sysctl(&link::SYSCTLS)?;
        let mut lines = link::host_to_leaf(&device, &namespace, self.mtu, self.addresses);
        lines.extend_from_slice(at_host);
        self.host.ip(&lines)?;
        namespace.ip(at_leaf)?;
        self.host.wait_until_running(&[&device])?;
        Ok(Machine {
            name: self.name.to_owned(),
            namespace,
            cgroup: cgroup::create(self.cgroup, self.name)?,
            addresses: self.addresses,
            far_device: device,
            outside_index: None,
            logs: self.logs.to_owned(),
        })
    }

    /// The name of the host's end of its link.
    fn device(&self) -> Result<String> {
        link::leaf_host_device(self.name).with_context(|| format!("the name {} is too long", self.name))
    }
}
