//! Clients behind a Pod that forwards packets for them.

use anyhow::Result;

use super::address;
use super::machine::Machine;
use super::namespace::Namespace;
use super::node::{Leaf, Node};
use super::{Lab, link};

/// The networks of all clients behind Pods: IPv4, IPv6.
const NETWORKS: [&str; 2] = ["10.87.0.0/24", "fd00:87::/64"];

/// A client's second device.
const SECOND_DEVICE: &str = "eth1";
/// Its link-layer address.
const SECOND_MAC: &str = "02:00:00:00:87:01";

impl Lab {
    /// Adds a client behind a Pod, on which it enables forwarding. No other machine has a route to
    /// the client. Its name has at most 11 characters. A lab has at most one such client.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn client_behind(&self, gateway: &Machine, name: &str) -> Result<Machine> {
        gateway.namespace().sysctl(&link::FORWARDING_SYSCTLS)?;
        let leaf = Leaf {
            name,
            lab: &self.id,
            addresses: address::BEHIND,
            mtu: link::MTU,
            host: gateway.namespace(),
            cgroup: &self.outside,
            logs: &self.directory,
        };
        leaf.create()
    }

    /// Gives a client behind a Pod a second link, through which the network outside the cluster
    /// reaches it. The client itself still sends through the Pod.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn link_outside(&self, client: &Machine) -> Result<()> {
        let device = "second";
        let namespace = client.namespace();
        let mut lines = vec![
            format!(
                "link add {device} type veth peer name {SECOND_DEVICE} address {SECOND_MAC} netns {}",
                namespace.name()
            ),
            format!("link set {device} up"),
        ];
        for address in client.addresses().both() {
            // The client does not answer neighbour requests here: the address is on its first
            // device.
            lines.push(format!(
                "neighbour add {address} lladdr {SECOND_MAC} dev {device} nud permanent"
            ));
            lines.push(format!("route add {address} dev {device}"));
        }
        self.fabric.ip(&lines)?;
        namespace.ip(&[format!("link set {SECOND_DEVICE} up")])?;
        // Routing is asymmetric.
        for (namespace, device) in [(&self.fabric, link::BRIDGE), (namespace, SECOND_DEVICE)] {
            disable_reverse_path_filter(namespace, device)?;
        }
        self.fabric.wait_until_running(&[device])
    }
}

impl Node {
    /// Adds a route to clients behind a Pod, through this device: the Pod's device, or the bridge
    /// of which it is a port.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn route_behind(&self, gateway: &Machine, device: &str) -> Result<()> {
        let routes = NETWORKS.iter().zip(gateway.addresses().both());
        let lines: Vec<String> = routes
            .map(|(network, hop)| format!("route add {network} via {hop} dev {device} onlink"))
            .collect();
        self.host().namespace().ip(&lines)
    }
}

fn disable_reverse_path_filter(namespace: &Namespace, device: &str) -> Result<()> {
    namespace.sysctl(&[
        ("ipv4/conf/all/rp_filter", "0"),
        (&format!("ipv4/conf/{device}/rp_filter"), "0"),
    ])
}
