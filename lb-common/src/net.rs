//! Addresses, ports and numbers of the Internet protocols, in network byte order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Transport protocol numbers of the IP header (IANA protocol numbers).
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// A port in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// From a number in host byte order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// The number in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From the two bytes of a header field.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The two bytes of a header field.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
}

/// An IPv4 address in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Address4(u32);

/// An IPv6 address in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Address6([u32; 4]);

impl Address4 {
    /// From the four bytes of a header field.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// The four bytes of a header field.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// From the word as the kernel's `bpf_sock_addr` holds it: network byte order.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// The word in network byte order.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.0
    }
}

impl Address6 {
    /// From the words as the kernel's `bpf_sock_addr` holds them: network byte order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The words in network byte order.
    #[inline(always)]
    pub const fn to_words(self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 address inside an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, RFC 4291 section
    /// 2.5.5.2).
    #[inline(always)]
    pub const fn to_mapped(self) -> Option<Address4> {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be() {
            Some(Address4(self.0[3]))
        } else {
            None
        }
    }

    /// The IPv4-mapped IPv6 address of an IPv4 address.
    #[inline(always)]
    pub const fn from_mapped(address: Address4) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), address.0])
    }
}

impl From<Ipv4Addr> for Address4 {
    #[inline(always)]
    fn from(address: Ipv4Addr) -> Self {
        Self::from_bytes(address.octets())
    }
}

impl From<Address4> for Ipv4Addr {
    fn from(address: Address4) -> Self {
        Self::from(address.to_bytes())
    }
}

impl From<Ipv6Addr> for Address6 {
    fn from(address: Ipv6Addr) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(address.octets().chunks_exact(4)) {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(chunk);
            *word = u32::from_ne_bytes(bytes);
        }
        Self(words)
    }
}

impl From<Address6> for Ipv6Addr {
    fn from(address: Address6) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::from(octets)
    }
}

impl From<Address4> for IpAddr {
    fn from(address: Address4) -> Self {
        Self::V4(address.into())
    }
}

impl From<Address6> for IpAddr {
    fn from(address: Address6) -> Self {
        Self::V6(address.into())
    }
}

/// Bits of the TCP flags byte (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset the connection.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement field is valid.
    pub const ACK: u8 = 1 << 4;
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::{Address4, Address6, Port};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_port_keeps_its_number(number: u16) {
            let port = Port::new(number);
            prop_assert_eq!(port.get(), number);
            prop_assert_eq!(port.to_bytes(), number.to_be_bytes());
            prop_assert_eq!(Port::from_bytes(number.to_be_bytes()), port);
        }

        #[test]
        fn an_ipv4_address_keeps_its_octets(octets: [u8; 4]) {
            let address = Address4::from(Ipv4Addr::from(octets));
            prop_assert_eq!(address.to_bytes(), octets);
            prop_assert_eq!(address.to_word().to_ne_bytes(), octets);
            prop_assert_eq!(Address4::from_word(address.to_word()), address);
            prop_assert_eq!(Ipv4Addr::from(address).octets(), octets);
        }

        #[test]
        fn an_ipv6_address_keeps_its_octets(octets: [u8; 16]) {
            let address = Address6::from(Ipv6Addr::from(octets));
            prop_assert_eq!(address.to_words()[1].to_ne_bytes(), [octets[4], octets[5], octets[6], octets[7]]);
            prop_assert_eq!(Address6::from_words(address.to_words()), address);
            prop_assert_eq!(Ipv6Addr::from(address).octets(), octets);
        }

        #[test]
        fn a_mapped_address_keeps_its_ipv4_octets(octets: [u8; 4]) {
            let address = Address4::from_bytes(octets);
            let mapped = Address6::from_mapped(address);
            prop_assert_eq!(Ipv6Addr::from(mapped), Ipv4Addr::from(octets).to_ipv6_mapped());
            prop_assert_eq!(mapped.to_mapped(), Some(address));
        }

        #[test]
        fn mapped_addresses_match_the_standard_library(octets: [u8; 16], zeros in 0_usize..16) {
            let mut octets = octets;
            octets[..zeros.min(10)].fill(0);
            if zeros > 12 {
                octets[10..12].fill(0xff);
            }
            let address = Ipv6Addr::from(octets);
            let expected = address.to_ipv4_mapped().map(Address4::from);
            prop_assert_eq!(Address6::from(address).to_mapped(), expected);
        }
    }
}
