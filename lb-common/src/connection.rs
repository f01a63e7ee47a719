//! The state of a connection: whether it is still alive, how its packets change it, and which
//! packets belong to it.

use crate::address::Address;
use crate::flow::{FlowEntry, StateChange};
use crate::layout::{Flow, FlowKey, backend_state, flow_flags, flow_state};
use crate::net::protocol;
use crate::net::tcp_flags;
use crate::packet::{Packet, Part};
use crate::parse::{Parsed, TCP_ACKNOWLEDGEMENT, TCP_SEQUENCE};
use crate::tables::Tables;

/// Returns true if both directions of a connection have been idle for longer than their lifetime.
#[inline(always)]
pub fn is_idle<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>, now: u32) -> bool {
    flow.is_expired(key.protocol, now, |protocol, state| {
        tables.settings().lifetime(protocol, state)
    }) && !peer_is_seen(tables, key, flow)
}

/// Returns true if the opposite direction of a flow was seen recently. One side may send for a long
/// time before the other answers.
#[inline(never)]
fn peer_is_seen<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    let Some(peer) = peer(tables, key, flow) else {
        return false;
    };
    !peer
        .get()
        .is_expired(key.protocol, tables.now(), |protocol, state| {
            tables.settings().lifetime(protocol, state)
        })
}

#[inline(never)]
pub(crate) fn has_peer<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    peer(tables, key, flow).is_some()
}

/// Returns true if the client of the connection that receives its replies under this key still
/// sends. There may be no replies: datagrams can stay unanswered for hours.
#[inline(never)]
pub(crate) fn is_requested<A: Address>(tables: &impl Tables<A>, reply_key: &FlowKey<A>) -> bool {
    let Some(entry) = tables.flow(reply_key) else {
        return false;
    };
    let reply = entry.get();
    if reply.is_closed() {
        return false;
    }
    let Some(request) = peer(tables, reply_key, &reply) else {
        return false;
    };
    let request = request.get();
    !request.is_expired(reply_key.protocol, tables.now(), |protocol, state| {
        tables.settings().lifetime(protocol, state)
    })
}

/// The entry of the opposite direction, unless another connection has replaced it.
#[inline(always)]
fn peer<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) -> Option<FlowEntry<A>> {
    tables
        .flow(&flow.peer_key(key.protocol))
        .filter(|peer| peer.get().answers(key))
}

/// Removes the entries of both directions.
#[inline(never)]
pub(crate) fn forget<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) {
    if peer(tables, key, flow).is_some() {
        tables.remove_flow(&flow.peer_key(key.protocol));
    }
    tables.remove_flow(key);
}

/// Updates a flow after a packet, and writes only what changed.
#[inline(always)]
pub(crate) fn record_packet<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    entry: &FlowEntry<A>,
    flow: &Flow<A>,
    parsed: &Parsed<A>,
    now: u32,
) {
    if flow.last_seen != now {
        entry.set_last_seen(now);
        if flow.state & flow_state::CONFIRMED != 0 {
            record_acknowledgement(packet, entry, parsed);
        }
    }
    if !flow.is_unchanged_by(parsed.headers.tcp_flags) {
        record_change(packet, tables, flow, parsed);
    }
}

/// Updates the state of a flow after a packet.
#[inline(never)]
fn record_change<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    flow: &Flow<A>,
    parsed: &Parsed<A>,
) {
    let change = flow.state_change(parsed.headers.tcp_flags);
    let opens = parsed.headers.tcp_flags & tcp_flags::SYN != 0 && flow.state & flow_state::CONFIRMED == 0;
    if opens || !change.is_empty() {
        change_state(packet, tables, parsed, flow, change);
    }
}

/// Records the acknowledgement number of a segment.
#[inline(never)]
fn record_acknowledgement<A: Address>(packet: &impl Packet, entry: &FlowEntry<A>, parsed: &Parsed<A>) {
    const BITS: u8 = tcp_flags::ACK | tcp_flags::RST;
    if parsed.key.protocol == protocol::TCP
        && parsed.headers.part != Part::Later
        && parsed.headers.tcp_flags & BITS == tcp_flags::ACK
    {
        entry.set_acknowledged(tcp_word(packet, parsed, TCP_ACKNOWLEDGEMENT));
    }
}

/// A number in a TCP header, in host byte order; 0 if it cannot be read.
#[inline(always)]
pub(crate) fn tcp_word<A>(packet: &impl Packet, parsed: &Parsed<A>, offset: u32) -> u32 {
    packet
        .view::<4>(parsed.headers.transport + offset)
        .map_or(0, |number| u32::from_be(number.u32::<0>()))
}

