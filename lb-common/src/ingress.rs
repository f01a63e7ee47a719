//! Packets that enter the node's stack from a Pod or from a network device. Requests to frontends
//! get the address of a backend. Replies that do not leave through the stack, those of hairpin
//! connections and of backends on other nodes, get their frontend's address here.
#![expect(unsafe_code, reason = "a stack flow is uninitialised until it is known")]

use core::mem::MaybeUninit;

use crate::address::Address;
use crate::answer;
use crate::budget::Limit;
use crate::choose::Origin;
use crate::connection::{
    backend_lives, forget, has_peer, is_idle, is_reply_to_flow, record_packet, tcp_word,
};
use crate::forward::{hand_over, send_on};
use crate::layout::{Flow, FlowKey, flow_flags, flow_state, hook};
use crate::net::protocol;
use crate::net::tcp_flags;
use crate::open::open;
use crate::packet::{Packet, Part, Verdict};
use crate::parse::{Parsed, TCP_SEQUENCE};
use crate::reason::Reason;
use crate::step::Step;
use crate::tables::Tables;
use crate::verifier::Slot;

/// Returns the verdict for a packet that enters the stack, and rewrites it.
#[inline(always)]
pub(crate) fn ingress<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    parsed: &mut Parsed<A>,
    origin: Origin,
) -> Verdict {
    let is_candidate =
        tables.may_be_destination(parsed.key.destination) && packet.is_for_node(parsed.headers.network);
    if !is_candidate {
        // The entry of a Pod's reply has the hook at which replies leave the stack.
        let may_hand_over = origin == Origin::Inside
            && tables.settings().redirects_locally != 0
            && tables.may_reply(parsed.key.source, parsed.key.source_port);
        if !may_hand_over {
            return pass(packet, tables, parsed);
        }
        parsed.key.hook = hook::EGRESS;
    }
    // The slot is not zeroed. That would cost more than a flow lookup: it becomes a call of memset,
    // which loops over bytes.
    let mut slot = Slot::new();
    let mut step = remembered(packet, tables, parsed, slot.get());
    if step == Step::Open && is_candidate {
        slot.clear();
        step = open(packet, tables, parsed, origin, slot.get());
        if step == Step::Translate {
            // SAFETY: `open` writes the flow before it returns `Translate`.
            tables.count_connection(unsafe { slot.get().assume_init_ref() }.service);
        }
    }
    let mut mtu = 0;
    if step == Step::Translate {
        // SAFETY: `remembered` and `open` write the flow before they return `Translate`.
        step = apply(
            packet,
            tables,
            parsed,
            unsafe { slot.get().assume_init_ref() },
            &mut mtu,
        );
    }
    if let Step::Stop(reason) = step {
        step = stop(packet, tables, parsed, reason, mtu);
    }
    match step {
        Step::Translate | Step::TranslateAffine | Step::Leave => Verdict::Pass,
        Step::Open | Step::Pass => pass(packet, tables, parsed),
        Step::Bounce => Verdict::Bounce,
        Step::Redirect => Verdict::Redirect,
        Step::Stop(reason) => {
            tables.count_reason(reason);
            Verdict::Drop
        }
    }
}

/// Passes a packet that the programs do not translate.
#[inline(always)]
fn pass<A: Address>(packet: &impl Packet, tables: &impl Tables<A>, parsed: &Parsed<A>) -> Verdict {
    if parsed.is_syn() {
        forget_stale_reply(packet, tables, parsed);
    }
    Verdict::Pass
}

