//! Machines outside the cluster: clients, and routers in front of them.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::address::{self, Addresses};
use super::link::LEAF_DEVICE;
use super::machine::Machine;
use super::node::Leaf;
use super::{Lab, Node, link};

impl Lab {
    /// Adds a client outside the cluster. Its name has at most 11 characters.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn outside_client(&self, name: &str) -> Result<Machine> {
        let (client, network) = self.outside_machine(name, None)?;
        self.fabric.ip(&link::routes(&network, client.addresses()))?;
        Ok(client)
    }

    /// Adds a router for outside clients that are behind it. Its name has at most 11 characters.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn router(&self, name: &str) -> Result<Machine> {
        let (router, _) = self.outside_machine(name, None)?;
        router.namespace().sysctl(&link::FORWARDING_SYSCTLS)?;
        Ok(router)
    }

    /// Adds a client outside the cluster, behind a router.
    ///
    /// ```no_run
    /// # fn main() -> anyhow::Result<()> {
    /// # let lab = lb_tests::lab::Lab::new("example")?;
    /// let router = lab.router("router")?;
    /// let client = lab.outside_client_behind(&router, "client-1")?;
    /// // Larger packets do not get through in either direction; the router sends ICMP errors.
    /// router.namespace().limit_mtu(1400)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn outside_client_behind(&self, router: &Machine, name: &str) -> Result<Machine> {
        let (client, network) = self.outside_machine(name, Some(router))?;
        let own = client.addresses().both().map(|address| address.to_string());
        for networks in [own, network.clone()] {
            self.fabric.ip(&link::routes(&networks, router.addresses()))?;
        }
        router
            .namespace()
            .ip(&link::routes(&network, client.addresses()))?;
        Ok(client)
    }

    /// Routes packets of outside clients to `prefix` (load balancer addresses) to these nodes, like
    /// a router that learned the route from them. Several nodes get equal shares of the flows. The
    /// change takes effect immediately, also for existing flows.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn route(&self, prefix: &str, nodes: &[&Node]) -> Result<()> {
        let hops: String = nodes
            .iter()
            .map(|node| node.host().addresses())
            .map(|addresses| match prefix.contains(':') {
                true => IpAddr::from(addresses.ipv6),
                false => IpAddr::from(addresses.ipv4),
            })
            .map(|address| format!(" nexthop via {address}"))
            .collect();
        self.fabric.ip(&[format!("route replace {prefix}{hops}")])
    }

    /// Creates a machine at the fabric or behind a router. Returns it with its own networks: IPv4,
    /// IPv6.
    fn outside_machine(&self, name: &str, router: Option<&Machine>) -> Result<(Machine, [String; 2])> {
        let mut members = self.lock();
        let index = members.outside_machines + 1;
        let leaf = Leaf {
            name,
            lab: &self.id,
            addresses: address::outside(index),
            mtu: link::MTU,
            host: router.map_or(&self.fabric, Machine::namespace),
            cgroup: &self.outside,
            logs: &self.directory,
        };
        let mut machine = leaf.create()?;
        machine.outside_index = Some(index);
        members.outside_machines = index;
        Ok((machine, address::outside_networks(index)))
    }
}

impl Machine {
    /// Gives an outside client the first `count` addresses of its own network, in addition to the
    /// one that it has. They are the same in every call.
    ///
    /// # Errors
    ///
    /// If it is not an outside client, or the kernel refuses.
    pub fn more_addresses(&self, count: u8) -> Result<Vec<Addresses>> {
        let addresses = (1..=count)
            .map(|host| self.outside_address(host))
            .collect::<Result<Vec<_>>>()?;
        let lines: Vec<String> = addresses
            .iter()
            .flat_map(|Addresses { ipv4, ipv6 }| {
                [
                    format!("address replace {ipv4}/32 dev {LEAF_DEVICE}"),
                    // Not a default source address, like additional IPv4 addresses.
                    format!("address replace {ipv6}/128 dev {LEAF_DEVICE} nodad preferred_lft 0"),
                ]
            })
            .collect();
        self.namespace().ip(&lines)?;
        Ok(addresses)
    }

    /// Addresses of an outside client's own network that it does not have. Packets to them reach
    /// its device, and its kernel does not answer them. They are for packets that a test builds and
    /// answers itself.
    ///
    /// # Errors
    ///
    /// If it is not an outside client.
    pub fn phantom(&self) -> Result<Addresses> {
        self.outside_address(u8::MAX - 1)
    }

    fn outside_address(&self, host: u8) -> Result<Addresses> {
        let index = self
            .outside_index
            .with_context(|| format!("{} is no outside client", self.name()))?;
        Ok(address::in_outside_network(index, host))
    }
}
