//! Runs the decision code of the kernel programs and records the result.

use std::net::{IpAddr, SocketAddr};

use lb_common::choose::Origin;
use lb_common::decide;
use lb_common::host::Bytes;
use lb_common::layout::{FlowKey, hook};
use lb_common::net::protocol;
use lb_common::packet::{Route, Verdict};
use lb_common::reason::Reason;
use lb_common::socket::{self, Call, Peer};

use super::explanation::{Explanation, Fate, Stage};
use super::packet::{self, NETWORK};
use super::probe::{Probe, RouteLookup};
use super::question::{PacketProtocol, Question};
use super::routes::device_name;
use super::surroundings::Surroundings;
use super::tables::Recorder;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::inspect::end;
use crate::maps::MapError;

/// Runs the code of the packet programs.
pub(super) fn decide_packet<A: LiveFamily>(
    maps: &LiveMaps,
    surroundings: &Surroundings<'_>,
    question: Question,
    is_first: bool,
    explanation: &mut Explanation,
) -> Result<(), MapError> {
    let tables = Recorder::<A>::new(maps, surroundings.clock);
    let before = packet::build(&question, is_first);
    let mut probe = Probe::new(before.clone(), surroundings.routes);
    let verdict = decide::enter(&mut probe, &tables, NETWORK, explanation.from.origin());
    tables.check()?;
    let is_changed = probe.bytes.bytes != before;
    explanation.verdict = match verdict {
        Verdict::Pass if is_changed => Fate::Translated,
        Verdict::Pass => Fate::Passed,
        Verdict::Redirect => Fate::Forwarded,
        Verdict::Bounce if tables.reason().is_some() => Fate::Rejected,
        Verdict::Bounce if question.protocol == PacketProtocol::Icmp => Fate::Answered,
        Verdict::Bounce => Fate::Hairpin,
        Verdict::Drop => Fate::Dropped,
    };
    explanation.by_chance &= tables.wrote_flow();
    if explanation.verdict.is_refusal() {
        explanation.reason = tables.reason().map(Reason::name);
    }
    if is_changed && !explanation.verdict.is_refusal() && question.protocol != PacketProtocol::Icmp {
        (explanation.new_source, explanation.new_destination) = ends::<A>(&probe.bytes);
        let port = explanation.new_source.map(|source| source.port());
        explanation.source_port_by_chance = tables.wrote_flow() && port != Some(question.source.port());
    }
    note_forwarding(surroundings, probe.way(), explanation);
    if explanation.verdict == Fate::Forwarded {
        let way = probe.way().map(|(_, way)| way);
        explanation.device = way.map(|way| device_name(way.device));
        // The backend's answer arrives on this device.
        if let Some(device) = way.and_then(|way| surroundings.bare_device(way.device)) {
            explanation.set_unseen(device);
        }
    }
    Ok(())
}

/// Adds a step if there is no route to the destination, or if the node does not forward packets.
fn note_forwarding(
    surroundings: &Surroundings<'_>,
    asked: Option<(IpAddr, RouteLookup)>,
    explanation: &mut Explanation,
) {
    let no_route = explanation.reason == Some(Reason::NoRoute.name());
    let to = match explanation.new_destination {
        Some(to) if explanation.verdict == Fate::Translated => Some(to.ip()),
        _ => asked.map(|(to, _)| to).filter(|_| no_route),
    };
    let Some(to) = to else { return };
    let finding = match surroundings.routes.forwarding_disabled_by(to) {
        Some(sysctl) => format!("there is a route to {to}, but the node does not forward: {sysctl} is 0"),
        None if no_route => format!("no route to {to}"),
        None => return,
    };
    explanation.steps.push(Stage {
        step: "route",
        finding,
    });
}

/// Source and destination of a packet.
fn ends<A: LiveFamily>(bytes: &Bytes) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let parsed = A::parse(bytes, NETWORK, hook::INGRESS_INSIDE);
    let key = parsed.map(|parsed| parsed.key);
    (
        key.map(|key| end(key.source, key.source_port)),
        key.map(|key| end(key.destination, key.destination_port)),
    )
}

/// Runs the code of the packet programs for a packet that a process on the node sends to the
/// network.
pub(super) fn decide_leaving<A: LiveFamily>(
    maps: &LiveMaps,
    surroundings: &Surroundings<'_>,
    question: Question,
    explanation: &mut Explanation,
) -> Result<(), MapError> {
    if surroundings.routes.lookup(question.destination.ip()).route == Route::Local {
        return Ok(());
    }
    let tables = Recorder::<A>::new(maps, surroundings.clock);
    let mut probe = Probe::new(packet::build(&question, true), surroundings.routes);
    let verdict = decide::leave(&mut probe, &tables, NETWORK, Origin::Outside);
    tables.check()?;
    if verdict == Verdict::Drop {
        explanation.verdict = Fate::Dropped;
        explanation.reason = tables.reason().map(Reason::name);
    }
    Ok(())
}

/// Runs the code of the socket programs.
pub(super) fn decide_socket<A: LiveFamily>(
    maps: &LiveMaps,
    surroundings: &Surroundings<'_>,
    key: &FlowKey<A>,
    explanation: &mut Explanation,
) -> Result<(), MapError> {
    let tables = Recorder::<A>::new(maps, surroundings.clock);
    let call = call(maps, key);
    // An unconnected UDP socket is translated when it sends.
    let result = match key.protocol {
        protocol::UDP => socket::send(&tables, &call),
        _ => socket::connect(&tables, &call),
    };
    tables.check()?;
    match result {
        Ok(None) => explanation.verdict = Fate::Passed,
        Ok(Some(to)) => {
            explanation.verdict = Fate::Translated;
            explanation.new_destination = Some(end(to.address, to.port));
        }
        Err(reason) => {
            explanation.verdict = Fate::Rejected;
            explanation.reason = Some(reason.name());
        }
    }
    Ok(())
}

/// The `connect` call of a process on the node.
pub(super) fn call<A: LiveFamily>(maps: &LiveMaps, key: &FlowKey<A>) -> Call<A> {
    Call {
        cookie: 0,
        protocol: key.protocol,
        peer: Peer {
            address: key.destination,
            port: key.destination_port,
        },
        namespace: maps.settings().node_namespace,
        is_node_namespace: true,
        is_bound: false,
        is_connected: false,
    }
}
