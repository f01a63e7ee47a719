//! The networks from which Services get addresses.

use super::pool::Span;
use crate::network::Family;
use crate::service_cidr::{ServiceCidr, ServiceCidrError};

impl ServiceCidr {
    /// The numbers of the network's addresses. The first ones, up to 256, are left for manual
    /// choice (KEP-3070).
    pub(super) fn span(&self) -> Span {
        let all = 1_u128 << self.host_bits();
        let by_hand = if all <= 16 { 0 } else { (all / 16).clamp(16, 256) };
        Span {
            by_hand: u64::try_from(by_hand).unwrap_or_default(),
            size: self.size(),
        }
    }
}

/// The networks from which Services get addresses, at most one of each family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCidrs(Vec<ServiceCidr>);

impl ServiceCidrs {
    /// Takes the networks of an option, in the option's order.
    ///
    /// # Errors
    ///
    /// If two of the networks have the same family.
    pub fn new(networks: &[ServiceCidr]) -> Result<Self, ServiceCidrError> {
        let mut cidrs = Self(Vec::new());
        for network in networks {
            if cidrs.get(network.family()).is_some() {
                return Err(ServiceCidrError::Twice(network.family()));
            }
            cidrs.0.push(*network);
        }
        Ok(cidrs)
    }

    /// The family of Services that do not name one.
    pub(super) fn default_family(&self) -> Family {
        self.0.first().map_or(Family::V4, ServiceCidr::family)
    }

    /// The network of a family.
    pub(super) fn get(&self, family: Family) -> Option<ServiceCidr> {
        self.0.iter().copied().find(|cidr| cidr.family() == family)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::network::Cidr;

    fn cidr(text: &str) -> ServiceCidr {
        text.parse().unwrap()
    }

    #[test]
    fn service_cidrs_have_at_most_one_network_of_each_family() {
        let [v4, v6] = ["10.96.0.0/16", "fd00::/112"].map(cidr);
        let cidrs = ServiceCidrs::new(&[v6, v4]).unwrap();
        assert_eq!(cidrs.default_family(), Family::V6);
        assert_eq!(Family::ALL.map(|family| cidrs.get(family)), [Some(v4), Some(v6)]);
        let cidrs = ServiceCidrs::new(&[v6]).unwrap();
        assert_eq!(Family::ALL.map(|family| cidrs.get(family)), [None, Some(v6)]);
        for networks in [&[v4, v4][..], &[v4, v6, v4], &[v4, cidr("10.97.0.0/16")]] {
            let error = ServiceCidrs::new(networks).unwrap_err().to_string();
            assert_eq!(error, "--service-cidr names two IPv4 networks: name one");
        }
    }

    /// The examples of the Kubernetes documentation ("Service ClusterIP allocation"), and other
    /// sizes.
    #[test]
    fn the_ends_of_a_network_are_not_allocatable() {
        for (text, first, first_upper, last) in [
            ("10.96.0.0/24", "10.96.0.1", "10.96.0.17", "10.96.0.254"),
            ("10.96.0.0/20", "10.96.0.1", "10.96.1.1", "10.96.15.254"),
            ("10.96.0.0/16", "10.96.0.1", "10.96.1.1", "10.96.255.254"),
            ("10.96.0.0/28", "10.96.0.1", "10.96.0.1", "10.96.0.14"),
            ("10.96.0.0/27", "10.96.0.1", "10.96.0.17", "10.96.0.30"),
            ("10.96.0.4/30", "10.96.0.5", "10.96.0.5", "10.96.0.6"),
            ("fd00::/112", "fd00::1", "fd00::101", "fd00::ffff"),
            ("fd00::/127", "fd00::1", "fd00::1", "fd00::1"),
            ("fd00::/64", "fd00::1", "fd00::101", "fd00::ffff:ffff:ffff:ffff"),
        ] {
            let (cidr, span) = (cidr(text), cidr(text).span());
            let found = [0, span.by_hand, span.size - 1].map(|index| cidr.address(index).to_string());
            assert_eq!(found, [first, first_upper, last], "{text}");
        }
    }

    proptest! {
        #[test]
        fn address_numbers_convert_back(network in 0x0a00_0000..0x0b00_0000_u32, prefix in 8..=30_u8, index: u32) {
            let network = Cidr::new(IpAddr::V4(network.into()), prefix).unwrap();
            let cidr = cidr(&network.to_string());
            let index = u64::from(index) % cidr.span().size;
            prop_assert_eq!(cidr.index(cidr.address(index)), Some(index));
            prop_assert_eq!(cidr.index(network.address()), None);
        }

        #[test]
        fn only_allocatable_addresses_have_a_number(address: u8) {
            let cidr = cidr("10.96.0.16/28");
            let found = cidr.index(IpAddr::from([10, 96, 0, address]));
            prop_assert_eq!(found.is_some(), (17..=30).contains(&address));
            prop_assert_eq!(cidr.index(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(address)])), None);
        }
    }
}
