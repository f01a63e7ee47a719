//! What is outside of the cluster: clients, and routers before them.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::address::{self, Addresses};
use super::link::LEAF_DEVICE;
use super::machine::Machine;
use super::node::Leaf;
use super::{Lab, Node, link};

impl Lab {
    /// Adds a client outside of the cluster. Its name has at most 11 characters.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn outside_client(&self, name: &str) -> Result<Machine> {
        let (client, network) = self.outside_machine(name, None)?;
        self.fabric.ip(&link::routes(&network, client.addresses()))?;
        Ok(client)
    }

    /// Adds a router beside the outside clients, for some that are behind it. Its name has at most
    /// 11 characters.
    ///
    /// # Errors
    ///
    /// If the kernel refuses or the name is too long.
    pub fn router(&self, name: &str) -> Result<Machine> {
        let (router, _) = self.outside_machine(name, None)?;
        router.namespace().sysctl(&link::FORWARDING_SYSCTLS)?;
        Ok(router)
    }

    /// Adds a client outside of the cluster, behind a router.
    ///
    /// ```no_run
    /// # fn main() -> anyhow::Result<()> {
    /// # let lab = lb_tests::lab::Lab::new("example")?;
    /// let router = lab.router("router")?;
    /// let client = lab.outside_client_behind(&router, "client-1")?;
    /// // Larger packets do not get through, in both directions; the router says so by ICMP.
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

    /// Sends what outside clients address to `prefix` (of a load balancer's addresses) to these
    /// nodes, as a router does that learned it from them: in equal shares of flows if there are
    /// several. Takes effect at once, also for flows that go to another node so far.
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

    /// A machine at the fabric or behind a router, and its own networks: IPv4, IPv6.
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
    /// Gives an outside client the first `count` addresses of its own network, beside the one that
    /// it has. The same addresses each time.
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
                    // Used only by those who ask for it, as further addresses of IPv4 are.
                    format!("address replace {ipv6}/128 dev {LEAF_DEVICE} nodad preferred_lft 0"),
                ]
            })
            .collect();
        self.namespace().ip(&lines)?;
        Ok(addresses)
    }

    /// Addresses of an outside client's own network that it does not have: their packets reach its
    /// device, and its kernel answers none of them. For packets that a test makes and answers
    /// itself.
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
