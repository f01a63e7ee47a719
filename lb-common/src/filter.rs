//! Which destination addresses are worth a look into the big maps: a bit for each hash of an address.
//!
//! Most packets of a node are not for a Service. A clear bit says so for the price of one access to an array that
//! stays in the processor's cache. A set bit says nothing: another address may share it, or it may be left over.

use crate::address::Address;

/// Words of the filter: 2^18 bits in 32 KiB, so that 10,000 addresses fill 4 % of it.
pub const WORDS: u32 = 1 << (POSITION_BITS - 6);
const POSITION_BITS: u32 = 18;

/// Where an address's bit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Index of the word, less than [`WORDS`].
    pub word: u32,
    /// The word with only this bit.
    pub bit: u64,
}

impl Position {
    /// The position of an address's bit.
    #[inline(always)]
    pub fn of(address: impl Address) -> Self {
        // Multiplication by an odd constant near 2^64 / golden ratio spreads addresses that follow each other
        // (Knuth, The Art of Computer Programming 3, section 6.4).
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let [a, b, c, d] = address.words();
        let high = u64::from(a) << 32 | u64::from(b);
        let low = u64::from(c) << 32 | u64::from(d);
        // The fold between lets the upper bits of a word, where the last byte of an address is, count too.
        let hash = (high.wrapping_mul(SPREAD).rotate_left(32) ^ low).wrapping_mul(SPREAD);
        let hash = (hash ^ hash >> 32).wrapping_mul(SPREAD);
        let position = hash >> (64 - POSITION_BITS);
        Self {
            word: (position >> 6) as u32,
            bit: 1 << (position & 63),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::BTreeSet;

    use super::*;
    use crate::layout::{Address4, Address6};

    #[test]
    fn addresses_that_follow_each_other_have_bits_of_their_own() {
        let v4 = (0..4096).map(|n| Address4::from(Ipv4Addr::from(0x0a60_0000 + n)));
        let v6 = (0..4096).map(|n| Address6::from(Ipv6Addr::from((0xfd00_u128 << 112) + n)));
        let positions4: BTreeSet<_> = v4.map(Position::of).map(|at| (at.word, at.bit)).collect();
        let positions6: BTreeSet<_> = v6.map(Position::of).map(|at| (at.word, at.bit)).collect();
        // Random positions would leave about 32 of 4096 without one of their own.
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
}
