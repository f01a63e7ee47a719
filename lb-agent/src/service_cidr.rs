//! Networks of cluster IPs, in the text format of the option and of ServiceCIDRs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::network::{Cidr, CidrError, Family, parse_address};

/// A network of cluster IPs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServiceCidr(Cidr);

/// Why a text is not a valid network of cluster IPs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServiceCidrError {
    /// It is not a network.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// It is an address with a prefix, not the network's first address.
    #[error("it is an address of the network {0}: write the network")]
    Host(Cidr),
    /// It contains no allocatable address.
    #[error("it contains no allocatable address: use a shorter prefix")]
    Small,
    /// It is too large. An API server rejects such a network, too.
    #[error("it is too large for Services: use a prefix of at least {0} bits")]
    Large(u8),
    /// Its addresses are not unicast addresses, or they cannot be routed.
    #[error("{0} is not a routable unicast address: use another network, as in 10.96.0.0/16")]
    Special(IpAddr),
    /// There is another network of the same family.
    #[error("--service-cidr names two {0} networks: name one")]
    Twice(Family),
}

impl ServiceCidr {
    /// The network.
    pub fn network(&self) -> Cidr {
        self.0
    }

    /// Its family.
    pub fn family(&self) -> Family {
        self.0.family()
    }

    /// The number of bits of an address after the prefix.
    pub fn host_bits(&self) -> u32 {
        let bits = match self.family() {
            Family::V4 => Ipv4Addr::BITS,
            Family::V6 => Ipv6Addr::BITS,
        };
        bits - u32::from(self.0.prefix())
    }

    /// The length of the shortest valid prefix: for IPv6 the API server's limit, for IPv4 the
    /// largest private network.
    fn prefix_min(&self) -> u8 {
        match self.family() {
            Family::V4 => 8,
            Family::V6 => 64,
        }
    }

    /// The number of allocatable addresses. As in the API server, these are all except the
    /// network's first one and, for IPv4, the last one.
    pub fn size(&self) -> u64 {
        let kept_out = match self.family() {
            Family::V4 => 2,
            Family::V6 => 1,
        };
        let all = 1_u128 << self.host_bits();
        u64::try_from(all.saturating_sub(kept_out)).unwrap_or(u64::MAX)
    }

    /// Returns the index of an allocatable address, counted from 0; `None` if the address is not
    /// allocatable.
    pub fn index(&self, address: IpAddr) -> Option<u64> {
        if !self.0.contains(address) {
            return None;
        }
        let offset = match (address, self.0.address()) {
            (IpAddr::V4(address), IpAddr::V4(first)) => u128::from(address.to_bits() - first.to_bits()),
            (IpAddr::V6(address), IpAddr::V6(first)) => address.to_bits() - first.to_bits(),
            _ => return None,
        };
        let index = u64::try_from(offset.checked_sub(1)?).ok()?;
        (index < self.size()).then_some(index)
    }

    /// Returns the allocatable address with this index, counted from 0.
    pub fn address(&self, index: u64) -> IpAddr {
        match self.0.address() {
            IpAddr::V4(first) => {
                let offset = u32::try_from(index).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits(first.to_bits().saturating_add(offset).saturating_add(1)).into()
            }
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(index) + 1).into(),
        }
    }
}

impl FromStr for ServiceCidr {
    type Err = ServiceCidrError;

    fn from_str(text: &str) -> Result<Self, ServiceCidrError> {
        let network: Cidr = text.parse()?;
        let written = text
            .split_once('/')
            .and_then(|(address, _)| parse_address(address));
        let cidr = Self(network);
        if cidr.host_bits() == 0 || cidr.size() == 0 {
            return Err(ServiceCidrError::Small);
        }
        if written != Some(network.address()) {
            return Err(ServiceCidrError::Host(network));
        }
        if network.prefix() < cidr.prefix_min() {
            return Err(ServiceCidrError::Large(cidr.prefix_min()));
        }
        let ends = [cidr.address(0), cidr.address(cidr.size() - 1)];
        match ends.into_iter().find(|address| is_special(*address)) {
            Some(address) => Err(ServiceCidrError::Special(address)),
            None => Ok(cidr),
        }
    }
}

fn is_special(address: IpAddr) -> bool {
    address.is_loopback()
        || address.is_multicast()
        || match address {
            IpAddr::V4(address) => {
                address.is_link_local() || address.octets()[0] == 0 || address.octets()[0] >= 240
            }
            IpAddr::V6(address) => address.is_unicast_link_local() || address.segments()[..5] == [0; 5],
        }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_networks_are_rejected() {
        for (text, fault) in [
            ("10.96.0.0/16", None),
            ("fd00:10:96::/112", None),
            ("10.96.0.0/30", None),
            ("fd00::/127", None),
            ("fd00::/64", None),
            ("10.0.0.0/8", None),
            (
                "10.96.0.5/16",
                Some("it is an address of the network 10.96.0.0/16: write the network"),
            ),
            (
                "fd00::1/112",
                Some("it is an address of the network fd00::/112: write the network"),
            ),
            ("10.96.0.5", Some("write an address, a slash")),
            ("10.96.0.0/33", Some("write an address, a slash")),
            ("10.96.0.5/32", Some("use a shorter prefix")),
            ("10.96.0.4/31", Some("use a shorter prefix")),
            ("fd00::1/128", Some("use a shorter prefix")),
            ("10.0.0.0/7", Some("at least 8 bits")),
            ("0.0.0.0/0", Some("at least 8 bits")),
            ("fd00::/63", Some("at least 64 bits")),
            ("127.0.0.0/8", Some("127.0.0.1 is not a routable unicast")),
            ("0.0.0.0/8", Some("0.0.0.1 is not a routable unicast")),
            ("169.254.0.0/16", Some("169.254.0.1 is not a routable unicast")),
            ("224.0.0.0/24", Some("224.0.0.1 is not a routable unicast")),
            ("240.0.0.0/8", Some("240.0.0.1 is not a routable unicast")),
            ("fe80::/64", Some("fe80::1 is not a routable unicast")),
            ("ff02::/64", Some("ff02::1 is not a routable unicast")),
            ("::/112", Some("::1 is not a routable unicast")),
        ] {
            let found = text.parse::<ServiceCidr>().map_err(|error| error.to_string());
            match (&found, fault) {
                (Ok(found), None) => assert_eq!(found.to_string(), text),
                (Err(found), Some(fault)) => assert!(found.contains(fault), "{text}: {found}"),
                _ => panic!("{text}: {found:?}, expected {fault:?}"),
            }
        }
    }
}
