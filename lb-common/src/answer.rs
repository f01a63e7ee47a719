//! Turns a packet into the answer to it: a TCP RST or an ICMP error.

use core::mem::offset_of;

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;

use crate::address::Address;
use crate::checksum::Sum;
use crate::layout::{FlowKey, hook};
use crate::net::protocol;
use crate::net::tcp_flags;
use crate::packet::{Headers, Packet, Part};
use crate::parse::{FRAGMENT_LENGTH, Parsed, TCP_DATA_OFFSET};
use crate::reason::Reason;

/// The sum of the words at these offsets of a view.
macro_rules! sum {
    ($view:ident, $($offset:literal)+) => {
        Sum::new()$(.add($view.u32::<$offset>()))+
    };
}

/// Swaps the two link-layer addresses, so that the packet goes back to its sender. Does nothing if
/// the packet has no link-layer header (`network` is 0).
#[inline(always)]
pub fn swap_link_addresses(packet: &mut impl Packet, network: u32) -> Option<()> {
    if network == 0 {
        return Some(());
    }
    let [first, middle, last] = link_words(packet)?.swapped();
    packet.write(0, &[first, middle, last])
}

/// The twelve bytes of the link-layer addresses, as 16-bit halves of words.
struct LinkAddresses([u16; 6]);

#[inline(always)]
fn link_words(packet: &impl Packet) -> Option<LinkAddresses> {
    let header = packet.view::<{ EthHdr::LEN }>(0)?;
    Some(LinkAddresses([
        header.u16::<0>(),
        header.u16::<2>(),
        header.u16::<4>(),
        header.u16::<6>(),
        header.u16::<8>(),
        header.u16::<10>(),
    ]))
}

impl LinkAddresses {
    /// The swapped addresses as three words. The old source comes first.
    #[inline(always)]
    fn swapped(&self) -> [u32; 3] {
        let [a, b, c, d, e, f] = self.0;
        [pair(d, e), pair(f, a), pair(b, c)]
    }
}

/// Joins two halves that are adjacent in memory into one word.
#[inline(always)]
fn pair(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Turns a packet into the answer that tells its sender why it is not delivered: a RST for TCP that
/// no backend accepts, else an ICMP error. `mtu` is the MTU of the route if the packet is too big
/// for it.
///
/// The functions that build an answer are not inlined. They are large and rarely run. Their stack
/// frames must not add up with those of every packet, nor with each other.
#[inline(always)]
pub fn answer<A: Address>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
    reason: Reason,
    mtu: u32,
) -> Option<()> {
    let is_tcp = parsed.key.protocol == protocol::TCP;
    let error = match reason {
        Reason::TooBig if A::IS_IPV6 => [TOO_BIG6, mtu.to_be()],
        Reason::TooBig => [TOO_BIG4, mtu.to_be()],
        Reason::HopLimit if A::IS_IPV6 => [HOP_LIMIT6, 0],
        Reason::HopLimit => [HOP_LIMIT4, 0],
        _ if is_tcp => return reset(packet, parsed),
        _ if A::IS_IPV6 => [PORT_UNREACHABLE6, 0],
        _ => [PORT_UNREACHABLE4, 0],
    };
    if is_tcp {
        answer_with_error::<A, QUOTED_TCP>(packet, parsed, &error)
    } else if A::IS_IPV6 && parsed.headers.part == Part::First {
        answer_with_error::<A, QUOTED_FRAGMENT>(packet, parsed, &error)
    } else {
        answer_with_error::<A, QUOTED_OTHER>(packet, parsed, &error)
    }
}

/// Answers with an ICMP error whose header begins with the words `error`.
#[inline(always)]
fn answer_with_error<A: Address, const QUOTED: usize>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
    error: &[u32; 2],
) -> Option<()> {
    let mut quotation = Sum::new();
    prepare_quotation::<A, QUOTED>(packet, parsed, &mut quotation)?;
    build_error::<A, QUOTED>(packet, parsed, error, &quotation)
}

