//! A packet leaves the node's stack towards a Pod or a network device: replies to clients of a frontend get the
//! frontend's address as their source.

use crate::address::Address;
use crate::ingress::{is_idle, note};
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
    let now = tables.now();
    if is_idle(tables, &parsed.key, &flow, now) {
        return Verdict::Pass;
    }
    note(tables, &entry, &flow, parsed, now);
    if packet.translate(&parsed.headers, &parsed.key, &flow).is_none() {
        tables.count_reason(Reason::RewriteFailed);
        return Verdict::Drop;
    }
    Verdict::Pass
}
