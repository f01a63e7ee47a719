//! ICMP: errors about packets that were rewritten find their way to who sent the packet, and VIPs answer echo
//! requests.
//!
//! An error quotes the packet that it is about. It travels the other way, so the flow of the opposite direction says
//! what to make of it: outside and inside the quotation the addresses become those that the receiver knows.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::Address;
use crate::answer::{self, HOP_LIMIT, ICMP_LENGTH};
use crate::checksum::Sum;
use crate::choose::find_frontend;
use crate::cidr;
use crate::connection::is_idle;
use crate::forward::{self, Way};
use crate::layout::{Flow, FlowKey, Port, flow_flags, frontend_flags, hook, protocol};
use crate::packet::{Hop, Packet, Verdict};
use crate::parse::{self, FRAGMENT_LENGTH, FRAGMENT6_OFFSET, PLAIN_IPV4, extension};
use crate::reason::Reason;
use crate::tables::Tables;

/// Types of ICMP for IPv4 (RFC 792).
mod type4 {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const ECHO: u8 = 8;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
}

/// Types of ICMP for IPv6 (RFC 4443). Below 128 all are errors.
mod type6 {
    pub(super) const UNREACHABLE: u8 = 1;
    pub(super) const PARAMETER_PROBLEM: u8 = 4;
    pub(super) const ECHO: u8 = 128;
    pub(super) const ECHO_REPLY: u8 = 129;
}

/// An ICMP message behind a plain IP header.
#[derive(Clone, Copy)]
struct Message<A> {
    /// Offset of the IP header.
    network: u32,
    source: A,
    destination: A,
    /// The ICMP type.
    kind: u8,
    /// Length of IP header and payload.
    ip_length: u32,
}

impl<A: Address> Message<A> {
    /// The message in a packet with an IP header at `network`.
    #[inline(always)]
    fn parse(packet: &impl Packet, network: u32) -> Option<Self> {
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
    fn end(&self) -> u32 {
        self.network + self.ip_length
    }

    /// Offset of the IP header that an error quotes.
    #[inline(always)]
    fn quotation(&self) -> u32 {
        self.network + A::HEADER_LENGTH + ICMP_LENGTH
    }

    #[inline(always)]
    fn is_echo(&self) -> bool {
        self.kind == if A::IS_IPV6 { type6::ECHO } else { type4::ECHO }
    }

    #[inline(always)]
    fn is_error(&self) -> bool {
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

/// The bytes of a transport header that an error quotes at least (RFC 792).
const QUOTED: u32 = 8;

/// The packet that an error is about.
#[derive(Clone, Copy)]
struct Quotation<A> {
    /// The key of packets that travel as the error does: the quoted addresses and ports reversed.
    key: FlowKey<A>,
    /// Offset of the quoted transport header.
    transport: u32,
}

impl<A: Address> Quotation<A> {
    #[inline(always)]
    fn parse(packet: &impl Packet, message: &Message<A>, hook: u8) -> Option<Self> {
        let network = message.quotation();
        let mut transport = network + A::HEADER_LENGTH;
        let protocol = if A::IS_IPV6 {
            let header = packet.view::<{ Ipv6Hdr::LEN }>(network)?;
            match header.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() {
                extension::FRAGMENT => {
                    let fragment = packet.view::<{ FRAGMENT_LENGTH as usize }>(transport)?;
                    if fragment.u16::<2>() & FRAGMENT6_OFFSET != 0 {
                        return None;
                    }
                    transport += FRAGMENT_LENGTH;
                    fragment.u8::<0>()
                }
                next => next,
            }
        } else {
            let header = packet.view::<{ Ipv4Hdr::LEN }>(network)?;
            if header.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() != PLAIN_IPV4
                || parse::is_later_fragment4(header.u16::<{ offset_of!(Ipv4Hdr, frags) }>())
            {
                return None;
            }
            header.u8::<{ offset_of!(Ipv4Hdr, proto) }>()
        };
        if !matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
            return None;
        }
        // What stands behind the message pads the frame.
        if transport + QUOTED > message.end() {
            return None;
        }
        let ports = packet.view::<{ QUOTED as usize }>(transport)?;
        let [source_port, destination_port] =
            [ports.u16::<0>(), ports.u16::<2>()].map(|port| Port::from_bytes(port.to_ne_bytes()));
        Some(Self {
            key: FlowKey {
                source: A::read(packet, network + A::DESTINATION_OFFSET)?,
                destination: A::read(packet, network + A::SOURCE_OFFSET)?,
                source_port: destination_port,
                destination_port: source_port,
                protocol,
                hook,
                pad: 0,
            },
            transport,
        })
    }
}

/// Decides about an ICMP message at `network` that enters or leaves the stack (`hook`), and rewrites it. `drops`: unless it
/// leaves to a Pod.
#[inline(always)]
pub(crate) fn icmp<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    hook: u8,
    drops: bool,
) -> Verdict {
    let Some(message) = Message::parse(packet, network) else {
        return other(packet, tables, network, hook);
    };
    // What leaves towards another node's backend has a destination that is in nobody's filter.
    let is_error = message.is_error();
    let may_be_ours = (is_error && hook == hook::EGRESS)
        || (tables.concerns(message.destination) && (hook == hook::EGRESS || packet.is_for_node(network)));
    if !may_be_ours {
        return Verdict::Pass;
    }
    if is_error {
        error(packet, tables, &message, hook)
    } else if message.is_echo() {
        echo(packet, tables, &message, drops)
    } else {
        Verdict::Pass
    }
}

/// Decides about a packet of another protocol, or that cannot be read: from outside to an address that no Service has it
/// is dropped, as any other one.
#[inline(always)]
fn other<A: Address>(packet: &impl Packet, tables: &impl Tables<A>, network: u32, hook: u8) -> Verdict {
    if hook != hook::INGRESS_OUTSIDE {
        return Verdict::Pass;
    }
    let Some(destination) = A::read(packet, network + A::DESTINATION_OFFSET) else {
        return Verdict::Pass;
    };
    if !tables.may_be_service(destination)
        || may_be_icmp::<A>(packet, network)
        || !packet.is_for_node(network)
    {
        return Verdict::Pass;
    }
    cidr::pass_or_drop(packet, tables, destination)
}

/// Whether a packet that is no message with a plain IP header may be one with options or extension headers: an error is
/// never dropped.
#[inline(always)]
fn may_be_icmp<A: Address>(packet: &impl Packet, network: u32) -> bool {
    let offset = if A::IS_IPV6 {
        offset_of!(Ipv6Hdr, next_hdr)
    } else {
        offset_of!(Ipv4Hdr, proto)
    };
    let Some(header) = packet.view::<1>(network + offset as u32) else {
        return true;
    };
    let protocol = header.u8::<0>();
    protocol == A::ICMP || (A::IS_IPV6 && extension::is_one(protocol))
}

/// Delivers an error about a packet of ours.
#[inline(always)]
fn error<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    message: &Message<A>,
    hook: u8,
) -> Verdict {
    let Some(quotation) = Quotation::parse(packet, message, hook) else {
        return Verdict::Pass;
    };
    // Whoever sent the quoted packet receives the error.
    if quotation.key.destination != message.destination {
        return Verdict::Pass;
    }
    let Some(entry) = tables.flow(&quotation.key) else {
        return Verdict::Pass;
    };
    let flow = entry.get();
    if flow.flags & flow_flags::PASS != 0 {
        return Verdict::Pass;
    }
    if is_idle(tables, &quotation.key, &flow, tables.now()) {
        return Verdict::Pass;
    }
    let mut hop = Hop::default();
    if flow.flags & flow_flags::FORWARD != 0 {
        match forward::way(packet, message.network, message.ip_length, &flow, &mut hop) {
            Way::Send => {}
            Way::Leave => return Verdict::Pass,
            // An error is never answered (RFC 1122 section 3.2.2).
            Way::Stop(reason) => {
                tables.count_reason(reason);
                return Verdict::Drop;
            }
        }
    }
    match deliver(packet, message, &quotation, &flow, &hop) {
        Some(verdict) => verdict,
        None => {
            tables.count_reason(Reason::RewriteFailed);
            Verdict::Drop
        }
    }
}