/// Finds the live flow of a packet.
#[inline(always)]
fn remembered<A: Address>(
    packet: &impl Packet,
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
    if flow.is_reply() && !is_reply_to_flow(packet, parsed, flow) {
        // The egress program checks it again.
        return Step::Open;
    }
    if parsed.is_syn() && opens_another_connection(tables, key, flow) {
        return Step::Open;
    }
    if is_idle(tables, key, flow, now) && !is_resumed(tables, parsed, flow) {
        return Step::Open;
    }
    if flow.is_reply() || backend_lives(tables, key.protocol, flow) || is_kept(tables, parsed) {
        record_packet(packet, tables, &entry, flow, parsed, now);
        return if flow.flags & flow_flags::PASS == 0 {
            Step::Translate
        } else {
            Step::Pass
        };
    }
    // The backend is gone. UDP and new connections get another one, and TCP gets a RST.
    forget(tables, key, flow);
    if key.protocol == protocol::TCP && !parsed.is_syn() {
        Step::Stop(Reason::BackendGone)
    } else {
        Step::Open
    }
}

/// Returns true if a SYN on the tuple of a flow opens another connection: the old one has ended, or
/// its replies belong to a connection that the client has opened directly to the backend.
#[inline(always)]
fn opens_another_connection<A: Address>(tables: &impl Tables<A>, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    if flow.state & flow_state::ANSWERED != 0 {
        return flow.is_closed();
    }
    flow.is_closed() || flow.state & flow_state::CLASH != 0 || !has_peer(tables, key, flow)
}

/// Returns true if a packet continues a connection that was idle for longer than its lifetime. A
/// SYN does not. A datagram does not either, because another process may have the port now.
#[inline(always)]
fn is_resumed<A: Address>(tables: &impl Tables<A>, parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    parsed.key.protocol != protocol::UDP
        && !parsed.is_syn()
        && flow.state & flow_state::CONFIRMED != 0
        && has_peer(tables, &parsed.key, flow)
}

/// Returns true if a packet's connection to a removed backend continues. A connection that is only
/// being opened does not, because the backend would not answer.
#[inline(always)]
fn is_kept<A: Address>(tables: &impl Tables<A>, parsed: &Parsed<A>) -> bool {
    parsed.key.protocol == protocol::TCP && !parsed.is_syn() && tables.settings().keeps_removed != 0
}

/// Rewrites a packet according to its flow, and sends it on if the stack is not involved.
#[inline(always)]
fn apply<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    flow: &Flow<A>,
    mtu: &mut u32,
) -> Step {
    if flow.flags & flow_flags::FORWARD != 0 {
        return send_on(packet, parsed, flow, mtu);
    }
    if flow.flags & flow_flags::LOCAL != 0 && tables.settings().redirects_locally != 0 {
        let step = hand_over(packet, parsed, flow);
        if step != Step::Leave {
            return step;
        }
    }
    if parsed.key.hook == hook::EGRESS {
        return Step::Leave;
    }
    if packet.translate(&parsed.headers, &parsed.key, flow).is_none() {
        return Step::Stop(Reason::RewriteFailed);
    }
    if flow.flags & flow_flags::HAIRPIN == 0 {
        return Step::Translate;
    }
    match answer::swap_link_addresses(packet, parsed.headers.network) {
        Some(()) => Step::Bounce,
        None => Step::Stop(Reason::RewriteFailed),
    }
}

/// Removes the reply entry of a connection through a frontend that has ended or was never
/// established, when the client opens a direct connection from the same port. Otherwise the answers
/// to the direct connection would be treated as replies.
///
/// The SYN of the connection through the frontend also arrives here, already translated by another
/// program.
#[inline(never)]
fn forget_stale_reply<A: Address>(packet: &impl Packet, tables: &impl Tables<A>, parsed: &Parsed<A>) {
    let key = parsed.key.reversed(hook::EGRESS);
    if !tables.may_reply(key.source, key.source_port) {
        return;
    }
    let Some(entry) = tables.flow(&key) else {
        return;
    };
    let flow = entry.get();
    let sequence = tcp_word(packet, parsed, TCP_SEQUENCE);
    let is_unconfirmed = flow.state & flow_state::CONFIRMED == 0
        && key.protocol == protocol::TCP
        // The recorded number is that of the SYN, or, after an answer, the next one.
        && flow.acknowledged.wrapping_sub(sequence) > 1;
    let is_stale = flow.is_closed() || is_unconfirmed || is_idle(tables, &key, &flow, tables.now());
    if is_stale {
        tables.remove_flow(&key);
    }
}

