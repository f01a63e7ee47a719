//! Rate limits for answers to clients. An answer to every packet would let a sender with a forged
//! address direct answers at a victim, and would keep the node busy (RFC 1812 section 4.3.2.8, RFC
//! 4443 section 2.4 f).
//!
//! Fragments that are handed to the kernel's own reassembly are limited in the same way. Its memory
//! is bounded, and a sender of later fragments without a first one would fill it.
//!
//! Each CPU has a token bucket for each source prefix and kind of answer, as the kernel has for
//! each peer (`inet_peer_xrlim_allow`,
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/inetpeer.c>).

use crate::address::Address;
use crate::layout::assert_layout;

/// Number of groups of buckets. The hash of a prefix selects its group.
const PREFIXES: u32 = 256;
/// Number of limits: kinds of answers, and detours.
const LIMITS: u32 = 3;
/// Number of buckets.
pub const BUCKETS: u32 = PREFIXES * LIMITS;

/// What is limited for each source prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// ICMP errors that report an unreachable port. Linux sends each peer one a second, and bursts
    /// of up to six. A prefix may contain several such peers.
    Errors,
    /// Answers to TCP, and ICMP errors for packets that are too big or whose hop limit is exceeded.
    /// The rate is that of all ICMP errors of Linux together (`icmp_msgs_per_sec`).
    Connections,
    /// Fragments that are handed to the kernel's own reassembly. The rate is a quarter of
    /// [`ALL_DETOURS`], so that one prefix cannot use up the limit of all.
    Detours,
}

/// A rate limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// The sustained rate.
    pub per_second: u32,
    /// The burst size after an idle period.
    pub burst: u32,
}

/// Limit for fragments that are handed to the kernel's own reassembly, for all senders together.
/// The fragments of any one second are fewer than its memory holds until they time out: 26,000
/// fragments of 1500 bytes for each family.
pub const ALL_DETOURS: Rate = Rate {
    per_second: 10_000,
    burst: 10_000,
};

impl Limit {
    /// The rate limit for one source prefix.
    #[inline(always)]
    pub const fn rate(self) -> Rate {
        let (per_second, burst) = match self {
            Self::Errors => (10, 50),
            Self::Connections => (1000, 1000),
            Self::Detours => (2500, 2500),
        };
        Rate { per_second, burst }
    }

    /// The index of a client's bucket, less than [`BUCKETS`]. Clients that have a prefix of 24 bits
    /// (IPv6: 64 bits) in common share a bucket.
    #[inline(always)]
    pub fn bucket(self, client: impl Address) -> u32 {
        /// An odd constant near 2^64 / golden ratio.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let hash = client.prefix().wrapping_mul(SPREAD) >> (u64::BITS - PREFIXES.ilog2());
        hash as u32 * LIMITS + self as u32
    }
}

/// A token bucket: value of the map of buckets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Bucket {
    /// When the bucket was last filled, in jiffies (lower 32 bits).
    pub filled: u32,
    /// The tokens that are left. One answer costs as many tokens as a second has jiffies.
    pub tokens: u32,
}

assert_layout! {
    Bucket: 8, align 4;
}

impl Bucket {
    /// Takes the tokens for one answer out of the bucket. Returns false if there are not enough.
    /// `now` is in jiffies, of which a second has `jiffies_per_second`.
    #[inline(always)]
    pub fn take(&mut self, now: u64, jiffies_per_second: u32, rate: Rate) -> bool {
        // Limit of the idle time that counts, so that its product with a rate does not overflow.
        const LONG: u32 = 1 << 16;
        let Rate { per_second, burst } = rate;
        let now = now as u32;
        let idle = now.wrapping_sub(self.filled);
        let gained = if idle < LONG { idle } else { LONG } * per_second;
        let most = burst * jiffies_per_second;
        let mut tokens = self.tokens.saturating_add(gained);
        if tokens > most {
            tokens = most;
        }
        self.filled = now;
        let is_enough = tokens >= jiffies_per_second;
        self.tokens = if is_enough {
            tokens - jiffies_per_second
        } else {
            tokens
        };
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::BTreeSet;

    use super::*;
    use crate::net::{Address4, Address6};

    const LIMITS_OF_PREFIXES: [Limit; 3] = [Limit::Errors, Limit::Connections, Limit::Detours];

    /// The number of answers, of `asked`, that the bucket allows at this time.
    fn given(bucket: &mut Bucket, now: u64, jiffies: u32, rate: Rate, asked: u32) -> u32 {
        let answers = (0..asked).filter(|_| bucket.take(now, jiffies, rate));
        u32::try_from(answers.count()).unwrap()
    }

    #[test]
    fn a_bucket_allows_a_burst_and_then_its_rate() {
        for limit in LIMITS_OF_PREFIXES
            .map(Limit::rate)
            .into_iter()
            .chain([ALL_DETOURS])
        {
            let Rate { per_second, burst } = limit;
            for jiffies in [100, 250, 1000] {
                for start in [0, 5, u64::from(u32::MAX) - 10] {
                    let mut bucket = Bucket::default();
                    let start = start + (1 << 20);
                    assert_eq!(given(&mut bucket, start, jiffies, limit, 20_000), burst);
                    assert_eq!(given(&mut bucket, start, jiffies, limit, 1), 0);
                    let mut all = 0;
                    for jiffy in 1..=10 * u64::from(jiffies) {
                        all += given(&mut bucket, start + jiffy, jiffies, limit, 100);
                    }
                    assert_eq!(all, 10 * per_second, "{limit:?} {jiffies}");
                    let later = start + (1 << 40);
                    assert!(given(&mut bucket, later, jiffies, limit, 10_000) <= burst);
                }
            }
        }
    }

    /// The README and docs/semantics.md state these numbers.
    #[test]
    fn limits_match_the_documentation() {
        let rates = LIMITS_OF_PREFIXES
            .map(Limit::rate)
            .map(|rate| (rate.per_second, rate.burst));
        assert_eq!(rates, [(10, 50), (1000, 1000), (2500, 2500)]);
        assert_eq!((ALL_DETOURS.per_second, ALL_DETOURS.burst), (10_000, 10_000));
    }

    #[test]
    fn clients_with_a_common_prefix_share_a_bucket() {
        let v4 = |text: &str| Address4::from(text.parse::<Ipv4Addr>().unwrap());
        let v6 = |text: &str| Address6::from(text.parse::<Ipv6Addr>().unwrap());
        for limit in LIMITS_OF_PREFIXES {
            assert_eq!(limit.bucket(v4("10.1.2.3")), limit.bucket(v4("10.1.2.255")));
            assert_ne!(limit.bucket(v4("10.1.2.3")), limit.bucket(v4("10.1.3.3")));
            assert_eq!(limit.bucket(v6("fd00::1")), limit.bucket(v6("fd00::ffff:1")));
            assert_ne!(limit.bucket(v6("fd00::1")), limit.bucket(v6("fd00:0:0:1::1")));
        }
        let buckets: BTreeSet<u32> = (0..65_536_u32)
            .map(|n| Address4::from(Ipv4Addr::from(0x0a00_0000 + (n << 8))))
            .flat_map(|client| LIMITS_OF_PREFIXES.map(|limit| limit.bucket(client)))
            .collect();
        assert_eq!(buckets.len(), usize::try_from(BUCKETS).unwrap());
        assert!(buckets.iter().all(|bucket| *bucket < BUCKETS));
    }
}
