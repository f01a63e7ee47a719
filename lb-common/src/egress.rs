//! Packets that leave the node's stack towards a Pod or a network device. Replies to clients of a
//! frontend get the frontend's address as their source.

use crate::address::Address;
use crate::choose::Origin;
use crate::cidr;
use crate::connection::{is_idle, is_reply_to_flow, record_clash, record_packet};
use crate::layout::{Flow, FlowKey, FrontendKey, flow_flags, flow_state, frontend_flags, hook};
use crate::net::protocol;
use crate::packet::{Packet, Verdict};
use crate::parse::Parsed;
use crate::reason::Reason;
use crate::tables::Tables;

/// Returns the verdict for a packet that leaves the stack, and rewrites it.
#[inline(always)]
pub(crate) fn egress<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    destination: Origin,
) -> Verdict {
    if !tables.may_reply(parsed.key.source, parsed.key.source_port) {
        return pass(tables, parsed, destination);
    }
    let Some(entry) = tables.flow(&parsed.key) else {
        if parsed.key.protocol == protocol::UDP && !packet.is_forwarded() {
            remember_own_datagram(tables, &parsed.key, destination);
        }
        return pass(tables, parsed, destination);
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
    } else if !is_late_reply(parsed, flow.state) {
        return Verdict::Pass;
    }
    if flow.flags & flow_flags::PASS != 0 {
        return Verdict::Pass;
    }
    if packet.translate(&parsed.headers, &parsed.key, &flow).is_none() {
        tables.count_reason(Reason::RewriteFailed);
        return Verdict::Drop;
    }
    Verdict::Pass
}

/// Passes a packet that is not a reply, unless it leaves to the network for an unallocated address
/// of a Service CIDR.
#[inline(always)]
fn pass<A: Address>(tables: &impl Tables<A>, parsed: &Parsed<A>, destination: Origin) -> Verdict {
    let stops = destination == Origin::Outside
        && tables.may_be_service(parsed.key.destination)
        && cidr::stops_leaving(tables, parsed);
    if !stops {
        return Verdict::Pass;
    }
    tables.count_reason(Reason::UnallocatedAddress);
    Verdict::Drop
}

/// Remembers a datagram of the node, or of a Pod whose address the node masquerades, that leaves
/// from the address and port of a frontend. A datagram that comes back to that port is then an
/// answer, not a request.
///
/// TCP and SCTP need no such entries: at a node's own address, only a packet that opens a
/// connection is a request.
#[inline(never)]
fn remember_own_datagram<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, destination: Origin) {
    let frontend = FrontendKey {
        address: key.source,
        port: key.source_port,
        protocol: key.protocol,
        pad: 0,
    };
    let is_own = tables.may_be_destination(key.source)
        && tables
            .frontend(&frontend)
            .is_some_and(|row| row.flags & frontend_flags::NODE_ADDRESS != 0);
    if !is_own {
        return;
    }
    let answers = key.reversed(destination.hook());
    let mut flow = Flow {
        source: answers.source,
        destination: answers.destination,
        source_port: answers.source_port,
        destination_port: answers.destination_port,
        service: 0,
        backend: 0,
        generation: 0,
        last_seen: tables.now(),
        acknowledged: 0,
        state: 0,
        flags: flow_flags::PASS | flow_flags::REPLY,
        difference: 0,
    };
    flow.set_peer_hook(hook::EGRESS);
    // If there is an entry, a client's request to the frontend came first, and this datagram is the
    // translated reply to it.
    if !tables.add_flow(&answers, &flow) {
        return;
    }
    flow.source = key.source;
    flow.destination = key.destination;
    flow.source_port = key.source_port;
    flow.destination_port = key.destination_port;
    flow.flags = flow_flags::PASS;
    flow.set_peer_hook(answers.hook);
    // Without this entry every further datagram would run through here again.
    tables.insert_flow(key, &flow);
}

/// Returns true if a packet of a connection that outlived its idle lifetime is still a reply. If a
/// TCP client has reused its port since, its SYN has removed the entry. For datagrams there is no
/// such sign.
#[inline(always)]
fn is_late_reply<A>(parsed: &Parsed<A>, state: u8) -> bool {
    match parsed.key.protocol {
        protocol::TCP => true,
        protocol::SCTP => state & flow_state::CONFIRMED != 0,
        _ => false,
    }
}
