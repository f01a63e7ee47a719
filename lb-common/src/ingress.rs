//! A packet enters the node's stack, from a Pod or from a network device: requests to frontends get the address of
//! a backend; replies of hairpin connections, which come back the same way, get their frontend's address.
#![expect(unsafe_code, reason = "a flow on the stack is not written before it is known")]

use core::mem::MaybeUninit;

use crate::address::Address;
use crate::answer;
use crate::checksum::Sum;
use crate::flow::FlowEntry;
use crate::layout::{
    Backend, BackendId, Flow, FlowKey, Frontend, FrontendKey, Port, Region, ServiceId, backend_state,
    flow_flags, frontend_flags, hook, protocol,
};
use crate::packet::Packet;
use crate::parse::{Parsed, tcp_flags};
use crate::reason::Reason;
use crate::tables::{TRANSLATED_PORTS, Tables};

/// What to do with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Goes on into the stack, translated or untouched.
    Pass,
    /// Goes back out of the device it came in on.
    Bounce,
    /// Ends here.
    Drop,
}

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A Pod or a process of this node.
    Inside,
    /// Anywhere else.
    Outside,
}

/// What is to be done with a packet. One number: LLVM would carry the undefined half of a larger enum around, which
/// the verifier refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Rewrite it as its flow says.
    Translate,
    /// Look whether it belongs to a new flow.
    Open,
    /// It is not ours.
    Pass,
    /// It does not reach a backend.
    Stop(Reason),
}

const _: () = assert!(size_of::<Step>() == size_of::<u32>());

impl From<Reason> for Step {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Stop(reason)
    }
}

/// Decides about a packet that enters the stack, and rewrites it.
#[inline(always)]
pub fn ingress<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    origin: Origin,
) -> Verdict {
    // Zeroing it would cost more than the lookup of a flow: it becomes a call of memset, which counts bytes.
    let mut flow = MaybeUninit::uninit();
    let mut step = remembered(tables, parsed, &mut flow);
    if step == Step::Open {
        step = open(tables, parsed, origin, &mut flow);
    }
    let outcome = match step {
        // SAFETY: whoever says so has written the flow.
        Step::Translate => apply(packet, parsed, unsafe { flow.assume_init_ref() }),
        Step::Open | Step::Pass => return Verdict::Pass,
        Step::Stop(reason) => stop(packet, tables, parsed, reason),
    };
    outcome.unwrap_or_else(|reason| {
        tables.count_reason(reason);
        Verdict::Drop
    })
}

/// Finds the live flow of a packet.
#[inline(always)]
fn remembered<A: Address>(
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    flow: &mut MaybeUninit<Flow<A>>,
) -> Step {
    let key = &parsed.key;
    let Some(entry) = tables.flow(key) else {
        return Step::Open;
    };
    let flow = flow.write(entry.get());
    let now = tables.now();
    if (flow.is_closed() && parsed.is_syn()) || is_idle(tables, key, flow, now) {
        return Step::Open;
    }
    if flow.is_reply() || backend_lives(tables, flow) {
        note(tables, &entry, flow, parsed, now);
        return Step::Translate;
    }
    // The backend is gone: UDP and new connections get another one, TCP is told.
    forget(tables, key, flow);
    if key.protocol == protocol::TCP && !parsed.is_syn() {
        Step::Stop(Reason::BackendGone)
    } else {
        Step::Open
    }
}

/// Whether neither direction of a connection was seen for longer than it lives.
#[inline(always)]
pub(crate) fn is_idle<A: Address>(
    tables: &impl Tables<A>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    now: u32,
) -> bool {
    flow.is_expired(key.protocol, now, &tables.lifetimes()) && !peer_is_seen(tables, key, flow)
}

/// Whether the opposite direction of a flow was seen lately: much may be sent before anything is answered.
#[inline(never)]
fn peer_is_seen<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    let Some(peer) = peer(tables, key, flow) else {
        return false;
    };
    !peer
        .get()
        .is_expired(key.protocol, tables.now(), &tables.lifetimes())
}

/// The entry of the opposite direction, unless another connection has taken its place.
#[inline(always)]
fn peer<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) -> Option<FlowEntry<A>> {
    tables
        .flow(&flow.peer_key(key.protocol))
        .filter(|peer| peer.get().answers(key))
}

/// Removes the entries of both directions.
#[inline(never)]
fn forget<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) {
    if peer(tables, key, flow).is_some() {
        tables.remove_flow(&flow.peer_key(key.protocol));
    }
    tables.remove_flow(key);
}

