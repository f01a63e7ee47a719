//! Answers echo requests to VIPs.

use super::message::{Message, type4, type6};
use super::{ICMP_CHECKSUM, patch};
use crate::answer::{self, HOP_LIMIT};
use crate::checksum::Sum;
use crate::choose::find_frontend;
use crate::cidr;
use crate::forward;
use crate::layout::frontend_flags;
use crate::net::Port;
use crate::packet::{Packet, Verdict};
use crate::parse::IpHeader;
use crate::reason::Reason;
use crate::tables::Tables;

/// Answers an echo request to a VIP that has endpoints.
#[inline(always)]
pub(super) fn echo<A: IpHeader>(
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
fn reply<A: IpHeader>(packet: &mut impl Packet, message: &Message<A>) -> Option<()> {
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
    // The addresses are swapped, which changes no checksum.
    message.destination.write(packet, network + A::SOURCE_OFFSET)?;
    message.source.write(packet, network + A::DESTINATION_OFFSET)?;
    forward::set_hop_limit::<A>(packet, network, HOP_LIMIT)?;
    answer::swap_link_addresses(packet, network)
}