/// Hop limit of packets that this node creates: the default of Linux.
pub(crate) const HOP_LIMIT: u8 = 64;

/// The words of an IP header, and the sum of the pseudo header that the transport checksum also
/// covers.
struct IpHeader {
    words: [u32; 10],
    pseudo: Sum,
}

/// Builds the IP header of an answer. Source and destination of the packet are swapped.
#[inline(always)]
fn ip_header<A: Address>(key: &FlowKey<A>, protocol: u8, payload_length: u32) -> IpHeader {
    let pseudo = key
        .destination
        .sum(key.source.sum(Sum::new()))
        .add(payload_length.to_be())
        .add(u32::from(protocol).to_be());
    let mut words = [0; 10];
    let (source, destination) = (key.destination.words(), key.source.words());
    if A::IS_IPV6 {
        words[0] = 0x6000_0000_u32.to_be();
        words[1] = (payload_length << 16 | u32::from(protocol) << 8 | u32::from(HOP_LIMIT)).to_be();
        words[2..6].copy_from_slice(&source);
        words[6..10].copy_from_slice(&destination);
    } else {
        words[0] = (0x4500_0000 | (A::HEADER_LENGTH + payload_length)).to_be();
        // Identification 0, "don't fragment".
        words[1] = 0x0000_4000_u32.to_be();
        let rest = u32::from(HOP_LIMIT) << 24 | u32::from(protocol) << 16;
        let sum = Sum::new()
            .add(words[0])
            .add(words[1])
            .add(rest.to_be())
            .add(source[0])
            .add(destination[0]);
        words[2] = (rest | u32::from(u16::from_be(sum.finish()))).to_be();
        words[3] = source[0];
        words[4] = destination[0];
    }
    IpHeader { words, pseudo }
}

/// Writes an IP header at `offset`.
#[inline(always)]
fn write_ip_header<A: Address>(packet: &mut impl Packet, offset: u32, header: &IpHeader) -> Option<()> {
    if A::IS_IPV6 {
        packet.write(offset, &header.words)
    } else {
        let [a, b, c, d, e, ..] = header.words;
        packet.write(offset, &[a, b, c, d, e])
    }
}

/// Turns a TCP segment into the RST that answers it (RFC 9293 section 3.10.7.1).
#[inline(never)]
fn reset<A: Address>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Option<()> {
    const LENGTH: u32 = TcpHdr::LEN as u32;
    let Headers {
        network,
        transport,
        ip_length,
        tcp_flags: flags,
        ..
    } = parsed.headers;
    let checksum_offset = parsed.headers.checksum_offset(protocol::TCP);
    let segment = packet.view::<{ TcpHdr::LEN }>(transport)?;
    let sequence = u32::from_be(segment.u32::<{ offset_of!(TcpHdr, seq) }>());
    let acknowledged = segment.u32::<{ offset_of!(TcpHdr, ack_seq) }>();
    let data_offset = u32::from(segment.u8::<TCP_DATA_OFFSET>() >> 4) * 4;

    let payload = (ip_length + network).saturating_sub(transport + data_offset);
    let control = u32::from(flags & tcp_flags::SYN != 0) + u32::from(flags & tcp_flags::FIN != 0);
    let (sequence, acknowledgement, flags) = if flags & tcp_flags::ACK != 0 {
        (acknowledged, 0, tcp_flags::RST)
    } else {
        (
            0,
            sequence.wrapping_add(payload + control).to_be(),
            tcp_flags::RST | tcp_flags::ACK,
        )
    };
    let is_partial = packet.checksum_is_partial(checksum_offset);

    let ports = parsed.key.reversed(hook::EGRESS).ports_word();
    let flags = ((LENGTH / 4) << 28 | u32::from(flags) << 16).to_be();
    let header = ip_header(&parsed.key, protocol::TCP, LENGTH);
    let checksum = if is_partial {
        header.pseudo.fold16()
    } else {
        header
            .pseudo
            .add(ports)
            .add(sequence)
            .add(acknowledgement)
            .add(flags)
            .finish()
    };

    packet.truncate(network + A::HEADER_LENGTH + LENGTH)?;
    swap_link_addresses(packet, network)?;
    write_ip_header::<A>(packet, network, &header)?;
    packet.write(
        network + A::HEADER_LENGTH,
        &[ports, sequence, acknowledgement, flags, pair(checksum, 0)],
    )
}