/// Notes what a packet tells about its flow, writing only what changed.
#[inline(always)]
pub(crate) fn note<A: Address>(
    tables: &impl Tables<A>,
    entry: &FlowEntry<A>,
    flow: &Flow<A>,
    parsed: &Parsed<A>,
    now: u32,
) {
    if flow.last_seen != now {
        entry.set_last_seen(now);
    }
    let news = flow.news(parsed.headers.tcp_flags);
    if news != 0 {
        entry.add_state(news);
        tell_peer(tables, &parsed.key, flow, news);
    }
}

/// Adds bits to the entry of the opposite direction.
#[inline(never)]
fn tell_peer<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>, news: u8) {
    if let Some(peer) = peer(tables, key, flow) {
        peer.add_state(news);
    }
}

#[inline(always)]
fn backend_lives<A: Address>(tables: &impl Tables<A>, flow: &Flow<A>) -> bool {
    tables
        .backend(flow.backend)
        .is_some_and(|backend| backend.generation == flow.generation && backend.state != backend_state::GONE)
}

/// Rewrites a packet as its flow says.
#[inline(always)]
fn apply<A: Address>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
    flow: &Flow<A>,
) -> Result<Verdict, Reason> {
    packet
        .translate(&parsed.headers, &parsed.key, flow)
        .ok_or(Reason::RewriteFailed)?;
    if flow.flags & flow_flags::HAIRPIN == 0 {
        return Ok(Verdict::Pass);
    }
    answer::swap_link_addresses(packet).ok_or(Reason::RewriteFailed)?;
    Ok(Verdict::Bounce)
}

/// Opens a flow for a packet to a frontend.
///
/// Out of line: an established flow does not pay for its stack.
#[inline(never)]
fn open<A: Address>(
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    origin: Origin,
    flow: &mut MaybeUninit<Flow<A>>,
) -> Step {
    let key = &parsed.key;
    let Some(frontend) = find_frontend(tables, key.destination, key.destination_port, key.protocol) else {
        if parsed.is_syn() {
            forget_stale_reply(tables, key);
        }
        return Step::Pass;
    };
    if frontend.flags & frontend_flags::WILDCARD != 0 {
        return Step::Stop(Reason::UnknownPort);
    }
    let region = match region(&frontend, origin) {
        Ok(region) => region,
        Err(reason) => {
            tables.count_rejected(frontend.service);
            return Step::Stop(reason);
        }
    };
    let step = connect(tables, key, frontend.service, region, flow);
    if step == Step::Translate {
        tables.count_connection(frontend.service);
    }
    step
}

/// The frontend with this address, or the wildcard row of its address.
#[inline(always)]
pub(crate) fn find_frontend<A: Address>(
    tables: &impl Tables<A>,
    address: A,
    port: Port,
    protocol: u8,
) -> Option<Frontend> {
    let mut key = FrontendKey {
        address,
        port,
        protocol,
        pad: 0,
    };
    tables.frontend(&key).or_else(|| {
        key.port = Port::default();
        key.protocol = 0;
        tables.frontend(&key)
    })
}

/// The slots that clients of this origin choose from.
#[inline(always)]
pub fn region(frontend: &Frontend, origin: Origin) -> Result<Region, Reason> {
    let local_only = match origin {
        Origin::Inside => frontend_flags::INSIDE_LOCAL,
        Origin::Outside => frontend_flags::OUTSIDE_LOCAL,
    };
    let region = if frontend.flags & local_only != 0 {
        frontend.local
    } else {
        frontend.cluster
    };
    match (region.length, frontend.cluster.length) {
        (0, 0) => Err(Reason::NoEndpoint),
        (0, _) => Err(Reason::NoLocalEndpoint),
        _ => Ok(region),
    }
}

/// How often another backend or source port is tried before a packet is given up.
const ATTEMPTS: u32 = 4;

/// Chooses a backend and remembers the rewrite of both directions.
#[inline(always)]
fn connect<A: Address>(
    tables: &impl Tables<A>,
    key: &FlowKey<A>,
    service: ServiceId,
    region: Region,
    flow: &mut MaybeUninit<Flow<A>>,
) -> Step {
    let mut step = Step::Stop(Reason::StaleSlots);
    for attempt in 0..ATTEMPTS {
        let Some((id, backend)) = choose(tables, region) else {
            continue;
        };
        let hairpin = backend.address == key.source;
        let flow = flow.write(Flow {
            source: key.source,
            destination: backend.address,
            source_port: key.source_port,
            destination_port: backend.port,
            service,
            backend: id,
            generation: backend.generation,
            last_seen: tables.now(),
            state: 0,
            flags: if hairpin { flow_flags::HAIRPIN } else { 0 },
            difference: 0,
        });
        step = Step::Stop(Reason::NoSourcePort);
        if hairpin {
            flow.source = tables.node_address();
            if flow.source.is_unspecified() {
                continue;
            }
        }
        // The last attempt does not look for another backend but for another source port: a Service with one
        // backend has no other.
        if hairpin || attempt == ATTEMPTS - 1 {
            flow.source_port = translated_port(tables);
        }
        let addresses = key.source.difference(flow.source, Sum::new());
        flow.difference = key.destination.difference(flow.destination, addresses).fold16();
        match remember(tables, key, flow) {
            Remembered::Both => return Step::Translate,
            Remembered::Taken => {}
            Remembered::Neither => return Step::Stop(Reason::FlowTableFull),
        }
    }
    step
}