/// Rewrites an error about a packet of a flow and sends it where its receiver is.
#[inline(always)]
fn deliver<A: Address>(
    packet: &mut impl Packet,
    message: &Message<A>,
    quotation: &Quotation<A>,
    flow: &Flow<A>,
    hop: &Hop,
) -> Option<Verdict> {
    rewrite(packet, message, quotation, flow)?;
    if flow.flags & flow_flags::FORWARD != 0 {
        forward::decrement_hop_limit::<A>(packet, message.network)?;
        return packet.send(message.network, hop);
    }
    if flow.flags & flow_flags::HAIRPIN != 0 {
        answer::swap_link_addresses(packet, message.network)?;
        return Some(Verdict::Bounce);
    }
    Some(Verdict::Pass)
}

/// Gives an error the addresses that its receiver knows.
///
/// Out of line: with what it needs, the functions that are called besides would not fit on the stack (kernels before 6.4
/// count each frame in steps of 32 bytes).
#[inline(never)]
fn rewrite<A: Address>(
    packet: &mut impl Packet,
    message: &Message<A>,
    quotation: &Quotation<A>,
    flow: &Flow<A>,
) -> Option<()> {
    // A router on the way tells of itself, unless the receiver of a sent-on packet would not believe it to be on the
    // way at all.
    let is_from_peer = message.source == quotation.key.source;
    let source = if is_from_peer || flow.flags & flow_flags::FORWARD != 0 {
        &flow.source
    } else {
        &message.source
    };
    let mut content = rewrite_quotation(packet, message, quotation, flow)?;
    let outer = message
        .destination
        .difference(flow.destination, message.source.difference(*source, Sum::new()));
    if A::IS_IPV6 {
        // The pseudo header (RFC 4443 section 2.3).
        content = content.join(outer);
    } else {
        patch(packet, message.network + IPV4_CHECKSUM, outer, 0)?;
    }
    source.write(packet, message.network + A::SOURCE_OFFSET)?;
    flow.destination
        .write(packet, message.network + A::DESTINATION_OFFSET)?;
    patch(
        packet,
        message.network + A::HEADER_LENGTH + ICMP_CHECKSUM,
        content,
        0,
    )?;
    Some(())
}

