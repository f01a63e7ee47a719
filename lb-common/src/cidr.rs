//! Service CIDRs: the networks that cluster IPs are of. A packet to an address of one that no
//! Service has is dropped, since nobody else has the address either: the node's default route would
//! take it, and it may travel in circles.
//!
//! The networks are the rows of the set [`SET`] of source ranges. Most packets of a node are not
//! for any of them, so [`Networks`] tells first, for the price of an access to an array, whether
//! the rows are worth a look.

use crate::address::Address;
use crate::choose::{Origin, find_frontend};
use crate::layout::assert_layout;
use crate::net::{Port, protocol};
use crate::packet::{Packet, Sender, Verdict};
use crate::parse::Parsed;
use crate::reason::Reason;
use crate::step::Step;
use crate::tables::Tables;

/// The set of source ranges that is the Service CIDRs. No frontend names it.
pub const SET: u32 = 0;

/// How many Service CIDRs of an IP version there may be: every packet is compared with all of its
/// version.
pub const MAX: usize = 8;

/// Where Service CIDRs are, as the first 64 bits of an address tell: value of the map of Service
/// CIDRs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Networks {
    v4: [Network; MAX],
    v6: [Network; MAX],
}

assert_layout! {
    Networks: 256, align 8;
}

/// What the first bits of an address are compared with. A mask of 0 ends the list.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
struct Network {
    mask: u64,
    bits: u64,
}

impl Networks {
    /// Whether an address may be of a Service CIDR.
    #[inline(always)]
    pub fn may_hold<A: Address>(&self, address: A) -> bool {
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

    /// Adds the network with this address and `prefix` leading bits; `false` if there is no room.
    /// One without leading bits would hold all addresses, and has no place here.
    pub fn add<A: Address>(&mut self, address: A, prefix: u8) -> bool {
        let mask = mask::<A>(prefix);
        let networks = if A::IS_IPV6 { &mut self.v6 } else { &mut self.v4 };
        let Some(free) = networks.iter_mut().find(|network| network.mask == 0) else {
            return false;
        };
        *free = Network {
            mask,
            bits: start(address.words()) & mask,
        };
        mask != 0
    }
}

/// The first 64 bits of an address, those of IPv4 followed by zeros.
#[inline(always)]
fn start([a, b, ..]: [u32; 4]) -> u64 {
    u64::from(a) << u32::BITS | u64::from(b)
}

/// The first bits that count.
fn mask<A: Address>(prefix: u8) -> u64 {
    let word = |from: u32| {
        let bits = u32::from(prefix).saturating_sub(from).min(u32::BITS);
        u32::MAX.checked_shl(u32::BITS - bits).unwrap_or(0).to_be()
    };
    start([word(0), if A::IS_IPV6 { word(u32::BITS) } else { 0 }, 0, 0])
}

/// Whether a packet to an address without a frontend is to be dropped, as far as the address tells.
///
/// Inside, only one that opens a connection is, or a datagram: another one may be an answer to a
/// client that has such an address. From outside none is an answer to anybody but this node and its
/// Pods ([`check_destination`]).
#[inline(always)]
pub(crate) fn stops<A: Address>(tables: &impl Tables<A>, parsed: &Parsed<A>, origin: Origin) -> bool {
    let opens = parsed.key.protocol == protocol::UDP || parsed.is_syn();
    (opens || origin == Origin::Outside) && holds(tables, parsed.key.destination)
}

/// Whether an address is of a Service CIDR.
///
/// Out of line: packets to Services do not pay for its stack.
#[inline(never)]
fn holds<A: Address>(tables: &impl Tables<A>, address: A) -> bool {
    tables.may_be_service(address) && tables.allows(SET, address)
}

/// Drops a packet without ports if its destination is of a Service CIDR, and neither a VIP nor this
/// node's or a Pod's of it.
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

/// Drops a packet to an address of a Service CIDR that no frontend has, unless the address is this
/// node's or a Pod's of it.
///
/// In line: of an address that is handed on through two functions, Linux 7.2 takes the memory for
/// dead ("slot poisoned by dead code elimination").
#[inline(always)]
pub(crate) fn check_destination<A: Address>(packet: &impl Packet, address: A) -> Step {
    match packet.sender(address) {
        Sender::Node | Sender::Pod => Step::Pass,
        Sender::Here | Sender::Behind | Sender::Network => Step::Stop(Reason::UnallocatedAddress),
    }
}

/// Whether a packet that leaves the node to the network is to be dropped: a process of the node has
/// sent it to an address of a Service CIDR that no frontend has.
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
    fn without_networks_nothing_is_held() {
        let networks = Networks::default();
        for address in ["0.0.0.0", "10.96.0.1", "255.255.255.255"] {
            assert!(!networks.may_hold(address4(address)), "{address}");
        }
        assert!(!networks.may_hold(address6("::")));
    }

    #[test]
    fn of_ipv6_the_first_64_bits_count() {
        let mut networks = Networks::default();
        assert!(networks.add(address6("fd00:10:96::"), 112));
        assert!(networks.may_hold(address6("fd00:10:96::7")));
        assert!(networks.may_hold(address6("fd00:10:96::1:7")));
        assert!(!networks.may_hold(address6("fd00:10:96:1::7")));
        assert!(!networks.may_hold(address4("10.96.0.1")));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut networks = Networks::default();
        for n in 0..8 {
            assert!(networks.add(Address4::from_bytes([10, n, 0, 0]), 16));
        }
        assert!(!networks.add(address4("10.8.0.0"), 16));
        assert!(networks.may_hold(address4("10.7.3.1")));
        assert!(!networks.may_hold(address4("10.8.3.1")));
        assert!(networks.add(address6("fd00::"), 64));
        // It would end the list.
        assert!(!Networks::default().add(address4("0.0.0.0"), 0));
    }

    proptest! {
        #[test]
        fn an_address_is_held_if_its_first_bits_are_those_of_a_network(
            networks in prop::collection::vec((any::<u32>(), 1..=32_u8), 0..MAX),
            address: u32,
            near in any::<bool>(),
            flipped in 0..32_u32,
        ) {
            // One that differs from a network in one bit is more likely to be wrong than any other.
            let first = networks.first().map_or(0, |(network, _)| network ^ 1 << flipped);
            let address = if near { first } else { address };
            let is_in = |prefix: u8, difference: u32| difference.leading_zeros() >= u32::from(prefix);
            let (mut v4, mut v6) = (Networks::default(), Networks::default());
            for (network, prefix) in &networks {
                prop_assert!(v4.add(Address4::from(Ipv4Addr::from_bits(*network)), *prefix));
                let network = u128::from(*network) << 64;
                prop_assert!(v6.add(Address6::from(Ipv6Addr::from_bits(network)), 32 + prefix));
            }
            let expected = networks.iter().any(|(network, prefix)| is_in(*prefix, network ^ address));
            prop_assert_eq!(v4.may_hold(Address4::from(Ipv4Addr::from_bits(address))), expected);
            let address = u128::from(address) << 64 | 7;
            prop_assert_eq!(v6.may_hold(Address6::from(Ipv6Addr::from_bits(address))), expected);
        }
    }
}
