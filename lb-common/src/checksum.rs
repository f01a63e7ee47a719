//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! The ones' complement sum does not depend on byte order, so words are added as they are in
//! memory.

/// A running ones' complement sum.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a word.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds the difference that replacing `old` by `new` makes.
    #[inline(always)]
    #[must_use]
    pub const fn replace(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// The sum of both.
    #[inline(always)]
    #[must_use]
    pub const fn join(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum folded to 32 bits, as `bpf_l4_csum_replace` expects it.
    #[inline(always)]
    pub const fn fold32(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// The sum folded to 16 bits.
    #[inline(always)]
    pub const fn fold16(self) -> u16 {
        let mut sum = self.fold32();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum field of data with this sum.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.fold16()
    }

    /// The checksum field `old` after the covered data changed by this difference.
    #[inline(always)]
    pub const fn update(self, old: u16) -> u16 {
        self.add((!old) as u32).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Sum;
    use proptest::prelude::*;

    fn sum(words: &[u32]) -> Sum {
        words.iter().fold(Sum::new(), |sum, word| sum.add(*word))
    }

    #[test]
    fn the_checksum_of_a_known_ipv4_header_is_correct() {
        // An IPv4 header whose checksum field (0xb861) is known.
        let words = [
            0x4500_0073_u32,
            0x0000_4000,
            0x4011_0000,
            0xc0a8_0001,
            0xc0a8_00c7,
        ]
        .map(u32::to_be);
        assert_eq!(sum(&words).finish(), 0xb861_u16.to_be());
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_recomputation(mut words in prop::collection::vec(any::<u32>(), 1..20), at in any::<prop::sample::Index>(), new in any::<u32>()) {
            let before = sum(&words).finish();
            let at = at.index(words.len());
            let difference = Sum::new().replace(words[at], new);
            words[at] = new;
            let expected = sum(&words).finish();
            let updated = difference.update(before);
            // 0x0000 and 0xffff are the same number in ones' complement.
            prop_assert!(updated == expected || (updated ^ expected == 0xffff && (updated == 0 || expected == 0)));
        }
    }
}
