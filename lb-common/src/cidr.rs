//! Service CIDRs: the networks from which cluster IPs are allocated. A packet to an address in a
//! Service CIDR that no Service has is dropped. No other host has the address either: the packet
//! would follow the node's default route and might loop.
//!
//! The networks are rows of the set [`SET`] of source ranges. Most packets of a node are not for
//! any of them. So the programs check [`ServiceCidrs`] first: one array access shows whether the
//! lookup of the rows is needed.

use crate::address::Address;
use crate::choose::{Origin, find_frontend};
use crate::layout::assert_layout;
use crate::net::{Port, protocol};
use crate::packet::{Packet, Sender, Verdict};
use crate::parse::Parsed;
use crate::reason::Reason;
use crate::step::Step;
use crate::tables::Tables;

/// The set of source ranges that holds the Service CIDRs. No frontend refers to it.
pub const SET: u32 = 0;

/// Maximum number of Service CIDRs of each IP version. Every packet is compared with all Service
/// CIDRs of its IP version.
pub const MAX: usize = 8;

/// The Service CIDRs, cut to the first 64 bits of an address: value of the map of Service CIDRs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct ServiceCidrs {
    v4: [Prefix; MAX],
    v6: [Prefix; MAX],
}

assert_layout! {
    ServiceCidrs: 256, align 8;
}

/// A mask for the first 64 bits of an address, and the masked bits of a network. A mask of 0 ends
/// the list.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
struct Prefix {
    mask: u64,
    bits: u64,
}

impl ServiceCidrs {
    /// Returns true if an address may be in a Service CIDR. Only its first 64 bits are compared.
    #[inline(always)]
    pub fn may_contain<A: Address>(&self, address: A) -> bool {
        let networks = if A::IS_IPV6 { &self.v6 } else { &self.v4 };
        let start = start(address.words());
        for network in networks {
            if network.mask == 0 {
                return false;
            }
            if start & network.mask == network.bits {
                return true;
            }
        }
        false
    }

    /// Adds the network with this address and `prefix` leading bits. Returns false if the list is
    /// full, or if `prefix` is 0: that network would contain all addresses.
    pub fn add<A: Address>(&mut self, address: A, prefix: u8) -> bool {
        let mask = mask::<A>(prefix);
        let networks = if A::IS_IPV6 { &mut self.v6 } else { &mut self.v4 };
        let Some(free) = networks.iter_mut().find(|network| network.mask == 0) else {
            return false;
        };
        *free = Prefix {
            mask,
            bits: start(address.words()) & mask,
        };
        mask != 0
    }
}

/// The first 64 bits of an address. For IPv4 the last 32 are zero.
#[inline(always)]
fn start([a, b, ..]: [u32; 4]) -> u64 {
    u64::from(a) << u32::BITS | u64::from(b)
}

/// The mask for the first `prefix` bits of an address.
fn mask<A: Address>(prefix: u8) -> u64 {
    let word = |from: u32| {
        let bits = u32::from(prefix).saturating_sub(from).min(u32::BITS);
        u32::MAX.checked_shl(u32::BITS - bits).unwrap_or(0).to_be()
    };
    start([word(0), if A::IS_IPV6 { word(u32::BITS) } else { 0 }, 0, 0])
}

/// Returns true if a packet to an address without a frontend must be dropped, before its route is
/// checked.
///
/// From inside, only datagrams and packets that open a connection are dropped. Others may be
/// answers to a client that has such an address. From outside, a packet can only be an answer to
/// this node or its Pods ([`check_destination`]).
#[inline(always)]
pub(crate) fn stops<A: Address>(tables: &impl Tables<A>, parsed: &Parsed<A>, origin: Origin) -> bool {
    let opens = parsed.key.protocol == protocol::UDP || parsed.is_syn();
    (opens || origin == Origin::Outside) && holds(tables, parsed.key.destination)
}

/// Returns true if an address is in a Service CIDR.
///
/// Not inlined, so that its stack is not added to that of packets to Services.
#[inline(never)]
fn holds<A: Address>(tables: &impl Tables<A>, address: A) -> bool {
    tables.may_be_service(address) && tables.allows(SET, address)
}

/// Drops a packet without ports if its destination is in a Service CIDR, is not a VIP, and is not
/// an address of this node or of one of its Pods.
#[inline(never)]
pub(crate) fn pass_or_drop<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    destination: A,
) -> Verdict {
    let is_unallocated = holds(tables, destination)
        && find_frontend(tables, destination, Port::default(), 0).is_none()
        && check_destination(packet, destination) != Step::Pass;
    if !is_unallocated {
        return Verdict::Pass;
    }
    tables.count_reason(Reason::UnallocatedAddress);
    Verdict::Drop
}