/// Changes the state in the entries of both directions.
#[inline(always)]
fn change_state<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    flow: &Flow<A>,
    change: StateChange,
) {
    let mut change = change;
    if flow.flags & flow_flags::PASS != 0 {
        // The sequence numbers of this connection are not known. Only the proxy that translates it
        // can tell whether it was reset.
        change.added &= !flow_state::RESET;
    }
    let entry = tables.flow(&parsed.key);
    let peer = peer(tables, &parsed.key, flow);
    if parsed.key.protocol == protocol::TCP && parsed.headers.part != Part::Later {
        let sequence = tcp_word(packet, parsed, TCP_SEQUENCE);
        let acknowledged = tcp_word(packet, parsed, TCP_ACKNOWLEDGEMENT);
        if flow.state & flow_state::CONFIRMED != 0 {
            // A sender that knows the connection resets it with the number that the other side has
            // acknowledged (RFC 5961 section 3.2).
            let is_known = peer.as_ref().is_none_or(|peer| peer.get().is_in_window(sequence));
            if !is_known {
                change.added &= !flow_state::RESET;
            }
        } else if parsed.headers.tcp_flags & tcp_flags::RST == 0 {
            // The client will acknowledge the sequence number of the answer, and the answer will
            // acknowledge that of the client's SYN.
            if (flow.is_reply() || parsed.is_syn())
                && let Some(peer) = &peer
            {
                peer.set_acknowledged(sequence);
            }
            // A client with a forged address has to guess this number.
            if change.added & flow_state::CONFIRMED != 0 && !flow.is_in_window(acknowledged) {
                change.added &= !flow_state::CONFIRMED;
            } else if !parsed.is_syn()
                && let Some(entry) = &entry
            {
                entry.set_acknowledged(acknowledged);
            }
        }
    }
    if let Some(entry) = entry {
        entry.change_state(change);
    }
    if let Some(peer) = peer {
        peer.change_state(change);
    }
}

/// Returns true if a reply's entry translates a segment. Before the backend has answered the
/// client's first segment, that segment may have come from a forged address. What the backend sends
/// may then belong to a connection that the client has opened directly to it.
#[inline(always)]
pub(crate) fn is_reply_to_flow<A: Address>(packet: &impl Packet, parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    const REPLACED: u8 = flow_flags::HAIRPIN | flow_flags::FORWARD;
    if flow.state & flow_state::CLASH != 0 {
        return false;
    }
    flow.state & flow_state::ANSWERED != 0
        || parsed.key.protocol != protocol::TCP
        // This node created the tuple, so no other connection uses it.
        || flow.flags & REPLACED != 0
        || flow.destination_port != parsed.key.destination_port
        || is_first_answer(packet, parsed, flow)
}

/// Returns true if a segment is a backend's answer to the first segment of a connection.
#[inline(never)]
fn is_first_answer<A: Address>(packet: &impl Packet, parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    let flags = parsed.headers.tcp_flags;
    if flow.flags & flow_flags::MIDSTREAM != 0 {
        // A backend that does not know the connection resets it. A backend that has another
        // connection with this client does not.
        return flags & tcp_flags::RST != 0
            || (flags & tcp_flags::ACK != 0
                && flow.is_in_window(tcp_word(packet, parsed, TCP_ACKNOWLEDGEMENT)));
    }
    if flags & tcp_flags::ACK == 0 {
        return false;
    }
    // The RST that refuses a SYN has the sequence number 0 (RFC 9293 section 3.10.7.1).
    flags & tcp_flags::SYN != 0
        || (flags & tcp_flags::RST != 0 && tcp_word(packet, parsed, TCP_SEQUENCE) == 0)
}

/// Records that the tuple of the replies belongs to another connection of the client.
#[inline(never)]
pub(crate) fn record_clash<A: Address>(tables: &impl Tables<A>, parsed: &Parsed<A>, flow: &Flow<A>) {
    let change = StateChange {
        added: flow_state::CLASH,
        removed: 0,
    };
    if let Some(entry) = tables.flow(&parsed.key) {
        entry.change_state(change);
    }
    if let Some(peer) = peer(tables, &parsed.key, flow) {
        peer.change_state(change);
    }
}

/// Returns true if the backend of a flow still accepts its packets. An absent backend keeps
/// connections. A flow that it has not answered is better served by another backend.
#[inline(always)]
pub fn backend_lives<A: Address>(tables: &impl Tables<A>, protocol: u8, flow: &Flow<A>) -> bool {
    let is_connection = protocol == protocol::TCP || flow.state & flow_state::ANSWERED != 0;
    tables.backend(flow.backend).is_some_and(|backend| {
        backend.generation == flow.generation
            && backend.state != backend_state::GONE
            && (is_connection || backend.state != backend_state::ABSENT)
    })
}
