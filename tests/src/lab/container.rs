//! Containers on nodes that do not belong to the cluster, such as those of Docker, and clusters
//! inside them.

use std::net::IpAddr;

use anyhow::Result;

use super::address;
use super::link;
use super::machine::Machine;
use super::node::Node;

impl Node {
    /// Adds a container to which the node routes and which is unknown to the cluster. A node has at
    /// most one. Its name has at most 11 characters.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn container(&self, name: &str) -> Result<Machine> {
        self.leaf(name, address::CONTAINER, self.host().namespace())
            .create()
    }

    /// Adds a Pod of a cluster inside a container, which is that cluster's node. That cluster has
    /// the same Pod CIDR as this one.
    ///
    /// # Errors
    ///
    /// As [`Self::container`].
    pub fn inner_pod(&self, container: &Machine, name: &str) -> Result<Machine> {
        container.namespace().sysctl(&link::FORWARDING_SYSCTLS)?;
        self.leaf(name, address::inner_pod(self.index), container.namespace())
            .create()
    }
}

impl Machine {
    /// Adds addresses to its loopback device. No other machine has a route to them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn own(&self, addresses: &[IpAddr]) -> Result<()> {
        let lines = addresses.iter().map(|address| match address {
            IpAddr::V4(_) => format!("address add {address}/32 dev lo"),
            IpAddr::V6(_) => format!("address add {address}/128 dev lo nodad"),
        });
        self.namespace().ip(&lines.collect::<Vec<_>>())
    }
}