/// Offsets of checksums in their headers.
const IPV4_CHECKSUM: u32 = offset_of!(Ipv4Hdr, check) as u32;
const ICMP_CHECKSUM: u32 = 2;
const UDP_CHECKSUM: u32 = 6;
const TCP_CHECKSUM: u32 = 16;

/// Gives a quoted packet the addresses and ports that its sender gave it. Returns the difference that it makes to the
/// checksum over it.
#[inline(always)]
fn rewrite_quotation<A: Address>(
    packet: &mut impl Packet,
    message: &Message<A>,
    quotation: &Quotation<A>,
    flow: &Flow<A>,
) -> Option<Sum> {
    let Quotation { key, transport } = quotation;
    let network = message.quotation();
    let addresses = flow.address_difference();
    let old_ports = key.reversed(key.hook).ports_word();
    let new_ports = flow.peer_key(key.protocol).ports_word();
    let mut difference = addresses.replace(old_ports, new_ports);
    // The quoted packet's own checksums make up for what they cover. That of the transport header may not be quoted
    // (padding of the frame may stand in its place), and a UDP packet may have none.
    let transport_checksum = match key.protocol {
        protocol::TCP => Some(transport + TCP_CHECKSUM),
        protocol::UDP => Some(transport + UDP_CHECKSUM),
        _ => None,
    };
    if let Some(offset) = transport_checksum
        && offset + size_of::<u16>() as u32 <= message.end()
        && let Some(field) = packet.view::<2>(offset).map(|field| field.u16::<0>())
        && (key.protocol == protocol::TCP || field != 0)
    {
        let zero = if key.protocol == protocol::UDP { 0xffff } else { 0 };
        difference = difference.join(patch(packet, offset, difference, zero)?);
    }
    if !A::IS_IPV6 {
        difference = difference.join(patch(packet, network + IPV4_CHECKSUM, addresses, 0)?);
    }
    flow.destination.write(packet, network + A::SOURCE_OFFSET)?;
    flow.source.write(packet, network + A::DESTINATION_OFFSET)?;
    packet.write(*transport, &[new_ports])?;
    Some(difference)
}

/// Patches a checksum after what it covers has changed; `zero` is what is written if it becomes 0, which in UDP means
/// that there is none. Returns the difference that its own change makes to a checksum over it.
#[inline(always)]
fn patch(packet: &mut impl Packet, offset: u32, difference: Sum, zero: u16) -> Option<Sum> {
    let old = packet.view::<2>(offset)?.u16::<0>();
    let new = match difference.update(old) {
        0 => zero,
        new => new,
    };
    packet.write_half(offset, new)?;
    Some(Sum::new().replace(u32::from(old), u32::from(new)))
}

/// Answers an echo request to a VIP that has endpoints.
#[inline(always)]
fn echo<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    message: &Message<A>,
    drops: bool,
) -> Verdict {
    let Some(row) = find_frontend(tables, message.destination, Port::default(), 0) else {
        return if drops {
            cidr::pass_or_drop(packet, tables, message.destination)
        } else {
            Verdict::Pass
        };
    };
    if row.flags & frontend_flags::ECHO == 0 || !message.source.is_host() {
        return Verdict::Pass;
    }
    if row.source_ranges != 0 && !tables.allows(row.source_ranges, message.source) {
        tables.count_reason(Reason::SourceRange);
        return Verdict::Drop;
    }
    match reply(packet, message) {
        Some(()) => Verdict::Bounce,
        None => {
            tables.count_reason(Reason::AnswerFailed);
            Verdict::Drop
        }
    }
}

/// Turns an echo request into its reply.
#[inline(always)]
fn reply<A: Address>(packet: &mut impl Packet, message: &Message<A>) -> Option<()> {
    let network = message.network;
    let icmp = network + A::HEADER_LENGTH;
    let kind = packet.view::<2>(icmp)?.u16::<0>();
    let [_, code] = kind.to_ne_bytes();
    let reply = if A::IS_IPV6 {
        type6::ECHO_REPLY
    } else {
        type4::ECHO_REPLY
    };
    let new_kind = u16::from_ne_bytes([reply, code]);
    packet.write_half(icmp, new_kind)?;
    let difference = Sum::new().replace(u32::from(kind), u32::from(new_kind));
    patch(packet, icmp + ICMP_CHECKSUM, difference, 0)?;
    // The addresses change places, which changes no checksum.
    message.destination.write(packet, network + A::SOURCE_OFFSET)?;
    message.source.write(packet, network + A::DESTINATION_OFFSET)?;
    forward::set_hop_limit::<A>(packet, network, HOP_LIMIT)?;
    answer::swap_link_addresses(packet, network)
}
