//! Opens new flows: chooses frontend, backend, source address and port, then writes the entries of
//! both directions.
//!
//! The stages are called one after the other and do not call each other, because the kernel adds up
//! the stack of a call chain. A stage leaves its result in the flow.
#![expect(unsafe_code, reason = "a stack flow is uninitialised until it is known")]

use core::mem::MaybeUninit;

use crate::address::Address;
use crate::checksum::Sum;
use crate::choose::{ENDED, Origin, affinity_backend, choose, find_frontend, record_affinity, region};
use crate::cidr;
use crate::connection::tcp_word;
use crate::hash;
use crate::layout::{
    AffinityKey, Backend, Flow, FlowKey, Frontend, ServiceId, backend_flags, flow_flags, frontend_flags,
};
use crate::net::protocol;
use crate::net::tcp_flags;
use crate::packet::{Hop, Packet, Route, Sender};
use crate::parse::{Parsed, TCP_SEQUENCE};
use crate::reason::Reason;
use crate::source_port::{find_port, free_for};
use crate::step::Step;
use crate::tables::Tables;
use crate::verifier;

/// Opens a flow for a packet to a frontend. With [`Step::Translate`], `flow` is written.
#[inline(always)]
pub(crate) fn open<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    origin: Origin,
    flow: &mut MaybeUninit<Flow<A>>,
) -> Step {
    let selected = select(tables, parsed, origin, flow);
    if selected == Step::Stop(Reason::UnallocatedAddress) {
        return cidr::check_destination(packet, parsed.key.destination);
    }
    if selected != Step::Translate && selected != Step::TranslateAffine {
        return selected;
    }
    // SAFETY: `select` has written the flow.
    let flow = unsafe { flow.assume_init_mut() };
    if parsed.key.protocol == protocol::TCP {
        flow.acknowledged = tcp_word(packet, parsed, TCP_SEQUENCE);
    }
    let step = check_source(packet, parsed, origin, flow);
    if step != Step::Translate {
        return step;
    }
    // This check comes first because the verifier walks twice through everything before it.
    let is_genuine = origin == Origin::Outside || flow.flags & flow_flags::FORWARD == 0;
    if selected == Step::TranslateAffine && is_genuine {
        keep_backend(tables, &parsed.key, flow);
    }
    if flow.flags & (flow_flags::HAIRPIN | flow_flags::FORWARD) != 0 {
        let step = set_source(packet, tables, flow);
        if step != Step::Translate {
            return step;
        }
    }
    remember(packet, tables, &parsed.key, flow)
}

/// The affinity key of a client that is not translated at its socket.
#[inline(always)]
fn affinity_key<A: Address>(client: A, service: ServiceId) -> AffinityKey<A> {
    AffinityKey {
        client,
        namespace: [0; 2],
        service,
    }
}

/// Records the backend that a client stays with.
#[inline(never)]
fn keep_backend<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) {
    let key = affinity_key(key.source, flow.service);
    record_affinity(tables, &key, flow.backend, flow.generation);
}

