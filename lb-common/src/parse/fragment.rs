//! The headers of fragments.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::extension;
use crate::packet::{Packet, Part};

/// More fragments, or an offset: bits of the fragment field of an IPv4 header.
const FRAGMENT_BITS: u16 = 0x3fff_u16.to_be();

/// A fragment of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentHeader {
    /// The identification that all fragments of a datagram share, in header byte order.
    pub identification: u32,
    /// Protocol of the datagram.
    pub protocol: u8,
    /// Whether it is the first fragment.
    pub part: Part,
    /// Offset of the fragment's content.
    pub content: u32,
    /// Length of the fragment's content.
    pub content_length: u32,
    /// Length of IP header and payload.
    pub ip_length: u32,
}

/// Bits of an IPv4 header's fragment field that hold the offset in the datagram.
const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();

/// Parses the fragment in an IPv4 packet at `offset`. Packets with options are not parsed.
#[inline(always)]
pub fn fragment4(packet: &impl Packet, offset: u32) -> Option<FragmentHeader> {
    const LENGTH: u32 = Ipv4Hdr::LEN as u32;
    let header = packet.view::<{ Ipv4Hdr::LEN }>(offset)?;
    let fragment = header.u16::<{ offset_of!(Ipv4Hdr, frags) }>();
    if header.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() != PLAIN_IPV4 || !is_fragment4(fragment) {
        return None;
    }
    let ip_length = u32::from(u16::from_be(header.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()));
    if offset + ip_length > packet.length() {
        return None;
    }
    Some(FragmentHeader {
        identification: u32::from(header.u16::<{ offset_of!(Ipv4Hdr, id) }>()),
        protocol: header.u8::<{ offset_of!(Ipv4Hdr, proto) }>(),
        part: part(fragment & FRAGMENT_OFFSET),
        content: offset + LENGTH,
        content_length: ip_length.checked_sub(LENGTH)?,
        ip_length,
    })
}

/// Parses the fragment in an IPv6 packet at `offset`. Packets with other extension headers before
/// the fragment header are not parsed.
#[inline(always)]
pub fn fragment6(packet: &impl Packet, offset: u32) -> Option<FragmentHeader> {
    const LENGTH: u32 = Ipv6Hdr::LEN as u32;
    let header = packet.view::<{ Ipv6Hdr::LEN }>(offset)?;
    if header.u8::<0>() >> 4 != 6 || header.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() != extension::FRAGMENT {
        return None;
    }
    let payload_length = u32::from(u16::from_be(header.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>()));
    let ip_length = LENGTH + payload_length;
    if offset + ip_length > packet.length() {
        return None;
    }
    let extension = packet.view::<{ FRAGMENT_LENGTH as usize }>(offset + LENGTH)?;
    Some(FragmentHeader {
        identification: extension.u32::<4>(),
        protocol: extension.u8::<0>(),
        part: part(extension.u16::<2>() & FRAGMENT6_OFFSET),
        content: offset + LENGTH + FRAGMENT_LENGTH,
        content_length: payload_length.checked_sub(FRAGMENT_LENGTH)?,
        ip_length,
    })
}

/// Version and length of an IPv4 header without options.
pub(crate) const PLAIN_IPV4: u8 = 0x45;

/// Length of an IPv6 fragment header (RFC 8200 section 4.5).
pub(crate) const FRAGMENT_LENGTH: u32 = 8;

/// Bits of an IPv6 fragment header that hold the offset in the datagram.
pub(crate) const FRAGMENT6_OFFSET: u16 = 0xfff8_u16.to_be();

/// Returns true if the fragment field of an IPv4 header is that of a fragment.
#[inline(always)]
pub(crate) fn is_fragment4(field: u16) -> bool {
    field & FRAGMENT_BITS != 0
}

/// Returns true if the fragment field of an IPv4 header is that of a later fragment.
#[inline(always)]
pub(crate) fn is_later_fragment4(field: u16) -> bool {
    field & FRAGMENT_OFFSET != 0
}

#[inline(always)]
fn part(before: u16) -> Part {
    if before == 0 { Part::First } else { Part::Later }
}
