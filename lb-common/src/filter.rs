//! Bloom-like filters of addresses: a packet whose bit is not set skips the lookups in the big
//! maps. One filter has a bit for each hash of a frontend's address. The other has a bit for each
//! hash of a backend's address and port, from which replies come.
//!
//! Most packets of a node are neither to nor from a Service. A clear bit shows this with one access
//! to an array that stays in the CPU's cache. A set bit proves nothing: another address may share
//! it, or it may be stale.

use crate::address::Address;
use crate::net::Port;

/// Words of the filter of destinations: 2^18 bits in 32 KiB. 10,000 addresses fill 4 % of it.
pub const WORDS: u32 = 1 << (POSITION_BITS - WORD_BITS);
const POSITION_BITS: u32 = 18;
/// Words of the filter of replies: 2^20 bits in 128 KiB. 40,000 backends fill 4 % of it.
pub const REPLY_WORDS: u32 = 1 << (LINE_BITS + POSITION_IN_LINE_BITS - WORD_BITS);
/// The bits of all ports of an address are in 64 bytes, which are one or two cache lines, because a
/// client uses many ports. The kernel aligns arrays to 8 bytes only.
const LINE_BITS: u32 = 11;
const POSITION_IN_LINE_BITS: u32 = 9;
/// A word has 2^6 bits.
const WORD_BITS: u32 = 6;

/// Position of a bit in a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Index of the word, less than [`WORDS`] or [`REPLY_WORDS`].
    pub word: u32,
    /// The word with only this bit.
    pub bit: u64,
}

/// An odd constant near 2^64 / golden ratio. Multiplication by it spreads consecutive numbers over
/// the upper bits (Knuth, The Art of Computer Programming 3, section 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Position {
    /// The bit for a destination address.
    #[inline(always)]
    pub fn of(address: impl Address) -> Self {
        Self::at(hash(address) >> (u64::BITS - POSITION_BITS))
    }

    /// The bit for replies from this address and port.
    #[inline(always)]
    pub fn of_replies(address: impl Address, port: Port) -> Self {
        let line = hash(address) >> (u64::BITS - LINE_BITS);
        let port = u64::from(port.get()).wrapping_mul(SPREAD);
        Self::at(line << POSITION_IN_LINE_BITS | port >> (u64::BITS - POSITION_IN_LINE_BITS))
    }

    #[inline(always)]
    fn at(position: u64) -> Self {
        Self {
            word: (position >> WORD_BITS) as u32,
            bit: 1 << (position & u64::from(u64::BITS - 1)),
        }
    }
}

#[inline(always)]
fn hash(address: impl Address) -> u64 {
    let [a, b, c, d] = address.words();
    let high = u64::from(a) << 32 | u64::from(b);
    let low = u64::from(c) << 32 | u64::from(d);
    // The last byte of an address is in the upper bits of its word. The fold makes these bits count
    // too.
    let hash = (high.wrapping_mul(SPREAD).rotate_left(32) ^ low).wrapping_mul(SPREAD);
    (hash ^ hash >> 32).wrapping_mul(SPREAD)
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::BTreeSet;

    use super::*;
    use crate::net::{Address4, Address6};

    #[test]
    fn consecutive_addresses_have_distinct_bits() {
        let v4 = (0..4096).map(|n| Address4::from(Ipv4Addr::from(0x0a60_0000 + n)));
        let v6 = (0..4096).map(|n| Address6::from(Ipv6Addr::from((0xfd00_u128 << 112) + n)));
        let positions4: BTreeSet<_> = v4.map(Position::of).map(|at| (at.word, at.bit)).collect();
        let positions6: BTreeSet<_> = v6.map(Position::of).map(|at| (at.word, at.bit)).collect();
        // With random positions about 32 of 4096 addresses would share a bit.
        assert!(
            positions4.len() > 4000 && positions6.len() > 4000,
            "{} {}",
            positions4.len(),
            positions6.len()
        );
        assert!(
            positions4
                .iter()
                .all(|(word, bit)| *word < WORDS && bit.count_ones() == 1)
        );
    }

    fn reply_positions(hosts: u16, ports: u16) -> [BTreeSet<(u32, u64)>; 2] {
        let positions = (0..hosts).flat_map(|host| {
            let v4 = Address4::from(Ipv4Addr::from(0x0a0a_0000 + u32::from(host)));
            let v6 = Address6::from(Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(host)));
            let ports = (8080..8080 + ports).map(Port::new);
            ports.map(move |port| [Position::of_replies(v4, port), Position::of_replies(v6, port)])
        });
        let (v4, v6) = positions
            .map(|positions| positions.map(|at| (at.word, at.bit)).into())
            .unzip();
        [v4, v6]
    }

    #[test]
    fn the_bits_of_an_address_are_in_one_line() {
        for positions in reply_positions(1, 512) {
            let lines: BTreeSet<u32> = positions.iter().map(|(word, _)| word / 8).collect();
            assert_eq!(lines.len(), 1);
            // Random positions would give 324 distinct bits.
            assert!(positions.len() > 420, "{}", positions.len());
        }
    }

    #[test]
    fn consecutive_addresses_have_distinct_lines() {
        for positions in reply_positions(256, 1) {
            // Random lines would give 241 distinct bits.
            assert!(positions.len() > 220, "{}", positions.len());
            let is_bit = |(word, bit): &(u32, u64)| *word < REPLY_WORDS && bit.count_ones() == 1;
            assert!(positions.iter().all(is_bit));
        }
    }
}