/// Whether the entries of a new flow were written.
enum Remembered {
    /// Those of both directions.
    Both,
    /// Another live connection already receives its replies under the reply's key.
    Taken,
    /// The table is full.
    Neither,
}

/// Writes the entries of both directions, that of the request last: a packet that finds it finds the reply's too.
#[inline(always)]
fn remember<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &mut Flow<A>) -> Remembered {
    let reply_key = flow.peer_key(key.protocol);
    // In place, for the sake of the stack.
    let (source, source_port, flags) = (flow.source, flow.source_port, flow.flags);
    flow.source = key.destination;
    flow.source_port = key.destination_port;
    flow.destination = key.source;
    flow.destination_port = key.source_port;
    flow.flags |= flow_flags::REPLY;
    flow.difference = !flow.difference;
    // Nearly always there is no entry, and looking for one first would be one lookup more.
    if !tables.add_flow(&reply_key, flow) {
        if is_taken(tables, &reply_key, key) {
            return Remembered::Taken;
        }
        if !tables.insert_flow(&reply_key, flow) {
            return Remembered::Neither;
        }
    }
    flow.source = source;
    flow.source_port = source_port;
    flow.destination = reply_key.source;
    flow.destination_port = reply_key.source_port;
    flow.flags = flags;
    flow.difference = !flow.difference;
    if tables.insert_flow(key, flow) {
        Remembered::Both
    } else {
        Remembered::Neither
    }
}

/// A random backend of a region; tried again where a slot and its row disagree, which they do for an instant when
/// backends are replaced.
#[inline(always)]
pub(crate) fn choose_again<A: Address>(
    tables: &impl Tables<A>,
    region: Region,
) -> Option<(BackendId, Backend<A>)> {
    for _ in 0..ATTEMPTS {
        if let Some(choice) = choose(tables, region) {
            return Some(choice);
        }
    }
    None
}

/// A random backend of a region, if the slot and its row agree.
#[inline(always)]
fn choose<A: Address>(tables: &impl Tables<A>, region: Region) -> Option<(BackendId, Backend<A>)> {
    let position = (u64::from(tables.random()) * u64::from(region.length)) >> 32;
    let slot = tables.slot(region.base.wrapping_add(position as u32))?;
    let backend = tables.backend(slot.backend)?;
    (backend.generation == slot.generation && backend.state == backend_state::ACTIVE)
        .then_some((slot.backend, backend))
}

#[inline(always)]
fn translated_port<A: Address>(tables: &impl Tables<A>) -> Port {
    const COUNT: u32 = *TRANSLATED_PORTS.end() as u32 - *TRANSLATED_PORTS.start() as u32 + 1;
    let offset = (u64::from(tables.random()) * u64::from(COUNT)) >> 32;
    Port::new(*TRANSLATED_PORTS.start() + offset as u16)
}

/// Whether another live connection already receives its replies under this key: one client port may talk to two
/// frontends that share a backend.
#[inline(never)]
fn is_taken<A: Address>(tables: &impl Tables<A>, reply_key: &FlowKey<A>, key: &FlowKey<A>) -> bool {
    let Some(entry) = tables.flow(reply_key) else {
        return false;
    };
    let reply = entry.get();
    let is_over = reply.is_closed() || reply.is_expired(key.protocol, tables.now(), &tables.lifetimes());
    !reply.answers(key) && !is_over
}

/// A client that connects straight to an address may reuse the port of a connection through a frontend that has
/// ended: its answers must not be taken for replies of that one.
#[inline(never)]
fn forget_stale_reply<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>) {
    let key = key.reversed(hook::EGRESS);
    if tables.flow(&key).is_some_and(|entry| entry.get().is_closed()) {
        tables.remove_flow(&key);
    }
}

/// Ends a packet's way. Where nobody will ever answer, the client is told: RST for TCP, ICMP port unreachable
/// otherwise.
#[inline(always)]
fn stop<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    reason: Reason,
) -> Result<Verdict, Reason> {
    // A RST is never answered (RFC 9293 section 3.10.7.1).
    if !reason.is_answered() || parsed.headers.tcp_flags & tcp_flags::RST != 0 {
        return Err(reason);
    }
    tables.count_reason(reason);
    answer::reject(packet, parsed).ok_or(Reason::AnswerFailed)?;
    Ok(Verdict::Bounce)
}
