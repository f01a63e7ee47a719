//! IP versions, addresses and networks, with the text formats of objects and options.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IP version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
pub enum Family {
    /// IPv4
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Parses an address. Leading zeros of IPv4 are decimal: old objects contain them, and Kubernetes
/// parses them like this.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_decimal(parts.next()?)?;
    }
    parts
        .next()
        .is_none()
        .then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Parses digits only. The standard library also accepts a sign.
fn parse_decimal(text: &str) -> Option<u8> {
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_decimal)
}

/// All addresses with the same leading bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cidr {
    /// The lowest address: the bits after the prefix are zero.
    address: IpAddr,
    prefix: u8,
}

/// A text is not a network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a network: write an address, a slash and the number of its leading bits, as in 10.0.0.0/8")]
pub struct CidrError;

impl Cidr {
    /// Returns the network of this address; `None` if the prefix is longer than an address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let host_bits = bits(address).checked_sub(u32::from(prefix))?;
        Some(Self {
            address: clear(address, host_bits),
            prefix,
        })
    }

    /// Returns the network that only contains this address.
    pub fn host(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }

    /// Its lowest address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of leading bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// Whether the two networks have addresses in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.prefix).is_some_and(|network| network == *self)
    }
}

/// The length of an address in bits.
fn bits(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => Ipv4Addr::BITS,
        IpAddr::V6(_) => Ipv6Addr::BITS,
    }
}

/// Clears the last bits of an address.
fn clear(address: IpAddr, host_bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            Self::new(parse_address(address)?, parse_decimal(prefix)?)
        };
        parse().ok_or(CidrError)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        for (text, address) in [
            ("010.096.000.010", Some("10.96.0.10")),
            ("10.96.0.10", Some("10.96.0.10")),
            ("fd00::1", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("10.96.0", None),
            ("10.96.0.1.1", None),
            ("10.96.0.256", None),
            ("10.96.0.+1", None),
            ("", None),
        ] {
            assert_eq!(
                parse_address(text),
                address.map(|address| address.parse().unwrap()),
                "{text}"
            );
        }
    }

    #[test]
    fn networks() {
        for (text, network) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("010.000.000.000/08", Some("10.0.0.0/8")),
            ("255.255.255.255/0", Some("0.0.0.0/0")),
            ("10.1.2.3/32", Some("10.1.2.3/32")),
            ("fd00:1::ff/64", Some("fd00:1::/64")),
            ("fd00::1/128", Some("fd00::1/128")),
            ("::1/0", Some("::/0")),
            ("10.0.0.0/33", None),
            ("fd00::/129", None),
            ("fd00::/256", None),
            ("::ffff:10.0.0.0/104", None),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/8 ", None),
            ("/8", None),
        ] {
            let found = text.parse::<Cidr>().map(|network| network.to_string());
            assert_eq!(found.ok().as_deref(), network, "{text}");
        }
    }

    #[test]
    fn families_do_not_contain_each_other() {
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("10.0.0.1".parse().unwrap()));
        assert!(!all.contains("::".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn an_address_is_in_a_network_if_their_first_bits_are_equal(network: u32, address: u32, prefix in 0..=32_u8) {
            let (of_v4, of_v6) = (
                Cidr::new(IpAddr::V4(network.into()), prefix).unwrap(),
                Cidr::new(IpAddr::V6((u128::from(network) << 96).into()), prefix).unwrap(),
            );
            let equal_bits = (network ^ address).leading_zeros();
            let expected = equal_bits >= u32::from(prefix);
            prop_assert_eq!(of_v4.contains(IpAddr::V4(address.into())), expected);
            prop_assert_eq!(of_v6.contains(IpAddr::V6((u128::from(address) << 96).into())), expected);
        }

        #[test]
        fn the_text_of_a_network_is_parsed_back(address: std::net::Ipv6Addr, prefix in 0..=128_u8) {
            let network = Cidr::new(IpAddr::V6(address), prefix).unwrap();
            // An IPv4-mapped IPv6 address is parsed as IPv4.
            prop_assume!(!network.address().to_canonical().is_ipv4());
            prop_assert_eq!(network.to_string().parse(), Ok(network));
        }
    }
}
