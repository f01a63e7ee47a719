//! Additional links: without Ethernet headers, like those of VPNs, and with them, like those of a
//! second network card.

use anyhow::Result;

use super::address;
use super::cgroup;
use super::link;
use super::machine::Machine;
use super::namespace::Namespace;
use super::process::Process;
use super::{Lab, Node};

/// How a client is connected to its node, separately from the node's link to the fabric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondLink {
    /// Whether its devices have Ethernet headers.
    pub ethernet: bool,
    /// The node's routing table that contains the route to the client, if that is not the main one.
    /// A rule selects it only for packets to the client.
    pub table: Option<u32>,
}

/// A link whose devices may have no Ethernet header. Dropping it removes them.
#[derive(Debug)]
pub struct Layer3Link {
    _carrier: Process,
}

/// An outside client behind a node, connected by such a link.
#[derive(Debug)]
pub struct Layer3Client {
    /// The client. Its [`Machine::far_device`] is on the node.
    pub machine: Machine,
    /// Its link.
    pub link: Layer3Link,
    kind: SecondLink,
}

impl Layer3Client {
    /// Adds the node's route to the client.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn add_route(&self, node: &Node) -> Result<()> {
        self.change_way(node, "add")
    }

    /// Removes that route, as when a routing protocol withdraws it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn remove_route(&self, node: &Node) -> Result<()> {
        self.change_way(node, "delete")
    }

    fn change_way(&self, node: &Node, change: &str) -> Result<()> {
        let machine = &self.machine;
        let mut networks = machine
            .addresses
            .both()
            .map(|address| address.to_string())
            .to_vec();
        networks.extend(
            machine
                .outside_index
                .into_iter()
                .flat_map(address::outside_networks),
        );
        let (ipv6, ipv4): (Vec<_>, Vec<_>) = networks.into_iter().partition(|network| network.contains(':'));
        let lines = |networks: &[String]| {
            link::to_second_client(change, &machine.far_device, networks, self.kind.table)
        };
        let namespace = node.host().namespace();
        namespace.ip(&lines(&ipv4))?;
        namespace.ip6(&lines(&ipv6))
    }
}

impl Lab {
    /// Adds a client outside the cluster that reaches it only through a node, as through a VPN. The
    /// link has no Ethernet headers, and its end on the node is the device `tun-NAME`. Only the
    /// node has a route to the client. Its name has at most 11 characters.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn layer3_client(&self, node: &Node, name: &str) -> Result<Layer3Client> {
        let client = self.second_client(
            node,
            name,
            SecondLink {
                ethernet: false,
                table: None,
            },
        )?;
        client.add_route(node)?;
        Ok(client)
    }

    /// The same with another kind of link, and without the node's route to the client.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn second_client(&self, node: &Node, name: &str, kind: SecondLink) -> Result<Layer3Client> {
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
        let ends = ((node.host(), machine.far_device()), (&machine, link::LEAF_DEVICE));
        let link = connect(ends.0, ends.1, kind.ethernet)?;
        let (at_host, at_leaf) = match kind.ethernet {
            true => (link::host_to_tap(&machine.far_device), link::leaf(addresses)),
            false => (
                link::host_to_tun(&machine.far_device),
                link::layer3_leaf(addresses),
            ),
        };
        node.host().namespace().ip(&at_host)?;
        machine.namespace().ip(&at_leaf)?;
        members.outside_machines = index;
        Ok(Layer3Client { machine, link, kind })
    }

    /// Makes two nodes send packets for each other's Pods over a link without Ethernet headers,
    /// which has its own addresses. After the link is dropped, they have no route. The devices are
    /// `tun-NAME` with the other node's name.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or a name is too long.
    pub fn layer3_link(&self, nodes: [&Node; 2]) -> Result<Layer3Link> {
        let [first, second] = nodes;
        let to_second = link::layer3_device(second.name());
        let to_first = link::layer3_device(first.name());
        let link = connect((first.host(), &to_second), (second.host(), &to_first), false)?;
        for (node, other, device) in [(first, second, to_second), (second, first, to_first)] {
            let lines = link::layer3_to_node(&device, node.index, other.index);
            node.host().namespace().ip(&lines)?;
        }
        Ok(link)
    }
}

/// Creates a link between two devices, which are still down.
fn connect(near: (&Machine, &str), far: (&Machine, &str), ethernet: bool) -> Result<Layer3Link> {
    let mut command = near.0.tool(None)?;
    command
        .args(["layer3", "--device", near.1])
        .args(["--far-netns", far.0.namespace().name()])
        .args(["--far-device", far.1])
        .args(ethernet.then_some("--ethernet"));
    let mut carrier = near.0.spawn("layer3", command)?;
    carrier.wait_until_ready()?;
    Ok(Layer3Link { _carrier: carrier })
}
