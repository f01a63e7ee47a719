//! An ICMP message: its type and addresses.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::answer::ICMP_LENGTH;
use crate::net::protocol;
use crate::packet::Packet;
use crate::parse::{self, IpHeader, PLAIN_IPV4};

/// Types of ICMP for IPv4 (RFC 792).
pub(super) mod type4 {
    pub(in crate::icmp) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(in crate::icmp) const ECHO: u8 = 8;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
}

/// Types of ICMP for IPv6 (RFC 4443). All types below 128 are errors.
pub(super) mod type6 {
    pub(super) const UNREACHABLE: u8 = 1;
    pub(super) const PARAMETER_PROBLEM: u8 = 4;
    pub(in crate::icmp) const ECHO: u8 = 128;
    pub(in crate::icmp) const ECHO_REPLY: u8 = 129;
}

/// An ICMP message behind an IP header without options.
#[derive(Clone, Copy)]
pub(super) struct Message<A> {
    /// Offset of the IP header.
    pub(super) network: u32,
    pub(super) source: A,
    pub(super) destination: A,
    /// The ICMP type.
    pub(super) kind: u8,
    /// Length of IP header and payload.
    pub(super) ip_length: u32,
}

impl<A: IpHeader> Message<A> {
    /// The message in a packet with an IP header at `network`.
    #[inline(always)]
    pub(super) fn parse(packet: &impl Packet, network: u32) -> Option<Self> {
        let ip_length = if A::IS_IPV6 {
            let header = packet.view::<{ Ipv6Hdr::LEN }>(network)?;
            if header.u8::<0>() >> 4 != 6
                || header.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() != protocol::ICMPV6
            {
                return None;
            }
            A::HEADER_LENGTH + u32::from(u16::from_be(header.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>()))
        } else {
            let header = packet.view::<{ Ipv4Hdr::LEN }>(network)?;
            if header.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() != PLAIN_IPV4
                || header.u8::<{ offset_of!(Ipv4Hdr, proto) }>() != protocol::ICMP
                || parse::is_fragment4(header.u16::<{ offset_of!(Ipv4Hdr, frags) }>())
            {
                return None;
            }
            u32::from(u16::from_be(header.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()))
        };
        if network + ip_length > packet.length() || ip_length < A::HEADER_LENGTH + ICMP_LENGTH {
            return None;
        }
        let icmp = packet.view::<{ ICMP_LENGTH as usize }>(network + A::HEADER_LENGTH)?;
        Some(Self {
            network,
            source: A::read(packet, network + A::SOURCE_OFFSET)?,
            destination: A::read(packet, network + A::DESTINATION_OFFSET)?,
            kind: icmp.u8::<0>(),
            ip_length,
        })
    }

    #[inline(always)]
    pub(super) fn end(&self) -> u32 {
        self.network + self.ip_length
    }

    /// Offset of the IP header that an error quotes.
    #[inline(always)]
    pub(super) fn quotation(&self) -> u32 {
        self.network + A::HEADER_LENGTH + ICMP_LENGTH
    }

    #[inline(always)]
    pub(super) fn is_echo(&self) -> bool {
        self.kind == if A::IS_IPV6 { type6::ECHO } else { type4::ECHO }
    }

    #[inline(always)]
    pub(super) fn is_error(&self) -> bool {
        if A::IS_IPV6 {
            (type6::UNREACHABLE..=type6::PARAMETER_PROBLEM).contains(&self.kind)
        } else {
            matches!(
                self.kind,
                type4::UNREACHABLE | type4::TIME_EXCEEDED | type4::PARAMETER_PROBLEM
            )
        }
    }
}
