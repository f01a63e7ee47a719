//! Links without Ethernet headers, as those of VPNs are.

use anyhow::Result;

use super::address;
use super::cgroup;
use super::link;
use super::machine::Machine;
use super::namespace::Namespace;
use super::process::Process;
use super::{Lab, Node};

/// A link whose devices have no Ethernet header. Dropping it removes them.
#[derive(Debug)]
pub struct Layer3Link {
    _carrier: Process,
}

/// An outside client behind a node, over such a link.
#[derive(Debug)]
pub struct Layer3Client {
    /// The client. Its [`Machine::far_device`] is on the node.
    pub machine: Machine,
    /// Its link.
    pub link: Layer3Link,
}

impl Lab {
    /// Adds a client outside of the cluster that reaches it through a node only, as by a VPN: over a link without
    /// Ethernet headers, whose end on the node is the device `tun-NAME`. Nobody but the node knows the way to it. Its
    /// name has at most 11 characters.
    ///
    /// An agent takes the device for one of the network if it is told to (`--network-device`).
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn layer3_client(&self, node: &Node, name: &str) -> Result<Layer3Client> {
        let mut members = self.lock();
        let index = members.outside_machines + 1;
        let addresses = address::outside(index);
        let namespace = Namespace::create(self.id.part(name))?;
        namespace.sysctl(&link::SYSCTLS)?;
        let machine = Machine {
            name: name.to_owned(),
            namespace,
            cgroup: cgroup::create(&self.outside, name)?,
            addresses,
            far_device: link::layer3_device(name),
            outside_index: Some(index),
            logs: self.directory.clone(),
        };
        let link = connect((node.host(), &machine.far_device), (&machine, link::LEAF_DEVICE))?;
        let networks = address::outside_networks(index);
        let lines = link::host_to_layer3_leaf(&machine.far_device, addresses, &networks);
        node.host().namespace().ip(&lines)?;
        machine.namespace().ip(&link::layer3_leaf(addresses))?;
        members.outside_machines = index;
        Ok(Layer3Client { machine, link })
    }

    /// Lets two nodes send packets for each other's Pods over a link without Ethernet headers, with addresses of its
    /// own, until the link is dropped: then they know no way. The devices are `tun-NAME` with the other node's name.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or a name is too long.
    pub fn layer3_link(&self, nodes: [&Node; 2]) -> Result<Layer3Link> {
        let [first, second] = nodes;
        let to_second = link::layer3_device(second.name());
        let to_first = link::layer3_device(first.name());
        let link = connect((first.host(), &to_second), (second.host(), &to_first))?;
        for (node, other, device) in [(first, second, to_second), (second, first, to_first)] {
            let lines = link::layer3_to_node(&device, node.index, other.index);
            node.host().namespace().ip(&lines)?;
        }
        Ok(link)
    }
}

/// Makes a link between two devices, which are still down.
fn connect(near: (&Machine, &str), far: (&Machine, &str)) -> Result<Layer3Link> {
    let mut command = near.0.tool(None)?;
    command
        .args(["layer3", "--device", near.1])
        .args(["--far-netns", far.0.namespace().name()])
        .args(["--far-device", far.1]);
    let mut carrier = near.0.spawn("layer3", command)?;
    carrier.wait_until_ready()?;
    Ok(Layer3Link { _carrier: carrier })
}
