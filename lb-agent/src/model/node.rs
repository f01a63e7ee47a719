//! The node and the agent's options, as far as they decide what Services ask for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::network::{Family, Network};

/// What the model knows about the node it runs on, and the agent's options.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeConfig {
    /// The Node's name.
    pub name: String,
    /// The zone it is in.
    pub zone: Option<String>,
    /// Its primary addresses, of both families.
    pub addresses: BTreeSet<IpAddr>,
    /// All addresses of its devices that others can send to: neither loopback nor link-local ones.
    pub device_addresses: BTreeSet<IpAddr>,
    /// Addresses of the cluster's other Nodes.
    pub other_nodes: BTreeSet<IpAddr>,
    /// Service CIDRs: packets to their addresses that no Service has are dropped.
    pub service_cidrs: BTreeSet<Network>,
    /// Which of the addresses take NodePorts.
    pub node_port_addresses: Vec<NodePortAddresses>,
    /// What becomes of packets to unknown ports.
    pub unknown_port: UnknownPort,
    /// Only Services with this value of the label [`super::PROXY_NAME_LABEL`] are handled; `None`:
    /// those without it.
    pub service_proxy_name: Option<String>,
}

/// What becomes of packets to a load balancer address or an external IP that are for no port of a
/// Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum UnknownPort {
    /// They are rejected, so that they never travel in circles between a router and the node.
    #[default]
    Reject,
    /// They are left to the node.
    Pass,
}

/// Some of the node's addresses: a value of `--nodeport-addresses`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The Node's primary address of each family.
    Primary,
    /// All addresses of its devices.
    All,
    /// 127.0.0.1 and ::1, for sockets of the node itself.
    Localhost,
    /// Those in a network.
    Network(Network),
}

/// Addresses by which a node talks to itself.
const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl NodeConfig {
    /// The addresses that take NodePorts. Networks of one family say nothing of the other.
    pub fn node_ports_at(&self) -> BTreeSet<IpAddr> {
        let configured = &self.node_port_addresses[..];
        let of_family = |family| {
            let is_said = configured.is_empty() || configured.iter().any(|choice| choice.concerns(family));
            let choices = if is_said {
                configured
            } else {
                &NodePortAddresses::DEFAULT
            };
            let chosen = choices.iter().flat_map(|choice| self.chosen(choice));
            chosen.filter(move |address| Family::of(*address) == family)
        };
        Family::ALL.into_iter().flat_map(of_family).collect()
    }

    fn chosen(&self, choice: &NodePortAddresses) -> Vec<IpAddr> {
        let own = self.addresses.iter().chain(&self.device_addresses).copied();
        match choice {
            NodePortAddresses::Primary => self.addresses.iter().copied().collect(),
            NodePortAddresses::All => own.collect(),
            NodePortAddresses::Localhost => LOCALHOST.into(),
            NodePortAddresses::Network(network) => {
                let all = own.chain(LOCALHOST);
                all.filter(|address| network.contains(*address)).collect()
            }
        }
    }

    /// Whether an address is this node's.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.device_addresses.contains(&address)
    }

    /// The addresses that are this node's and not the other's, or the other way round.
    pub fn differing_addresses(&self, other: &Self) -> BTreeSet<IpAddr> {
        let all = |node: &Self| node.addresses.union(&node.device_addresses).copied().collect();
        let [own, others]: [BTreeSet<IpAddr>; 2] = [self, other].map(all);
        own.symmetric_difference(&others).copied().collect()
    }

    /// Whether an address is this node's or another one's.
    pub fn is_a_nodes(&self, address: IpAddr) -> bool {
        self.owns(address) || self.other_nodes.contains(&address)
    }
}

impl NodePortAddresses {
    /// What holds where the command line does not say.
    pub const DEFAULT: [Self; 2] = [Self::Primary, Self::Localhost];

    /// Whether it says which addresses of a family take NodePorts.
    fn concerns(&self, family: Family) -> bool {
        match self {
            Self::Primary | Self::All | Self::Localhost => true,
            Self::Network(network) => network.family() == family,
        }
    }
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "all" => Ok(Self::All),
            "localhost" => Ok(Self::Localhost),
            _ => text
                .parse()
                .map(Self::Network)
                .map_err(|_| "use primary, all, localhost or a network such as 192.0.2.0/24".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn which_addresses_take_node_ports() {
        let own = ["192.168.0.1", "fd00:168::1"];
        let devices = ["192.168.0.1", "10.9.0.1", "10.9.1.1", "fd00:9::1"];
        for (options, expected) in [
            ("", &[][..]),
            ("primary", &own[..]),
            ("localhost", &["127.0.0.1", "::1"]),
            (
                "primary,localhost",
                &["192.168.0.1", "fd00:168::1", "127.0.0.1", "::1"],
            ),
            (
                "all",
                &["192.168.0.1", "fd00:168::1", "10.9.0.1", "10.9.1.1", "fd00:9::1"],
            ),
            // What networks of one family leave open is at its default.
            ("10.9.0.0/16", &["10.9.0.1", "10.9.1.1", "fd00:168::1", "::1"]),
            ("fd00:9::/32", &["192.168.0.1", "127.0.0.1", "fd00:9::1"]),
            (
                "10.9.0.0/16,localhost",
                &["10.9.0.1", "10.9.1.1", "127.0.0.1", "::1"],
            ),
            ("10.9.1.7/24,fd00::/8", &["10.9.1.1", "fd00:9::1", "fd00:168::1"]),
            ("172.16.0.0/12", &["fd00:168::1", "::1"]),
            ("172.16.0.0/12,2001:db8::/32", &[]),
            (
                "0.0.0.0/0",
                &[
                    "192.168.0.1",
                    "10.9.0.1",
                    "10.9.1.1",
                    "127.0.0.1",
                    "fd00:168::1",
                    "::1",
                ],
            ),
            ("::1/128,primary", &["192.168.0.1", "fd00:168::1", "::1"]),
        ] {
            let options = options.split(',').filter(|option| !option.is_empty());
            let node = NodeConfig {
                addresses: set(&own),
                device_addresses: set(&devices),
                node_port_addresses: options.clone().map(|option| option.parse().unwrap()).collect(),
                ..NodeConfig::default()
            };
            assert_eq!(node.node_ports_at(), set(expected), "{options:?}");
        }
    }

    #[test]
    fn values_that_are_neither_a_word_nor_a_network() {
        for text in ["", "Primary", "eth0", "10.0.0.1", "10.0.0.0/33"] {
            assert!(text.parse::<NodePortAddresses>().is_err(), "{text}");
        }
    }
}
