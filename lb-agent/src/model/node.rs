//! The node and the agent's options, if they affect the desired rows of Services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::network::{Cidr, Family};

/// The node's properties and the agent's options.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeConfig {
    /// The Node's name.
    pub name: String,
    /// The zone of the Node.
    pub zone: Option<String>,
    /// The Node's primary addresses, of both families.
    pub addresses: BTreeSet<IpAddr>,
    /// All addresses of its devices that other machines can send to: no loopback or link-local
    /// addresses.
    pub device_addresses: BTreeSet<IpAddr>,
    /// Addresses of the cluster's other Nodes.
    pub other_nodes: BTreeSet<IpAddr>,
    /// Service CIDRs. Packets to their addresses that no Service has are dropped.
    pub service_cidrs: BTreeSet<Cidr>,
    /// Which addresses accept NodePorts.
    pub node_port_addresses: Vec<NodePortAddresses>,
    /// The verdict for packets to unknown ports.
    pub unknown_port: UnknownPort,
    /// The agent only handles Services with this value of the label [`super::PROXY_NAME_LABEL`];
    /// `None` means Services without the label.
    pub service_proxy_name: Option<String>,
}

/// The verdict for packets to a load balancer address or an external IP whose port belongs to no
/// Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum UnknownPort {
    /// They are rejected. This prevents loops between a router and the node.
    #[default]
    Reject,
    /// They are passed to the node.
    Pass,
}

/// Some of the node's addresses: a value of `--nodeport-addresses`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The Node's primary address of each family.
    Primary,
    /// All addresses of the node's devices.
    All,
    /// 127.0.0.1 and ::1, for processes of the node itself.
    Localhost,
    /// The addresses in a network.
    Cidr(Cidr),
}

/// Loopback addresses.
const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl NodeConfig {
    /// The addresses that accept NodePorts. If the options only have networks of one family, the
    /// default applies to the other family.
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
            NodePortAddresses::Cidr(network) => {
                let all = own.chain(LOCALHOST);
                all.filter(|address| network.contains(*address)).collect()
            }
        }
    }

    /// Whether an address is this node's.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.device_addresses.contains(&address)
    }

    /// The addresses that exactly one of the two nodes has.
    pub fn differing_addresses(&self, other: &Self) -> BTreeSet<IpAddr> {
        let all = |node: &Self| node.addresses.union(&node.device_addresses).copied().collect();
        let [own, others]: [BTreeSet<IpAddr>; 2] = [self, other].map(all);
        own.symmetric_difference(&others).copied().collect()
    }

    /// Whether an address is this node's or another node's.
    pub fn is_a_nodes(&self, address: IpAddr) -> bool {
        self.owns(address) || self.other_nodes.contains(&address)
    }
}

impl NodePortAddresses {
    /// The default of `--nodeport-addresses`.
    pub const DEFAULT: [Self; 2] = [Self::Primary, Self::Localhost];

    /// Whether it selects addresses of a family.
    fn concerns(&self, family: Family) -> bool {
        match self {
            Self::Primary | Self::All | Self::Localhost => true,
            Self::Cidr(network) => network.family() == family,
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
                .map(Self::Cidr)
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
    fn options_select_the_addresses_for_node_ports() {
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
            // If all networks are of one family, the other family keeps its default.
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
    fn invalid_node_port_addresses_are_rejected() {
        for text in ["", "Primary", "eth0", "10.0.0.1", "10.0.0.0/33"] {
            assert!(text.parse::<NodePortAddresses>().is_err(), "{text}");
        }
    }
}
