//! What the decision code needs to know of an IP version.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::checksum::Sum;
use crate::layout::{Address4, Address6};

/// An address of either IP version.
pub trait Address: Copy + Eq + Default {
    /// Whether this is IPv6.
    const IS_IPV6: bool;
    /// Length of the fixed IP header in bytes.
    const HEADER_LENGTH: u32;

    /// Adds the address to a checksum.
    fn sum(self, sum: Sum) -> Sum;

    /// Adds the difference that replacing `self` by `new` makes.
    fn difference(self, new: Self, sum: Sum) -> Sum;

    /// The words of the address, those of IPv4 followed by zeros.
    fn words(self) -> [u32; 4];

    /// The address is all zeros.
    #[inline(always)]
    fn is_unspecified(self) -> bool {
        self == Self::default()
    }
}

impl Address for Address4 {
    const IS_IPV6: bool = false;
    const HEADER_LENGTH: u32 = Ipv4Hdr::LEN as u32;

    #[inline(always)]
    fn sum(self, sum: Sum) -> Sum {
        sum.add(self.to_word())
    }

    #[inline(always)]
    fn difference(self, new: Self, sum: Sum) -> Sum {
        sum.replace(self.to_word(), new.to_word())
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [self.to_word(), 0, 0, 0]
    }
}

impl Address for Address6 {
    const IS_IPV6: bool = true;
    const HEADER_LENGTH: u32 = Ipv6Hdr::LEN as u32;

    #[inline(always)]
    fn sum(self, sum: Sum) -> Sum {
        let words = self.to_words();
        sum.add(words[0]).add(words[1]).add(words[2]).add(words[3])
    }

    #[inline(always)]
    fn difference(self, new: Self, sum: Sum) -> Sum {
        let (old, new) = (self.to_words(), new.to_words());
        sum.replace(old[0], new[0])
            .replace(old[1], new[1])
            .replace(old[2], new[2])
            .replace(old[3], new[3])
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        self.to_words()
    }
}
