//! Maglev tables. A flow's hash selects an entry, and the entry contains the backend. The tables
//! are the same on every node with the same backends. When one backend is added or removed, few
//! other entries change.
//!
//! The algorithm is that of section 3.4 of "Maglev: A Fast and Reliable Software Network Load
//! Balancer" (Eisenbud and others, NSDI 2016), except for the order in which a backend prefers the
//! entries. In the paper, a backend steps through the entries with a constant width. Sometimes two
//! backends then have nearly the same order, and many entries of one of them change when the other
//! one is removed. Here, the multiplicative inverse of each step modulo the size scatters the
//! entries. Tables of different sizes have nothing in common. So there are few sizes, and they are
//! far apart.

use std::net::{IpAddr, SocketAddr};

/// The sizes of tables. They are primes, so that every step width visits all entries.
const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];
/// The number of entries for each backend, up to the size of the largest table. With a tenth of it,
/// shares of backends would still differ by at most 1 %, but when a backend is removed, up to 3 %
/// of the entries would change in addition to its own. With this number, the maximum of 11,000
/// random sets was 0.84 %.
const ENTRIES_PER_BACKEND: usize = 1400;
/// Up to this number of backends, the table has the smallest size. If one of two backends is
/// removed, all entries belong to the other one, so no other entries can change.
const FEW_BACKENDS: usize = 2;

/// Returns the number of entries of the table for this number of backends; 0 for 0.
pub fn size(backends: usize) -> usize {
    let sizes = SIZES.map(|size| size as usize);
    let wanted = match backends {
        0 => return 0,
        1..=FEW_BACKENDS => sizes[0],
        backends => backends.saturating_mul(ENTRIES_PER_BACKEND),
    };
    let fitting = sizes.into_iter().find(|size| *size >= wanted);
    fitting.unwrap_or(sizes[SIZES.len() - 1])
}

/// Returns the table for these backends, as indices of `backends`. Each backend must occur once.
/// Their order does not affect which backend an entry contains.
pub fn table(backends: &[SocketAddr]) -> Vec<u32> {
    let size = size(backends.len());
    let inverses = inverses(size);
    let mut preferences: Vec<Preferences> = (0..)
        .zip(backends)
        .map(|(backend, address)| Preferences::of(*address, backend, size))
        .collect();
    preferences.sort_unstable_by_key(|preferences| preferences.address);
    let mut table = vec![0; size];
    let mut is_taken = vec![false; size];
    let mut free = size;
    while free > 0 {
        // The backends take turns. Each takes the free entry that it prefers most.
        for preferences in preferences.iter_mut().take(free) {
            let entry = preferences.next_free(&is_taken, &inverses);
            is_taken[entry] = true;
            table[entry] = preferences.backend;
        }
        free = free.saturating_sub(preferences.len());
    }
    table
}

/// Returns the multiplicative inverses of all numbers modulo a prime. The inverse of 0 is 0.
fn inverses(prime: usize) -> Vec<u32> {
    let mut inverses = vec![0_u32; prime];
    let mut known: Vec<u64> = vec![0; prime];
    for number in 1..prime {
        // prime = quotient * number + rest implies 1 / number = -quotient / rest.
        let inverse = match number {
            1 => 1,
            _ => {
                let quotient = (prime / number) as u64;
                prime as u64 - quotient * known[prime % number] % prime as u64
            }
        };
        known[number] = inverse;
        inverses[number] = u32::try_from(inverse).unwrap_or_default();
    }
    inverses
}

/// The order in which one backend prefers the entries.
struct Preferences {
    address: SocketAddr,
    backend: u32,
    /// The next step, before scattering.
    next: usize,
    step: usize,
    /// The offset that is added after scattering.
    shift: usize,
}

impl Preferences {
    /// `size` is at least 3.
    fn of(address: SocketAddr, backend: u32, size: usize) -> Self {
        const SEEDS: [u64; 3] = [
            0x6d61_676c_6576_0001,
            0x6d61_676c_6576_0002,
            0x6d61_676c_6576_0003,
        ];
        let [start, step, shift] = SEEDS.map(|seed| hash(seed, address));
        Self {
            address,
            backend,
            next: remainder(start, size),
            step: remainder(step, size - 1) + 1,
            shift: remainder(shift, size),
        }
    }

    /// Returns the first free entry from `next` on. There must be one.
    fn next_free(&mut self, is_taken: &[bool], inverses: &[u32]) -> usize {
        let size = is_taken.len();
        loop {
            let entry = wrap(inverses[self.next] as usize + self.shift, size);
            self.next = wrap(self.next + self.step, size);
            if !is_taken[entry] {
                return entry;
            }
        }
    }
}

/// A number below twice the size, modulo the size.
fn wrap(number: usize, size: usize) -> usize {
    if number >= size { number - size } else { number }
}

fn remainder(hash: u64, modulus: usize) -> usize {
    // Sizes are far below any limit of these types.
    let modulus = u64::try_from(modulus).unwrap_or(u64::MAX);
    usize::try_from(hash % modulus).unwrap_or_default()
}

/// A hash of an address and port. It must be the same in all versions and on all machines.
fn hash(seed: u64, address: SocketAddr) -> u64 {
    let bits = match address.ip() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let high = u64::try_from(bits >> u64::BITS).unwrap_or_default();
    let low = u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
    [high, low, u64::from(address.port())]
        .into_iter()
        .fold(seed, |hash, word| mix(hash ^ word))
}

