//! Hashes that select the backend of a packet without a remembered flow. They depend only on the
//! packet and a seed, so every node computes the same hash, also after it has forgotten the flow.
//! All nodes of a cluster have the same seed. Clients do not know it, so they cannot direct traffic
//! at one Pod.

use crate::address::Address;
use crate::layout::FlowKey;

/// A running hash.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Mixes in a word by multiplication with an odd constant near 2^64 / golden ratio (Knuth, The
    /// Art of Computer Programming 3, section 6.4). The shift brings the well mixed upper half
    /// down.
    #[inline(always)]
    const fn add(self, word: u32) -> Self {
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = (self.0 ^ word as u64).wrapping_mul(SPREAD);
        Self(mixed ^ (mixed >> 32))
    }

    #[inline(always)]
    fn add_address(self, address: impl Address) -> Self {
        let [a, b, c, d] = address.words();
        self.add(u32::from_be(a))
            .add(u32::from_be(b))
            .add(u32::from_be(c))
            .add(u32::from_be(d))
    }

    #[inline(always)]
    const fn finish(self) -> u32 {
        // One more round, so that the last word affects all bits.
        self.add(0).0 as u32
    }
}

/// The hash of a connection: of addresses, ports and protocol.
#[inline(always)]
pub fn of_connection<A: Address>(seed: u64, key: &FlowKey<A>) -> u32 {
    Hash::new(seed)
        .add_address(key.source)
        .add_address(key.destination)
        .add(u32::from_be(key.ports_word()))
        .add(u32::from(key.protocol))
        .finish()
}

/// The hash of a client: of its address only.
#[inline(always)]
pub fn of_client(seed: u64, address: impl Address) -> u32 {
    Hash::new(seed).add_address(address).finish()
}

/// The next hash, after one that led to no usable backend.
#[inline(always)]
pub fn next(hash: u32) -> u32 {
    Hash::new(0).add(hash).finish()
}

#[cfg(test)]
mod tests {
    use super::{next, of_client, of_connection};
    use crate::layout::{FlowKey, hook};
    use crate::net::{Address4, Address6, Port, protocol};
    use core::net::Ipv4Addr;

    const SEED: u64 = 0x0123_4567_89ab_cdef;

    fn client(n: u32) -> Address4 {
        Address4::from(Ipv4Addr::from(0x0a00_0000 + n))
    }

    fn key(source: Address4, port: u16) -> FlowKey<Address4> {
        FlowKey {
            source,
            destination: client(99),
            source_port: Port::new(port),
            destination_port: Port::new(80),
            protocol: protocol::TCP,
            hook: hook::INGRESS_INSIDE,
            pad: 0,
        }
    }

    /// The numbers of hashes in the emptiest and in the fullest of 16 equal parts. The mean is
    /// 1000.
    fn spread(hashes: impl Iterator<Item = u32>) -> (u32, u32) {
        let mut parts = [0_u32; 16];
        hashes.for_each(|hash| parts[usize::try_from(hash >> 28).unwrap()] += 1);
        (*parts.iter().min().unwrap(), *parts.iter().max().unwrap())
    }

    #[test]
    fn consecutive_clients_and_ports_are_spread_evenly() {
        // A random function would nearly always keep all parts within four standard deviations
        // (126).
        let bounds = |(least, most): (u32, u32)| least > 850 && most < 1150;
        assert!(bounds(spread((0..16_000).map(|n| of_client(SEED, client(n))))));
        assert!(bounds(spread(
            (0..16_000).map(|port| of_connection(SEED, &key(client(1), port)))
        )));
        assert!(bounds(spread((0..16_000).map(next))));
    }

    #[test]
    fn hashes_do_not_change_between_versions() {
        // Fixed values, so that a change is noticed: during an upgrade, nodes of both versions must
        // agree.
        assert_eq!(of_client(0, client(1)), 3_310_418_408);
        assert_eq!(of_client(0, Address6::from_mapped(client(1))), 3_775_068_729);
        assert_eq!(of_connection(0, &key(client(1), 1000)), 137_281_556);
    }

    #[test]
    fn different_seeds_give_different_hashes() {
        // With two different seeds, about 32 of 64 clients are in the same half.
        let half = |seed, n| of_client(seed, client(n)) >> 31;
        let connection = |seed, port| of_connection(seed, &key(client(1), port)) >> 31;
        for other in [1, SEED, u64::MAX, 1 << 63] {
            let same = (0..64).filter(|n| half(0, *n) == half(other, *n)).count();
            assert!((16..48).contains(&same), "{other}: {same}");
            let same = (0..64).filter(|port| connection(0, *port) == connection(other, *port));
            let same = same.count();
            assert!((16..48).contains(&same), "{other}: {same}");
        }
    }
}