/// Length of the ICMP header of an error (RFC 792, RFC 4443).
pub(crate) const ICMP_LENGTH: u32 = 8;
/// Minimum number of bytes of a transport header that an ICMP error quotes (RFC 792).
const QUOTED_OTHER: usize = 8;
/// The whole TCP header is quoted: the sender of the packet may still complete a partial checksum,
/// and must find the field.
const QUOTED_TCP: usize = TcpHdr::LEN;
/// The bytes of `QUOTED_OTHER` behind an IPv6 fragment header.
const QUOTED_FRAGMENT: usize = QUOTED_OTHER + FRAGMENT_LENGTH as usize;
/// Type and code of "destination unreachable, port unreachable".
const PORT_UNREACHABLE4: u32 = (3_u32 << 24 | 3 << 16).to_be();
/// Type and code of "destination unreachable, port unreachable".
const PORT_UNREACHABLE6: u32 = (1_u32 << 24 | 4 << 16).to_be();
/// Type and code of "destination unreachable, fragmentation needed".
const TOO_BIG4: u32 = (3_u32 << 24 | 4 << 16).to_be();
/// Type and code of "packet too big".
const TOO_BIG6: u32 = (2_u32 << 24).to_be();
/// Type and code of "time exceeded in transit".
const HOP_LIMIT4: u32 = (11_u32 << 24).to_be();
/// Type and code of "hop limit exceeded in transit".
const HOP_LIMIT6: u32 = (3_u32 << 24).to_be();

/// Prepares a packet for being quoted with `QUOTED` bytes behind the IP header, and stores the sum
/// of the quoted bytes in `sum`.
///
/// Packets with IP options, or with extension headers other than a fragment header, get no answer.
/// Quoting them would make the program a hundred times as expensive to verify, and such packets do
/// not occur in practice.
#[inline(never)]
fn prepare_quotation<A: Address, const QUOTED: usize>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
    sum: &mut Sum,
) -> Option<()> {
    let Headers {
        network, transport, ..
    } = parsed.headers;
    let extensions = if QUOTED == QUOTED_FRAGMENT {
        FRAGMENT_LENGTH
    } else {
        0
    };
    let content = network + A::HEADER_LENGTH;
    if transport != content + extensions {
        return None;
    }
    settle_checksum::<A, QUOTED>(packet, parsed)?;
    *sum = sum_header::<A>(packet, network)?.join(sum_content::<QUOTED>(packet, content)?);
    Some(())
}

