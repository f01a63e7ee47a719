//! The addresses of a lab. They are in private or documentation ranges, and are the same in every
//! lab: namespaces separate the labs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 prefix length of the nodes' network.
pub(super) const NODE_PREFIX4: u8 = 24;
/// IPv6 prefix length of the nodes' network.
pub(super) const NODE_PREFIX6: u8 = 64;

/// The fabric's address in the nodes' network: their default gateway.
pub(super) const GATEWAY: Addresses = Addresses {
    ipv4: Ipv4Addr::new(172, 30, 0, 1),
    ipv6: Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1),
};

/// The other end of the link of a Pod or an outside client: its default gateway.
///
/// As with Calico, no device has the address. The machine has a permanent neighbour entry for it
/// with [`LEAF_GATEWAY_MAC`].
pub(super) const LEAF_GATEWAY: Addresses = Addresses {
    ipv4: Ipv4Addr::new(169, 254, 1, 1),
    ipv6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee),
};

/// Link-layer address of the other end of every Pod's and outside client's link, as with Calico.
pub(super) const LEAF_GATEWAY_MAC: Mac = Mac([0xee; 6]);

/// Link-layer address of a Pod whose kernel answers nothing. Its node needs a permanent neighbour
/// entry.
pub(super) const SILENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x51]);

/// The address of a client behind a Pod.
pub(super) const BEHIND: Addresses = Addresses {
    ipv4: Ipv4Addr::new(10, 87, 0, 10),
    ipv6: Ipv6Addr::new(0xfd00, 0x87, 0, 0, 0, 0, 0, 0x10),
};

/// The address of a container on a node that is not part of the cluster.
pub(super) const CONTAINER: Addresses = Addresses {
    ipv4: Ipv4Addr::new(10, 88, 0, 2),
    ipv6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 2),
};

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// One address per family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// IPv4
    pub ipv4: Ipv4Addr,
    /// IPv6
    pub ipv6: Ipv6Addr,
}

impl Addresses {
    /// Both, IPv4 first.
    pub fn both(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }
}

/// The address of the `node`th node, from 1.
pub(super) fn node(node: u8) -> Addresses {
    Addresses {
        ipv4: Ipv4Addr::new(172, 30, 0, 10 + node),
        ipv6: Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, u16::from(10 + node)),
    }
}

/// The address of the `node`th node's overlay device, from 1.
pub(super) fn overlay(node: u8) -> Addresses {
    Addresses {
        ipv4: Ipv4Addr::new(10, 245, 0, 10 + node),
        ipv6: Ipv6Addr::new(0xfd00, 0x245, 0, 0, 0, 0, 0, u16::from(10 + node)),
    }
}

/// The address of the `node`th node on links without Ethernet header to other nodes, from 1.
pub(super) fn layer3(node: u8) -> Addresses {
    Addresses {
        ipv4: Ipv4Addr::new(10, 246, 0, 10 + node),
        ipv6: Ipv6Addr::new(0xfd00, 0x246, 0, 0, 0, 0, 0, u16::from(10 + node)),
    }
}

/// The link-layer address of a node's overlay device.
pub(super) fn overlay_mac(node: u8) -> Mac {
    Mac([2, 0, 0, 0, 0xf5, node])
}

/// The `node`th node's Pod CIDRs.
pub(super) fn pod_cidrs(node: u8) -> (String, String) {
    (format!("10.244.{node}.0/24"), format!("fd00:244:{node:x}::/64"))
}

/// The address of the `pod`th Pod of a node, from 1.
pub(super) fn pod(node: u8, pod: u8) -> Addresses {
    Addresses {
        ipv4: Ipv4Addr::new(10, 244, node, 1 + pod),
        ipv6: Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(1 + pod)),
    }
}

/// The address of the Pod of a cluster inside a container on a node. That cluster has the same Pod
/// CIDRs.
pub(super) fn inner_pod(node: u8) -> Addresses {
    pod(node, 199)
}

/// The address of the `index`th machine outside, client or router, from 1.
pub(super) fn outside(index: u8) -> Addresses {
    Addresses {
        ipv4: Ipv4Addr::new(203, 0, 113, 9 + index),
        ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, u16::from(9 + index)),
    }
}

/// The networks that are routed to that machine: IPv4, IPv6.
pub(super) fn outside_networks(index: u8) -> [String; 2] {
    [
        format!("198.18.{index}.0/24"),
        format!("2001:db8:c:{index:x}::/64"),
    ]
}

/// An address of these networks.
pub(super) fn in_outside_network(index: u8, host: u8) -> Addresses {
    Addresses {
        ipv4: Ipv4Addr::new(198, 18, index, host),
        ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0xc, u16::from(index), 0, 0, 0, u16::from(host)),
    }
}
