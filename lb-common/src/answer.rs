//! Answers that a packet is turned into: TCP RST, ICMP port unreachable.

use core::mem::offset_of;

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::address::Address;
use crate::checksum::Sum;
use crate::layout::{FlowKey, hook, protocol};
use crate::packet::{Headers, Packet};
use crate::parse::{Parsed, TCP_DATA_OFFSET, tcp_flags};

/// Swaps the two link-layer addresses: the packet goes back to whom it came from.
#[inline(always)]
pub fn swap_link_addresses(packet: &mut impl Packet) -> Option<()> {
    let [first, middle, last] = link_words(packet)?.swapped();
    packet.write(0, &[first, middle, last])
}

/// The twelve bytes of the link-layer addresses, as halves of words.
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
    /// Source first, as three words.
    #[inline(always)]
    fn swapped(&self) -> [u32; 3] {
        let [a, b, c, d, e, f] = self.0;
        [pair(d, e), pair(f, a), pair(b, c)]
    }
}

/// Two halves that follow each other in memory as one word.
#[inline(always)]
fn pair(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Turns a packet into the answer that nobody takes it: RST for TCP, ICMP port unreachable for UDP.
///
/// Out of line: it is large and rare, and its stack is not added to that of every packet.
#[inline(never)]
pub fn reject<A: Address>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Option<()> {
    if parsed.key.protocol == protocol::TCP {
        reset(packet, parsed)
    } else {
        unreachable(packet, parsed)
    }
}

/// Hop limit of packets that this node makes: Linux' default.
const HOP_LIMIT: u32 = 64;

/// The words of an IP header, followed by those that the checksum of the transport header covers beside it.
struct IpHeader {
    words: [u32; 10],
    pseudo: Sum,
}

/// The header of an answer: source and destination of the packet swapped.
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
        words[1] = (payload_length << 16 | u32::from(protocol) << 8 | HOP_LIMIT).to_be();
        words[2..6].copy_from_slice(&source);
        words[6..10].copy_from_slice(&destination);
    } else {
        words[0] = (0x4500_0000 | (A::HEADER_LENGTH + payload_length)).to_be();
        // Identification 0, "don't fragment".
        words[1] = 0x0000_4000_u32.to_be();
        let rest = HOP_LIMIT << 24 | u32::from(protocol) << 16;
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
#[inline(always)]
fn reset<A: Address>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Option<()> {
    const LENGTH: u32 = TcpHdr::LEN as u32;
    let Headers {
        network,
        transport,
        ip_length,
        tcp_flags: flags,
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

    packet.cut(network + A::HEADER_LENGTH + LENGTH)?;
    swap_link_addresses(packet)?;
    write_ip_header::<A>(packet, network, &header)?;
    packet.write(
        network + A::HEADER_LENGTH,
        &[ports, sequence, acknowledgement, flags, pair(checksum, 0)],
    )
}

/// Length of the ICMP header of an error (RFC 792, RFC 4443).
const ICMP_LENGTH: u32 = 8;
/// The transport header bytes that an ICMP error quotes at least (RFC 792).
const QUOTED_TRANSPORT: u32 = 8;
/// Type and code of "destination unreachable, port unreachable".
const PORT_UNREACHABLE4: u32 = 3 << 24 | 3 << 16;
/// Type and code of "destination unreachable, port unreachable".
const PORT_UNREACHABLE6: u32 = 1 << 24 | 4 << 16;

/// Turns a packet into the ICMP error that its port is unreachable.
///
/// The new headers go before the packet, so the quotation is in place; the old link-layer header is overwritten.
/// Packets with IP options or extension headers are not answered: quoting them would make the program a hundred
/// times as expensive to verify, for packets that nobody sends.
#[inline(always)]
fn unreachable<A: Address>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Option<()> {
    let Headers {
        network, transport, ..
    } = parsed.headers;
    let quoted = A::HEADER_LENGTH + QUOTED_TRANSPORT;
    if transport - network != A::HEADER_LENGTH {
        return None;
    }
    let (protocol, unreachable) = if A::IS_IPV6 {
        (protocol::ICMPV6, PORT_UNREACHABLE6)
    } else {
        (protocol::ICMP, PORT_UNREACHABLE4)
    };
    // Up to 22 bytes of link-layer header with its VLAN tags; what is behind is overwritten by the IP header.
    let [first, middle, last] = link_words(packet)?.swapped();
    let tags = packet.view::<{ EthHdr::LEN + 10 }>(0)?;
    let link = [
        first,
        middle,
        last,
        tags.u32::<12>(),
        tags.u32::<16>(),
        tags.u32::<20>(),
    ];
    settle_checksum(packet, parsed)?;
    let quotation = sum_quotation::<A>(packet, network)?;
    let growth = A::HEADER_LENGTH + ICMP_LENGTH;
    packet.grow_head(growth)?;
    packet.cut(network + growth + quoted)?;

    let header = ip_header(&parsed.key, protocol, ICMP_LENGTH + quoted);
    // ICMP of IPv4 has no pseudo header (RFC 792), that of IPv6 has (RFC 4443 section 2.3).
    let pseudo = if A::IS_IPV6 { header.pseudo } else { Sum::new() };
    let checksum = quotation.join(pseudo).add(unreachable.to_be()).finish();
    packet.write(0, &link)?;
    write_ip_header::<A>(packet, network, &header)?;
    packet.write(
        network + A::HEADER_LENGTH,
        &[(unreachable | u32::from(u16::from_be(checksum))).to_be(), 0],
    )
}

/// Makes finishing the checksum of a UDP header that is about to be quoted change nothing.
///
/// Whoever sends a packet with a partial checksum at last still finishes it there, in the middle of the quotation, which
/// the checksum of the ICMP message covers: the client would drop the message.
#[inline(always)]
fn settle_checksum<A: Address>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Option<()> {
    const LENGTH: u32 = offset_of!(UdpHdr, len) as u32;
    let offset = parsed.headers.transport + LENGTH;
    let (length, checksum) = {
        let header = packet.view::<4>(offset)?;
        (header.u16::<0>(), header.u16::<2>())
    };
    let checksum = if packet.checksum_is_partial(parsed.headers.checksum_offset(protocol::UDP)) {
        // What is finished is the sum over the eight quoted bytes. The field for which that is the field itself:
        // x = -(x + rest), so x = -rest / 2, where half of a number is its bits rotated.
        let rest = Sum::new()
            .add(parsed.key.reversed(hook::EGRESS).ports_word())
            .add(u32::from(length));
        rest.finish().rotate_right(1)
    } else {
        checksum
    };
    packet.write(offset, &[pair(length, checksum)])
}

/// Sums a plain IP header at `offset` and the transport header's bytes that an ICMP error quotes.
#[inline(always)]
fn sum_quotation<A: Address>(packet: &impl Packet, offset: u32) -> Option<Sum> {
    if A::IS_IPV6 {
        let quoted = packet.view::<{ Ipv6Hdr::LEN + QUOTED_TRANSPORT as usize }>(offset)?;
        let sum = Sum::new()
            .add(quoted.u32::<0>())
            .add(quoted.u32::<4>())
            .add(quoted.u32::<8>());
        let sum = sum
            .add(quoted.u32::<12>())
            .add(quoted.u32::<16>())
            .add(quoted.u32::<20>());
        let sum = sum
            .add(quoted.u32::<24>())
            .add(quoted.u32::<28>())
            .add(quoted.u32::<32>());
        Some(
            sum.add(quoted.u32::<36>())
                .add(quoted.u32::<40>())
                .add(quoted.u32::<44>()),
        )
    } else {
        let quoted = packet.view::<{ Ipv4Hdr::LEN + QUOTED_TRANSPORT as usize }>(offset)?;
        let sum = Sum::new()
            .add(quoted.u32::<0>())
            .add(quoted.u32::<4>())
            .add(quoted.u32::<8>());
        let sum = sum.add(quoted.u32::<12>()).add(quoted.u32::<16>());
        Some(sum.add(quoted.u32::<20>()).add(quoted.u32::<24>()))
    }
}