/// Chooses a backend and keeps the source. Returns [`Step::TranslateAffine`] if the client stays
/// with the backend.
#[inline(never)]
fn select<A: Address>(
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    origin: Origin,
    flow: &mut MaybeUninit<Flow<A>>,
) -> Step {
    let key = &parsed.key;
    if !key.source.is_host() {
        return Step::Pass;
    }
    let Some(frontend) = find_frontend(tables, key.destination, key.destination_port, key.protocol) else {
        return if cidr::stops(tables, parsed, origin) {
            Step::Stop(Reason::UnallocatedAddress)
        } else {
            Step::Pass
        };
    };
    match refusal(tables, &frontend, key.source) {
        Step::Open => {}
        step => return step,
    }
    let region = match region(&frontend, origin) {
        Ok(region) => region,
        Err(reason) => {
            tables.count_rejected(frontend.service);
            return Step::Stop(reason);
        }
    };
    let is_midstream = key.protocol != protocol::UDP && !parsed.is_syn();
    if is_midstream {
        match resume(parsed, &frontend, origin) {
            Step::Open => {}
            step => return step,
        }
    }
    let mut id = 0;
    let mut hash = if frontend.affinity_seconds != 0 {
        let affinity = affinity_key(key.source, frontend.service);
        id = affinity_backend(tables, &affinity, &frontend, origin);
        hash::of_client(tables.settings().hash_seed, key.source)
    } else if origin == Origin::Outside {
        hash::of_connection(tables.settings().hash_seed, key)
    } else {
        tables.random()
    };
    if id == ENDED {
        hash = tables.random();
        id = 0;
    }
    if id == 0 {
        id = choose(tables, frontend.service, &region, hash);
    }
    let backend = tables.backend(id).filter(|_| id != 0);
    let Some(backend) = backend.filter(|backend| backend.service == frontend.service) else {
        return Step::Stop(Reason::StaleSlots);
    };
    let flags = flow_flags_to(&backend, key.source, origin, is_midstream);
    let now = tables.now();
    let tail = verifier::hide(flags.into(), now);
    flow.write(Flow {
        source: key.source,
        destination: backend.address,
        source_port: key.source_port,
        destination_port: backend.port,
        service: frontend.service,
        backend: id,
        generation: backend.generation,
        last_seen: now,
        acknowledged: 0,
        state: (tail >> 8) as u8,
        flags: tail as u8,
        difference: (tail >> 16) as u16,
    });
    if frontend.affinity_seconds != 0 {
        Step::TranslateAffine
    } else {
        Step::Translate
    }
}

/// How packets reach a backend: bits of [`flow_flags`].
#[inline(always)]
fn flow_flags_to<A: Address>(backend: &Backend<A>, client: A, origin: Origin, is_midstream: bool) -> u8 {
    let is_local = backend.flags & backend_flags::LOCAL != 0;
    let mut flags = if origin == Origin::Outside && !is_local {
        flow_flags::FORWARD
    } else if backend.address == client {
        flow_flags::HAIRPIN
    } else if origin == Origin::Inside && is_local {
        flow_flags::LOCAL
    } else {
        0
    };
    if is_midstream {
        flags |= flow_flags::MIDSTREAM;
    }
    flags
}

/// Decides about a packet that continues an unknown connection. It may go to a backend only if that
/// is certainly the same one: from outside, where the hash of the packet selects it. Then the
/// result is [`Step::Open`].
#[inline(always)]
fn resume<A>(parsed: &Parsed<A>, frontend: &Frontend, origin: Origin) -> Step {
    if frontend.flags & frontend_flags::NODE_ADDRESS != 0 {
        // It may be an answer to a connection of the node itself.
        return Step::Pass;
    }
    let is_certain = origin == Origin::Outside && frontend.maglev.length != 0;
    let resets = parsed.headers.tcp_flags & tcp_flags::RST != 0;
    if is_certain && !resets {
        Step::Open
    } else {
        Step::Stop(Reason::UnknownConnection)
    }
}

/// Why a client may not use a frontend. [`Step::Open`] if it may.
#[inline(always)]
fn refusal<A: Address>(tables: &impl Tables<A>, frontend: &Frontend, client: A) -> Step {
    if frontend.flags & frontend_flags::WILDCARD != 0 {
        return match frontend.flags & frontend_flags::PASS_UNKNOWN {
            0 => Step::Stop(Reason::UnknownPort),
            _ => Step::Pass,
        };
    }
    if frontend.source_ranges != 0 && !tables.allows(frontend.source_ranges, client) {
        return Step::Stop(Reason::SourceRange);
    }
    Step::Open
}

/// Checks whether the source address belongs to the sender. From outside, an address of this node
/// or of one of its Pods is forged. A client behind a Pod's device that is not this Pod gets its
/// source replaced, unless replies to it pass this node anyway. Whether its address is forged
/// cannot be determined.
#[inline(never)]
fn check_source<A: Address>(
    packet: &impl Packet,
    parsed: &Parsed<A>,
    origin: Origin,
    flow: &mut Flow<A>,
) -> Step {
    let sender = packet.sender(parsed.key.source);
    if origin == Origin::Outside {
        return match sender {
            Sender::Pod | Sender::Node => Step::Stop(Reason::ForgedSource),
            Sender::Here | Sender::Behind | Sender::Network => Step::Translate,
        };
    }
    let is_foreign = match sender {
        Sender::Here => false,
        Sender::Behind if flow.flags & flow_flags::HAIRPIN != 0 => false,
        // Replies of the router itself do not come back to this node. Those of another port of its
        // bridge may not either.
        Sender::Behind if flow.flags & flow_flags::LOCAL != 0 => {
            packet.sender(flow.destination) == Sender::Here
        }
        Sender::Behind | Sender::Network | Sender::Pod | Sender::Node => true,
    };
    if is_foreign {
        flow.flags = flow.flags & !flow_flags::HAIRPIN | flow_flags::FORWARD;
    }
    Step::Translate
}

