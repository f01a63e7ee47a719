//! What the decision code needs to know about an IP version.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::checksum::Sum;
use crate::net::{Address4, Address6, protocol};

/// An address of either IP version.
pub trait Address: Copy + Eq + Default {
    /// Whether this is IPv6.
    const IS_IPV6: bool;
    /// Length of the fixed IP header in bytes.
    const HEADER_LENGTH: u32;
    /// Offset of the source address in the IP header; the destination follows it.
    const SOURCE_OFFSET: u32;
    /// Offset of the destination address in the IP header.
    const DESTINATION_OFFSET: u32;
    /// The protocol number of ICMP for this IP version.
    const ICMP: u8;

    /// Adds the address to a checksum.
    fn sum(self, sum: Sum) -> Sum;

    /// Adds to a checksum the difference that replacing `self` by `new` makes.
    fn difference(self, new: Self, sum: Sum) -> Sum;

    /// Returns the argument of this IP version.
    fn select(v4: Address4, v6: Address6) -> Self;

    /// The address as four words in network byte order. For IPv4 the last three are zero.
    fn words(self) -> [u32; 4];

    /// Returns true for a loopback address (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    fn is_loopback(self) -> bool;

    /// Returns true if the address can belong to a single host: it is not broadcast, multicast,
    /// unspecified or loopback (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7). Only such
    /// addresses get answers.
    fn is_host(self) -> bool;

    /// The first 24 bits of an IPv4 address, or the first 64 of an IPv6 address.
    fn prefix(self) -> u64;

    /// Returns true if the address is all zeros.
    #[inline(always)]
    fn is_unspecified(self) -> bool {
        self == Self::default()
    }
}

impl Address for Address4 {
    const IS_IPV6: bool = false;
    const HEADER_LENGTH: u32 = Ipv4Hdr::LEN as u32;
    const SOURCE_OFFSET: u32 = offset_of!(Ipv4Hdr, src_addr) as u32;
    const DESTINATION_OFFSET: u32 = offset_of!(Ipv4Hdr, dst_addr) as u32;
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn sum(self, sum: Sum) -> Sum {
        sum.add(self.to_word())
    }

    #[inline(always)]
    fn difference(self, new: Self, sum: Sum) -> Sum {
        sum.replace(self.to_word(), new.to_word())
    }

    #[inline(always)]
    fn select(v4: Address4, _v6: Address6) -> Self {
        v4
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [self.to_word(), 0, 0, 0]
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        u32::from_be(self.to_word()) >> 24 == 127
    }

    #[inline(always)]
    fn is_host(self) -> bool {
        // From 224 on: class D is multicast, class E is reserved and contains broadcast.
        !matches!(u32::from_be(self.to_word()) >> 24, 0 | 127 | 224..)
    }

    #[inline(always)]
    fn prefix(self) -> u64 {
        u64::from(u32::from_be(self.to_word()) >> 8)
    }
}

impl Address for Address6 {
    const IS_IPV6: bool = true;
    const HEADER_LENGTH: u32 = Ipv6Hdr::LEN as u32;
    const SOURCE_OFFSET: u32 = offset_of!(Ipv6Hdr, src_addr) as u32;
    const DESTINATION_OFFSET: u32 = offset_of!(Ipv6Hdr, dst_addr) as u32;
    const ICMP: u8 = protocol::ICMPV6;

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
    fn select(_v4: Address4, v6: Address6) -> Self {
        v6
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        self.to_words()
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.to_words() == [0, 0, 0, 1_u32.to_be()]
    }

    #[inline(always)]
    fn is_host(self) -> bool {
        let [a, b, c, d] = self.to_words();
        let is_multicast = u32::from_be(a) >> 24 == 0xff;
        // Unspecified or loopback.
        let is_own = a | b | c == 0 && u32::from_be(d) <= 1;
        !is_multicast && !is_own
    }

    #[inline(always)]
    fn prefix(self) -> u64 {
        let [a, b, ..] = self.to_words();
        u64::from(a) << 32 | u64::from(b)
    }
}
