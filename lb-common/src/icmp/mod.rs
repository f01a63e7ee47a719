//! ICMP: errors about rewritten packets are delivered to the senders of the packets, and echo
//! requests to VIPs are answered.
//!
//! An error quotes the packet that it is about, and travels in the opposite direction. So the flow
//! of that direction determines its rewrite: outside and inside the quotation, the addresses become
//! those that the receiver knows.

mod echo;
mod message;
mod quotation;

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::answer;
use crate::checksum::Sum;
use crate::cidr;
use crate::connection::is_idle;
use crate::forward::{self, ForwardDecision};
use crate::layout::{Flow, flow_flags, hook};
use crate::packet::{Hop, Packet, Verdict};
use crate::parse::{IpHeader, extension};
use crate::reason::Reason;
use crate::tables::Tables;

use self::echo::echo;
use self::message::Message;
use self::quotation::{Quotation, rewrite_quotation};

/// Returns the verdict for an ICMP message at `network` that enters or leaves the stack (`hook`),
/// and rewrites it. `drops` is true unless the message leaves to a Pod.
#[inline(always)]
pub(crate) fn icmp<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    hook: u8,
    drops: bool,
) -> Verdict {
    let Some(message) = Message::parse(packet, network) else {
        return other(packet, tables, network, hook);
    };
    // An error that leaves towards a backend on another node has a destination that is not in the
    // filter.
    let is_error = message.is_error();
    let may_be_ours = (is_error && hook == hook::EGRESS)
        || (tables.may_be_destination(message.destination)
            && (hook == hook::EGRESS || packet.is_for_node(network)));
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

/// Returns the verdict for a packet of another protocol, or one that cannot be parsed. From outside
/// to an unallocated address of a Service CIDR it is dropped, like any other packet.
#[inline(always)]
fn other<A: IpHeader>(packet: &impl Packet, tables: &impl Tables<A>, network: u32, hook: u8) -> Verdict {
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

/// Returns true if a packet without a plain ICMP header may be an ICMP message with options or
/// extension headers. Errors are never dropped.
#[inline(always)]
fn may_be_icmp<A: IpHeader>(packet: &impl Packet, network: u32) -> bool {
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

/// Delivers an error about a translated packet.
#[inline(always)]
fn error<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    message: &Message<A>,
    hook: u8,
) -> Verdict {
    let Some(quotation) = Quotation::parse(packet, message, hook) else {
        return Verdict::Pass;
    };
    // The sender of the quoted packet receives the error.
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
        match forward::decide(packet, message.network, message.ip_length, &flow, &mut hop) {
            ForwardDecision::Send => {}
            ForwardDecision::Leave => return Verdict::Pass,
            // An error is never answered (RFC 1122 section 3.2.2).
            ForwardDecision::Stop(reason) => {
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

/// Rewrites an error about a packet of a flow and sends it to its receiver.
#[inline(always)]
fn deliver<A: IpHeader>(
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
/// Not inlined: together with its frame, the functions that are called besides would not fit on the
/// stack (kernels before 6.4 count each frame in steps of 32 bytes).
#[inline(never)]
fn rewrite<A: IpHeader>(
    packet: &mut impl Packet,
    message: &Message<A>,
    quotation: &Quotation<A>,
    flow: &Flow<A>,
) -> Option<()> {
    // A router on the path keeps its own address as source. The exception is a forwarded packet,
    // whose receiver would not expect that router on the path.
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

/// Patches a checksum after what it covers has changed. `zero` is written if the result is 0, which
/// in UDP means that there is no checksum. Returns the difference that this makes to a checksum
/// over the field.
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

const IPV4_CHECKSUM: u32 = offset_of!(Ipv4Hdr, check) as u32;
const ICMP_CHECKSUM: u32 = 2;