/// Ends the path of a packet. The client is notified if no backend will ever answer or if it can
/// react to the error: with a RST for TCP, with an ICMP error otherwise.
#[inline(always)]
fn stop<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    parsed: &Parsed<A>,
    reason: Reason,
    mtu: u32,
) -> Step {
    // A RST is never answered (RFC 9293 section 3.10.7.1). Of a datagram's fragments only the first
    // is answered (RFC 1122 section 3.2.2). A fragment of TCP is not, because the content of the
    // RST depends on the other fragments.
    let is_answered = match parsed.headers.part {
        // A packet that ends an SCTP association must contain its tag, which is not known here.
        Part::Whole if reason == Reason::UnknownConnection => {
            parsed.key.protocol == protocol::TCP && parsed.headers.tcp_flags & tcp_flags::RST == 0
        }
        Part::Whole => parsed.headers.tcp_flags & tcp_flags::RST == 0,
        Part::First => parsed.key.protocol != protocol::TCP,
        Part::Later => false,
    };
    if !reason.is_answered() || !is_answered {
        return Step::Stop(reason);
    }
    tables.count_reason(reason);
    let is_refusal =
        parsed.key.protocol != protocol::TCP && !matches!(reason, Reason::TooBig | Reason::HopLimit);
    let limit = if is_refusal {
        Limit::Errors
    } else {
        Limit::Connections
    };
    if !tables.may_answer(parsed.key.source, limit) {
        return Step::Stop(Reason::AnswerLimit);
    }
    match answer::answer(packet, parsed, reason, mtu) {
        Some(()) => Step::Bounce,
        None => Step::Stop(Reason::AnswerFailed),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::vec;
    use std::vec::Vec;

    use super::ingress;
    use crate::address::Address;
    use crate::choose::{Origin, region};
    use crate::egress::egress;
    use crate::host::{Bytes, HOP, HostRoute, HostTables, only_ports};
    use crate::layout::{
        Backend, FlowKey, Frontend, FrontendKey, Region, Slot, backend_flags, backend_state, frontend_flags,
        hook,
    };
    use crate::net::tcp_flags;
    use crate::net::{Address4, Port, protocol};
    use crate::packet::{Hop, Route, Verdict};
    use crate::parse::{self};
    use crate::reason::Reason;
    use crate::settings::TICK_SHIFT;
    use crate::tables::Tables as _;
    use proptest::prelude::*;

    type End = (Address4, Port);

    const SYN_ACK: u8 = tcp_flags::SYN | tcp_flags::ACK;
    /// The flags of the answer to a SYN if no process listens.
    const REFUSED: u8 = tcp_flags::RST | tcp_flags::ACK;

    fn end(last: u8, port: u16) -> End {
        (Address4::from_bytes([10, 0, 0, last]), Port::new(port))
    }

    /// Two frontends, 10.0.0.1 and 10.0.0.2, that share the Pods 10.0.0.11 to 10.0.0.13.
    fn tables() -> HostTables<Address4> {
        let mut tables = HostTables::default();
        tables.settings.node_address4 = end(99, 0).0;
        for (service, last) in [(1, 1), (2, 2)] {
            let base = service * 10;
            let key = FrontendKey {
                address: end(last, 0).0,
                port: Port::new(80),
                protocol: protocol::TCP,
                pad: 0,
            };
            let cluster = Region { base, length: 3 };
            tables.frontends.insert(
                key,
                Frontend {
                    service,
                    cluster,
                    ..Frontend::default()
                },
            );
            for pod in 0..3 {
                let (address, port) = end(11 + pod, 8080);
                let id = base + u32::from(pod);
                let backend = Backend {
                    address,
                    port,
                    state: backend_state::ACTIVE,
                    flags: 0,
                    generation: 1,
                    service,
                };
                tables.backends.insert(id, backend);
                tables.slots.insert(
                    id,
                    Slot {
                        backend: id,
                        generation: 1,
                    },
                );
            }
        }
        tables
    }

    /// A TCP segment without payload. Its checksums do not matter here.
    fn segment(source: End, destination: End, flags: u8) -> Bytes {
        let mut bytes = vec![0; 14 + 40];
        bytes[12] = 8;
        bytes[14] = 0x45;
        bytes[17] = 40;
        bytes[23] = protocol::TCP;
        bytes[26..30].copy_from_slice(&source.0.to_bytes());
        bytes[30..34].copy_from_slice(&destination.0.to_bytes());
        bytes[34..36].copy_from_slice(&source.1.to_bytes());
        bytes[36..38].copy_from_slice(&destination.1.to_bytes());
        bytes[46] = 0x50;
        bytes[47] = flags;
        Bytes::from(bytes)
    }

    fn key(packet: &Bytes) -> FlowKey<Address4> {
        parse::ipv4(packet, 14, hook::INGRESS_INSIDE).unwrap().key
    }

    /// The verdict for a segment that enters, then its source and destination after translation.
    fn enter(tables: &HostTables<Address4>, source: End, destination: End, flags: u8) -> (Verdict, End, End) {
        let mut packet = segment(source, destination, flags);
        let mut parsed = parse::ipv4(&packet, 14, hook::INGRESS_INSIDE).unwrap();
        let verdict = ingress(&mut packet, tables, &mut parsed, Origin::Inside);
        let key = key(&packet);
        (
            verdict,
            (key.source, key.source_port),
            (key.destination, key.destination_port),
        )
    }

    /// Source and destination of a segment that leaves, after translation.
    fn leave(tables: &HostTables<Address4>, source: End, destination: End, flags: u8) -> (End, End) {
        let mut packet = segment(source, destination, flags);
        let parsed = parse::ipv4(&packet, 14, hook::EGRESS).unwrap();
        assert_eq!(
            egress(&mut packet, tables, &parsed, Origin::Inside),
            Verdict::Pass
        );
        let key = key(&packet);
        (
            (key.source, key.source_port),
            (key.destination, key.destination_port),
        )
    }

    #[test]
    fn the_region_depends_on_origin_and_policy() {
        let (cluster, local) = (Region { base: 1, length: 2 }, Region { base: 5, length: 1 });
        let none = Region::default();
        let both = frontend_flags::INSIDE_LOCAL | frontend_flags::OUTSIDE_LOCAL;
        for (flags, local, origin, expected) in [
            (0, local, Origin::Inside, Ok(cluster)),
            (0, local, Origin::Outside, Ok(cluster)),
            (frontend_flags::INSIDE_LOCAL, local, Origin::Inside, Ok(local)),
            (frontend_flags::INSIDE_LOCAL, local, Origin::Outside, Ok(cluster)),
            (frontend_flags::OUTSIDE_LOCAL, local, Origin::Inside, Ok(cluster)),
            (frontend_flags::OUTSIDE_LOCAL, local, Origin::Outside, Ok(local)),
            (both, none, Origin::Inside, Err(Reason::NoLocalEndpoint)),
            (both, none, Origin::Outside, Err(Reason::NoLocalEndpoint)),
        ] {
            let frontend = Frontend {
                flags,
                cluster,
                local,
                ..Frontend::default()
            };
            assert_eq!(region(&frontend, origin), expected, "{flags} {origin:?}");
        }
        let empty = Frontend {
            flags: both,
            ..Frontend::default()
        };
        assert_eq!(region(&empty, Origin::Inside), Err(Reason::NoEndpoint));
    }

    #[test]
    fn source_ports_of_hairpin_connections_differ() {
        let tables = tables();
        let mut sources = vec![];
        for port in 1000..1100 {
            // From time to time a Pod is chosen as its own backend.
            let (verdict, source, destination) = enter(&tables, end(11, port), end(1, 80), tcp_flags::SYN);
            if verdict == Verdict::Bounce {
                assert_eq!((source.0, destination), (end(99, 0).0, end(11, 8080)));
                assert!(!sources.contains(&source));
                sources.push(source);
                let (verdict, source, destination) = enter(&tables, destination, source, tcp_flags::ACK);
                assert_eq!(
                    (verdict, source, destination),
                    (Verdict::Bounce, end(1, 80), end(11, port))
                );
            }
        }
        assert!(sources.len() > 10);
    }

    /// Opens a connection of a Pod to itself, which the backend refuses. Returns the source port
    /// that the backend sees.
    fn refused(tables: &HostTables<Address4>, port: u16) -> Port {
        let (verdict, source, pod) = enter(tables, end(11, port), end(1, 80), tcp_flags::SYN);
        assert_eq!(verdict, Verdict::Bounce);
        let flags = tcp_flags::RST | tcp_flags::ACK;
        let (verdict, _, client) = enter(tables, pod, source, flags);
        assert_eq!((verdict, client), (Verdict::Bounce, end(11, port)));
        source.1
    }

    #[test]
    fn recently_closed_source_ports_are_reused_last() {
        let (mut tables, _) = local();
        tables.settings.redirects_locally = 0;
        tables.settings.source_ports = only_ports(61_000, 64);
        // With random ports, two of the connections would share a port in six of seven runs.
        let ports: Vec<Port> = (1..=16).map(|port| refused(&tables, port)).collect();
        let others: HashSet<u16> = ports.iter().map(|port| port.get()).collect();
        assert_eq!(others.len(), 16, "{ports:?}");

        // Now all ports are used. A port that was just closed is not reused if one of those that
        // are tried has been closed for longer.
        tables.settings.source_ports = only_ports(61_000, 8);
        let first = tables.settings.source_ports.all.first;
        let minute = (tables.settings().jiffies_per_second * 60) >> TICK_SHIFT;
        let last_used = |ports: &mut [u32; 8], port: Port| {
            let at = usize::from(port.get() - first);
            std::mem::replace(&mut ports[at], tables.now.get())
        };
        let mut used = [0; 8];
        let (mut reused_early, mut n) = (0, 0);
        for port in 100..200 {
            tables.now.set(tables.now.get() + minute / 16);
            let before = last_used(&mut used, refused(&tables, port));
            if before != 0 {
                n += 1;
                reused_early += u32::from(tables.now.get() - before < minute / 4);
            }
        }
        // With random ports, it would be a third of them.
        assert!(n > 80 && reused_early * 10 < n, "{reused_early} of {n}");
    }

    /// Makes a Pod's device the next hop of the packet.
    fn to_pods(mut packet: Bytes) -> Bytes {
        packet.pod_devices = vec![HOP.device];
        packet.bytes[22] = 64;
        packet
    }

    /// The verdict for a packet between Pods of this node.
    fn enter_locally(tables: &HostTables<Address4>, packet: &mut Bytes) -> Verdict {
        let mut parsed = parse::ipv4(packet, 14, hook::INGRESS_INSIDE).unwrap();
        ingress(packet, tables, &mut parsed, Origin::Inside)
    }

    /// A request from a Pod to a Service whose only Pod is on this node.
    fn local() -> (HostTables<Address4>, Bytes) {
        let mut tables = tables();
        tables.settings.redirects_locally = 1;
        tables.filtered = vec![end(50, 0).0];
        tables
            .frontends
            .values_mut()
            .for_each(|frontend| frontend.cluster.length = 1);
        for backend in tables.backends.values_mut() {
            backend.flags = backend_flags::LOCAL;
        }
        let request = to_pods(segment(end(50, 1000), end(1, 80), tcp_flags::SYN));
        (tables, request)
    }

    #[test]
    fn packets_between_local_pods_are_handed_over_with_a_lower_hop_limit() {
        let (tables, mut request) = local();
        assert_eq!(enter_locally(&tables, &mut request), Verdict::Redirect);
        let at = key(&request);
        assert_eq!((at.source, at.destination), (end(50, 0).0, end(11, 0).0));
        let mut reply = to_pods(segment(end(11, 8080), end(50, 1000), SYN_ACK));
        assert_eq!(enter_locally(&tables, &mut reply), Verdict::Redirect);
        let at = key(&reply);
        assert_eq!((at.source, at.source_port), (end(1, 0).0, Port::new(80)));
        for packet in [request, reply] {
            assert_eq!(packet.bytes[..12], [2; 12]);
            assert_eq!(packet.bytes[22], 63);
        }
    }

    #[test]
    fn packets_that_cannot_be_handed_over_go_through_the_stack() {
        fn route_to(route: Route, mtu: u32) -> HostRoute {
            HostRoute {
                destination: end(11, 0).0.words(),
                route,
                hop: Hop { mtu, ..HOP },
            }
        }
        type Change = fn(&mut HostTables<Address4>, &mut Bytes);
        let changes: [(&str, Change); 6] = [
            ("option off", |tables, _| tables.settings.redirects_locally = 0),
            ("not a Pod's device", |_, packet| packet.pod_devices.clear()),
            ("last hop", |_, packet| packet.bytes[22] = 1),
            ("another node's backend", |tables, _| {
                tables.backends.values_mut().for_each(|backend| backend.flags = 0);
            }),
            ("unknown neighbour", |_, packet| {
                packet.routes.push(route_to(Route::Unresolved, 0));
            }),
            ("too big", |_, packet| {
                packet.routes.push(route_to(Route::Ready, 39))
            }),
        ];
        for (what, change) in changes {
            let (mut tables, mut request) = local();
            change(&mut tables, &mut request);
            let limit = request.bytes[22];
            assert_eq!(enter_locally(&tables, &mut request), Verdict::Pass, "{what}");
            assert_eq!(key(&request).destination, end(11, 0).0, "{what}");
            assert_eq!(request.bytes[22], limit, "{what}");
        }
    }

    #[test]
    fn a_reply_that_is_not_handed_over_is_translated_where_it_leaves() {
        let (tables, mut request) = local();
        assert_eq!(enter_locally(&tables, &mut request), Verdict::Redirect);
        let reply = segment(end(11, 8080), end(50, 1000), tcp_flags::ACK);
        let mut entered = reply.clone();
        assert_eq!(enter_locally(&tables, &mut entered), Verdict::Pass);
        assert_eq!(entered, reply);
        let (source, _) = leave(&tables, end(11, 8080), end(50, 1000), SYN_ACK);
        assert_eq!(source, end(1, 80));
    }

    #[test]
    fn packets_that_are_not_replies_are_not_translated() {
        let (tables, mut request) = local();
        let mut other = to_pods(segment(end(11, 8080), end(50, 1000), tcp_flags::SYN));
        let before = other.clone();
        assert_eq!(enter_locally(&tables, &mut other), Verdict::Pass);
        assert_eq!(enter_locally(&tables, &mut request), Verdict::Redirect);
        for source in [end(11, 8081), end(12, 8080)] {
            let mut other = to_pods(segment(source, end(50, 1000), tcp_flags::ACK));
            assert_eq!(enter_locally(&tables, &mut other), Verdict::Pass);
            assert_eq!(key(&other).source, source.0);
        }
        assert_eq!(other, before);
    }

    /// The filter contains no backend any more: existing entries are not looked up.
    #[test]
    fn packets_from_addresses_outside_the_reply_filter_are_not_looked_up() {
        let (mut tables, mut request) = local();
        assert_eq!(enter_locally(&tables, &mut request), Verdict::Redirect);
        let (client, pod) = (end(50, 1000), end(11, 8080));
        let backends = core::mem::take(&mut tables.backends);
        let mut reply = to_pods(segment(pod, client, tcp_flags::ACK));
        assert_eq!(enter_locally(&tables, &mut reply), Verdict::Pass);
        assert_eq!(key(&reply).source, pod.0);
        assert_eq!(leave(&tables, pod, client, tcp_flags::ACK), (pod, client));
        tables.backends = backends;
        assert_eq!(leave(&tables, pod, client, REFUSED), (end(1, 80), client));
        // The client opens a direct connection to the Pod from the same port. The entry, which has
        // ended, must not match its replies.
        let count = tables.flow_count();
        let backends = core::mem::take(&mut tables.backends);
        tables.filtered.push(pod.0);
        enter(&tables, client, pod, tcp_flags::SYN);
        assert_eq!(tables.flow_count(), count);
        tables.backends = backends;
        enter(&tables, client, pod, tcp_flags::SYN);
        assert_eq!(tables.flow_count(), count - 1);
    }

    /// An event in a random history.
    #[derive(Clone, Debug)]
    enum Event {
        /// A client's port opens or uses its connection to a frontend, and gets an answer.
        Talk { port: u16, vip: u8 },
        /// The same, then both sides close the connection.
        Close { port: u16, vip: u8 },
        /// Time passes.
        Wait(u32),
        /// A backend row changes its state.
        State { row: u32, state: u8 },
        /// A backend row is given to another endpoint, and the slots follow.
        Replace { row: u32 },
    }

    fn event() -> impl Strategy<Value = Event> {
        let row = || (0_u32..2, 0_u32..3).prop_map(|(service, at)| 10 + service * 10 + at);
        prop_oneof![
            8 => (1_u16..4, 1_u8..3).prop_map(|(port, vip)| Event::Talk { port, vip }),
            2 => (1_u16..4, 1_u8..3).prop_map(|(port, vip)| Event::Close { port, vip }),
            1 => (1_u32..10_000).prop_map(Event::Wait),
            2 => (row(), 0_u8..3).prop_map(|(row, state)| Event::State { row, state }),
            1 => row().prop_map(|row| Event::Replace { row }),
        ]
    }

    proptest! {
        #[test]
        fn replies_come_from_the_frontend_that_received_the_request(events in prop::collection::vec(event(), 1..60)) {
            let mut tables = tables();
            for event in events {
                match event {
                    Event::Talk { port, vip } | Event::Close { port, vip } => {
                        let (client, vip) = (end(50, port), end(vip, 80));
                        let (verdict, source, pod) = enter(&tables, client, vip, tcp_flags::SYN);
                        if verdict != Verdict::Pass {
                            continue;
                        }
                        let lives = tables.backends.values().any(|backend| {
                            (backend.address, backend.port) == pod && backend.state != backend_state::GONE
                        });
                        prop_assert!(lives, "{pod:?}");
                        prop_assert_eq!(leave(&tables, pod, source, SYN_ACK), (vip, client));
                        prop_assert_eq!(enter(&tables, client, vip, tcp_flags::ACK), (Verdict::Pass, source, pod));
                        if matches!(event, Event::Close { .. }) {
                            enter(&tables, client, vip, tcp_flags::FIN | tcp_flags::ACK);
                            leave(&tables, pod, source, tcp_flags::FIN | tcp_flags::ACK);
                        }
                    }
                    Event::Wait(ticks) => tables.now.set(tables.now.get() + ticks),
                    Event::State { row, state } => {
                        tables.backends.get_mut(&row).unwrap().state = state;
                    }
                    Event::Replace { row } => {
                        let backend = tables.backends.get_mut(&row).unwrap();
                        backend.generation += 1;
                        tables.slots.get_mut(&row).unwrap().generation += 1;
                    }
                }
            }
        }
    }
}