/// Drops a packet to an address of a Service CIDR without a frontend, unless this node or one of
/// its Pods has the address.
///
/// Inlined: if an address is passed through two functions, Linux 7.2 treats its memory as dead
/// ("slot poisoned by dead code elimination").
#[inline(always)]
pub(crate) fn check_destination<A: Address>(packet: &impl Packet, address: A) -> Step {
    match packet.sender(address) {
        Sender::Node | Sender::Pod => Step::Pass,
        Sender::Here | Sender::Behind | Sender::Network => Step::Stop(Reason::UnallocatedAddress),
    }
}

/// Returns true if a packet that leaves the node to the network must be dropped: a process of the
/// node has sent it to an address of a Service CIDR without a frontend.
#[inline(never)]
pub(crate) fn stops_leaving<A: Address>(tables: &impl Tables<A>, parsed: &Parsed<A>) -> bool {
    let key = &parsed.key;
    stops(tables, parsed, Origin::Inside)
        && find_frontend(tables, key.destination, key.destination_port, key.protocol).is_none()
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::net::{Address4, Address6};

    fn address4(text: &str) -> Address4 {
        text.parse::<Ipv4Addr>().unwrap().into()
    }

    fn address6(text: &str) -> Address6 {
        text.parse::<Ipv6Addr>().unwrap().into()
    }

    #[test]
    fn an_empty_list_contains_no_address() {
        let networks = ServiceCidrs::default();
        for address in ["0.0.0.0", "10.96.0.1", "255.255.255.255"] {
            assert!(!networks.may_contain(address4(address)), "{address}");
        }
        assert!(!networks.may_contain(address6("::")));
    }

    #[test]
    fn only_the_first_64_bits_of_ipv6_are_compared() {
        let mut networks = ServiceCidrs::default();
        assert!(networks.add(address6("fd00:10:96::"), 112));
        assert!(networks.may_contain(address6("fd00:10:96::7")));
        assert!(networks.may_contain(address6("fd00:10:96::1:7")));
        assert!(!networks.may_contain(address6("fd00:10:96:1::7")));
        assert!(!networks.may_contain(address4("10.96.0.1")));
    }

    #[test]
    fn eight_networks_of_each_family_fit() {
        let mut networks = ServiceCidrs::default();
        for n in 0..8 {
            assert!(networks.add(Address4::from_bytes([10, n, 0, 0]), 16));
        }
        assert!(!networks.add(address4("10.8.0.0"), 16));
        assert!(networks.may_contain(address4("10.7.3.1")));
        assert!(!networks.may_contain(address4("10.8.3.1")));
        assert!(networks.add(address6("fd00::"), 64));
        // A mask of 0 would end the list.
        assert!(!ServiceCidrs::default().add(address4("0.0.0.0"), 0));
    }

    proptest! {
        #[test]
        fn an_address_is_in_a_network_with_the_same_prefix(
            networks in prop::collection::vec((any::<u32>(), 1..=32_u8), 0..MAX),
            address: u32,
            near in any::<bool>(),
            flipped in 0..32_u32,
        ) {
            // An address that differs from a network in only one bit is most likely to reveal an
            // error.
            let first = networks.first().map_or(0, |(network, _)| network ^ 1 << flipped);
            let address = if near { first } else { address };
            let is_in = |prefix: u8, difference: u32| difference.leading_zeros() >= u32::from(prefix);
            let (mut v4, mut v6) = (ServiceCidrs::default(), ServiceCidrs::default());
            for (network, prefix) in &networks {
                prop_assert!(v4.add(Address4::from(Ipv4Addr::from_bits(*network)), *prefix));
                let network = u128::from(*network) << 64;
                prop_assert!(v6.add(Address6::from(Ipv6Addr::from_bits(network)), 32 + prefix));
            }
            let expected = networks.iter().any(|(network, prefix)| is_in(*prefix, network ^ address));
            prop_assert_eq!(v4.may_contain(Address4::from(Ipv4Addr::from_bits(address))), expected);
            let address = u128::from(address) << 64 | 7;
            prop_assert_eq!(v6.may_contain(Address6::from(Ipv6Addr::from_bits(address))), expected);
        }
    }
}
