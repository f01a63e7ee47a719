//! A packet leaves the node's stack towards a Pod or a network device: replies to clients of a frontend get the
//! frontend's address as their source.

use crate::address::Address;
use crate::ingress::{is_idle, is_reply_to_flow, record_clash, record_packet};
use crate::layout::{flow_state, protocol};
use crate::packet::{Packet, Verdict};
use crate::parse::Parsed;
use crate::reason::Reason;
use crate::tables::Tables;

/// Decides about a packet that leaves the stack, and rewrites it.
#[inline(always)]
pub(crate) fn egress<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
) -> Verdict {
    if !tables.may_reply(parsed.key.source, parsed.key.source_port) {
        return Verdict::Pass;
    }
    let Some(entry) = tables.flow(&parsed.key) else {
        return Verdict::Pass;
    };
    let flow = entry.get();
    if !is_reply_to_flow(packet, parsed, &flow) {
        if flow.state & flow_state::CLASH == 0 {
            record_clash(tables, parsed, &flow);
        }
        return Verdict::Pass;
    }
    let now = tables.now();
    if !is_idle(tables, &parsed.key, &flow, now) {
        record_packet(packet, tables, &entry, &flow, parsed, now);
    } else if !is_late(parsed, flow.state) {
        return Verdict::Pass;
    }
    if packet.translate(&parsed.headers, &parsed.key, &flow).is_none() {
        tables.count_reason(Reason::RewriteFailed);
        return Verdict::Drop;
    }
    Verdict::Pass
}

/// Whether a packet of a connection that was idle for longer than it lives is still a reply. A TCP client that has used
/// its port for another connection since has removed the entry with its SYN; for a datagram there is no such sign.
#[inline(always)]
fn is_late<A>(parsed: &Parsed<A>, state: u8) -> bool {
    parsed.key.protocol != protocol::UDP && state & flow_state::CONFIRMED != 0
}