/// Replaces the client's address by one of this node, so that replies come back here.
#[inline(never)]
fn set_source<A: Address>(packet: &impl Packet, tables: &impl Tables<A>, flow: &mut Flow<A>) -> Step {
    let mut source = A::default();
    if flow.flags & flow_flags::FORWARD != 0 {
        let mut hop = Hop::default();
        match packet.route(source, flow.destination, 0, &mut hop) {
            Route::Ready | Route::Unresolved | Route::TooBig => source = tables.device_address(hop.device),
            // The backend is a process of this node. The stack accepts the packet without another
            // source.
            Route::Local => {
                flow.flags &= !flow_flags::FORWARD;
                return Step::Translate;
            }
            Route::None => return Step::Stop(Reason::NoRoute),
        }
    }
    if source.is_unspecified() {
        source = tables.settings().node_address();
    }
    if source.is_unspecified() {
        return Step::Stop(Reason::NoSourcePort);
    }
    flow.source = source;
    Step::Translate
}

/// Finds a source port that no other connection's replies use, and writes the entries of both
/// directions. The request's entry is written last: a packet that finds it also finds the reply's
/// entry.
#[inline(never)]
fn remember<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    key: &FlowKey<A>,
    flow: &mut Flow<A>,
) -> Step {
    let addresses = key.source.difference(flow.source, Sum::new());
    flow.difference = key.destination.difference(flow.destination, addresses).fold16();
    let reply_hook = flow.reply_hook();
    flow.set_peer_hook(reply_hook);
    let mut reply_key = flow.peer_key(key.protocol);
    flow.set_peer_hook(key.hook);
    // Changed in place to save stack. The reply's key holds what is overwritten.
    flow.source = key.destination;
    flow.source_port = key.destination_port;
    flow.destination = key.source;
    flow.destination_port = key.source_port;
    flow.flags |= flow_flags::REPLY;
    flow.difference = !flow.difference;
    let mut step = add_reply(packet, tables, &mut reply_key, key, flow);
    flow.source = reply_key.destination;
    flow.source_port = reply_key.destination_port;
    flow.destination = reply_key.source;
    flow.destination_port = reply_key.source_port;
    flow.flags &= !flow_flags::REPLY;
    flow.set_peer_hook(reply_hook);
    flow.difference = !flow.difference;
    if step == Step::Translate && !tables.insert_flow(key, flow) {
        step = Step::Stop(Reason::FlowTableFull);
    }
    step
}

/// Writes the reply's entry. Its key gets another source port if the port must be replaced or is
/// taken.
#[inline(always)]
fn add_reply<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    reply_key: &mut FlowKey<A>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Step {
    // An SCTP packet with another port would need a new checksum over the whole packet.
    let is_fixed = key.protocol == protocol::SCTP;
    let is_own = is_fixed || flow.flags & (flow_flags::HAIRPIN | flow_flags::FORWARD) == 0;
    // Nearly always there is no entry, so a lookup before would only cost time.
    if is_own && tables.add_flow(reply_key, flow) {
        return Step::Translate;
    }
    if !is_own || free_for(tables, reply_key, key) == 0 {
        if is_fixed {
            return Step::Stop(Reason::NoSourcePort);
        }
        match find_port(packet, tables, reply_key, key, flow) {
            Step::Open => {}
            step => return step,
        }
    }
    if tables.insert_flow(reply_key, flow) {
        Step::Translate
    } else {
        Step::Stop(Reason::FlowTableFull)
    }
}
