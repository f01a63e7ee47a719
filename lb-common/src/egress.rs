//! A packet leaves the node's stack towards a Pod or a network device: replies to clients of a
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

/// Decides about a packet that leaves the stack, and rewrites it.
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
        if parsed.key.protocol == protocol::UDP && !packet.is_sent_on() {
            note_own(tables, &parsed.key, destination);
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
    } else if !is_late(parsed, flow.state) {
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

/// Lets a packet go that is no reply, unless it leaves to the network for an address that no
/// Service has.
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

/// Remembers a datagram of the node itself, or of a Pod whose address it masquerades, that leaves
/// from a port which is a frontend's too: what comes back to that port is an answer and no request.
///
/// TCP and SCTP need no such entries: only what opens a connection is a request at a node's own
/// address.
#[inline(never)]
fn note_own<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, destination: Origin) {
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
    // A request of a client to the frontend was there first: this is a reply to it that was
    // translated before.
    if !tables.add_flow(&answers, &flow) {
        return;
    }
    flow.source = key.source;
    flow.destination = key.destination;
    flow.source_port = key.source_port;
    flow.destination_port = key.destination_port;
    flow.flags = flow_flags::PASS;
    flow.set_peer_hook(answers.hook);
    // Without it the next datagram comes here again.
    tables.insert_flow(key, &flow);
}

/// Whether a packet of a connection that was idle for longer than it lives is still a reply. A TCP
/// client that has used its port for another connection since has removed the entry with its SYN;
/// for a datagram there is no such sign.
#[inline(always)]
fn is_late<A>(parsed: &Parsed<A>, state: u8) -> bool {
    match parsed.key.protocol {
        protocol::TCP => true,
        protocol::SCTP => state & flow_state::CONFIRMED != 0,
        _ => false,
    }
}