/// Turns a packet into an ICMP error about it. `error` holds the two words with which the ICMP
/// header begins. `quotation` is the sum of the quoted bytes.
///
/// The new headers are put in front of the packet, so the quotation is already in place. The old
/// link-layer header is overwritten.
#[inline(never)]
fn build_error<A: Address, const QUOTED: usize>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
    error: &[u32; 2],
    quotation: &Sum,
) -> Option<()> {
    let network = parsed.headers.network;
    let quoted = A::HEADER_LENGTH + QUOTED as u32;
    // Four words are written at the start: the link-layer header and two more bytes. The IP header
    // then overwrites these two bytes, or all four words if there is no link-layer header.
    let [first, middle, last] = link_words(packet)?.swapped();
    let ethertype = packet.view::<16>(0)?.u32::<12>();
    let link = [first, middle, last, ethertype];
    let growth = A::HEADER_LENGTH + ICMP_LENGTH;
    packet.grow_head(network, growth)?;
    packet.truncate(network + growth + quoted)?;

    let header = ip_header(&parsed.key, A::ICMP, ICMP_LENGTH + quoted);
    // ICMP for IPv4 has no pseudo header (RFC 792), ICMP for IPv6 has one (RFC 4443 section 2.3).
    let pseudo = if A::IS_IPV6 { header.pseudo } else { Sum::new() };
    let checksum = quotation.join(pseudo).add(error[0]).add(error[1]).finish();
    packet.write(0, &link)?;
    write_ip_header::<A>(packet, network, &header)?;
    let [kind, code, ..] = error[0].to_ne_bytes();
    packet.write(
        network + A::HEADER_LENGTH,
        &[pair(u16::from_ne_bytes([kind, code]), checksum), error[1]],
    )
}

/// Sets the transport checksum of a packet that is about to be quoted to a value that does not
/// change when it is completed.
///
/// A partial checksum is completed when the packet is sent. The field is then inside the quotation,
/// which the checksum of the ICMP message covers. A change there would make the client drop the
/// message.
#[inline(always)]
fn settle_checksum<A: Address, const QUOTED: usize>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
) -> Option<()> {
    // SCTP checksums are never partial in this sense, and those of fragments are complete before
    // fragmentation.
    if parsed.key.protocol == protocol::SCTP || parsed.headers.part != Part::Whole {
        return Some(());
    }
    let field = parsed.headers.checksum_offset(parsed.key.protocol);
    // The field is the second half of UDP's second word, and the first half of TCP's fifth word.
    let is_tcp = QUOTED == QUOTED_TCP;
    let offset = if is_tcp { field } else { field - 2 };
    let (first, second) = {
        let word = packet.view::<4>(offset)?;
        (word.u16::<0>(), word.u16::<2>())
    };
    let (old, other) = if is_tcp { (first, second) } else { (second, first) };
    let all = sum_content::<QUOTED>(packet, parsed.headers.transport)?;
    // `checksum_is_partial` may change the field, so it is written in any case.
    let checksum = if packet.checksum_is_partial(field) {
        // Completing the checksum writes the complement of the sum over the quoted bytes. The field
        // x must not change: x = -(x + rest), so x = -rest / 2. Halving in ones' complement is a
        // rotation of the bits by one.
        all.replace(u32::from(old), 0).finish().rotate_right(1)
    } else {
        old
    };
    let word = if is_tcp {
        pair(checksum, other)
    } else {
        pair(other, checksum)
    };
    packet.write(offset, &[word])
}

/// Sums an IP header without options.
#[inline(always)]
fn sum_header<A: Address>(packet: &impl Packet, offset: u32) -> Option<Sum> {
    if A::IS_IPV6 {
        let header = packet.view::<{ Ipv6Hdr::LEN }>(offset)?;
        Some(sum!(header, 0 4 8 12 16 20 24 28 32 36))
    } else {
        let header = packet.view::<{ Ipv4Hdr::LEN }>(offset)?;
        Some(sum!(header, 0 4 8 12 16))
    }
}

/// Sums the quoted bytes behind an IP header.
#[inline(always)]
fn sum_content<const QUOTED: usize>(packet: &impl Packet, offset: u32) -> Option<Sum> {
    if QUOTED == QUOTED_TCP {
        let header = packet.view::<QUOTED_TCP>(offset)?;
        Some(sum!(header, 0 4 8 12 16))
    } else if QUOTED == QUOTED_FRAGMENT {
        let headers = packet.view::<QUOTED_FRAGMENT>(offset)?;
        Some(sum!(headers, 0 4 8 12))
    } else {
        let header = packet.view::<QUOTED_OTHER>(offset)?;
        Some(sum!(header, 0 4))
    }
}