/// The last step of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014). Every output bit depends on every input bit.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// Addresses of either family in one block of Pods, so that they differ in few bits.
    fn backends() -> impl Strategy<Value = Vec<SocketAddr>> {
        let n = prop_oneof![Just(1_usize), 2..12_usize, 12..400_usize];
        (any::<bool>(), any::<u16>(), any::<u16>(), n).prop_map(|(is_v4, block, first, n)| {
            let address = |number: u16| -> IpAddr {
                let [a, b] = block.to_be_bytes();
                let [c, d] = number.to_be_bytes();
                match is_v4 {
                    true => [a, b, c, d].into(),
                    false => [0xfd00, block, 0, 0, 0, 0, 0, number].into(),
                }
            };
            let numbers = (0..n).map(|offset| first.wrapping_add(u16::try_from(offset).unwrap()));
            numbers
                .map(|number| SocketAddr::new(address(number), 8080))
                .collect()
        })
    }

    fn named(backends: &[SocketAddr]) -> Vec<SocketAddr> {
        let table = table(backends);
        table
            .into_iter()
            .map(|position| backends[position as usize])
            .collect()
    }

    #[test]
    fn sizes() {
        for (backends, expected) in [
            (0, 0),
            (1, 251),
            (2, 251),
            (3, 8191),
            (5, 8191),
            (6, 16_381),
            (46, 65_521),
            (47, 131_071),
            (1000, 131_071),
            (5000, 131_071),
            (usize::MAX, 131_071),
        ] {
            assert_eq!(size(backends), expected, "{backends}");
        }
        let is_prime = |number: u32| (2..number).all(|divisor| !number.is_multiple_of(divisor));
        assert!(SIZES.into_iter().all(is_prime));
    }

    #[test]
    fn the_table_without_backends_is_empty() {
        assert_eq!(table(&[]), [0; 0]);
    }

    /// If the table differed between nodes or versions, flows would move to other backends.
    #[test]
    fn the_table_never_changes_between_versions() {
        let backends = ["10.1.0.2:80", "10.1.0.3:80", "[fd00:1::2]:8080"].map(|text| text.parse().unwrap());
        assert_eq!(
            table(&backends)[..16],
            [2, 0, 1, 1, 2, 2, 2, 0, 1, 1, 1, 1, 0, 1, 0, 1]
        );
    }

    #[test]
    fn more_backends_than_entries_fill_the_table() {
        let address = |number: u32| SocketAddr::new(IpAddr::V4(number.into()), 80);
        let backends: Vec<_> = (0x0a00_0000..0x0a00_0000 + 131_072).map(address).collect();
        let table = table(&backends);
        assert_eq!(table.len(), 131_071);
        assert_eq!(table.into_iter().collect::<BTreeSet<_>>().len(), 131_071);
    }

    #[test]
    fn removing_a_backend_changes_at_most_one_percent_of_other_entries() {
        for n in [2_u8, 4, 5, 8, 10, 11, 20, 23, 40, 46, 100, 160, 250] {
            let all: Vec<SocketAddr> = (0..n)
                .map(|number| SocketAddr::new(IpAddr::from([10, 244, 1, number]), 8080))
                .collect();
            let before = named(&all);
            for leaver in [0, n / 2, n - 1].map(usize::from) {
                let mut left = all.clone();
                let leaver = left.remove(leaver);
                if size(left.len()) != before.len() {
                    continue;
                }
                let pairs = before.iter().zip(named(&left));
                let moved = pairs.filter(|(old, new)| *old != new).count();
                let limit = before.len() / all.len() + before.len() / 100;
                assert!(
                    moved <= limit,
                    "{n} backends without {leaver}: {moved} of {}",
                    before.len()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn backends_have_equal_shares(backends in backends()) {
            let table = named(&backends);
            prop_assert_eq!(table.len(), size(backends.len()));
            let mut shares: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            for backend in &table {
                *shares.entry(*backend).or_default() += 1;
            }
            let least = table.len() / backends.len();
            for backend in &backends {
                prop_assert!([least, least + 1].contains(&shares[backend]), "{} of {}", shares[backend], least);
            }
        }

        #[test]
        fn the_order_of_backends_does_not_matter(
            (backends, shuffled) in backends().prop_flat_map(|backends| {
                (Just(backends.clone()), Just(backends).prop_shuffle())
            }),
        ) {
            prop_assert_eq!(named(&backends), named(&shuffled));
        }

        #[test]
        fn removing_a_random_backend_changes_few_other_entries(
            backends in backends(),
            leaver: prop::sample::Index,
        ) {
            let before = named(&backends);
            let leaver = leaver.index(backends.len());
            let mut left = backends.clone();
            let leaver = left.remove(leaver);
            prop_assume!(size(left.len()) == size(backends.len()));
            let changed = before
                .iter()
                .zip(named(&left))
                .filter(|(old, new)| **old != leaver && *old != new)
                .count();
            // Of 12,315 random sets of up to 60 backends half change 0.5 % of the entries, and one
            // in 10,000 more than 0.9 %.
            prop_assert!(changed <= before.len() / 50, "{} of {}, {} backends", changed, before.len(), backends.len());
        }
    }
}
