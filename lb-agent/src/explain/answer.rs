//! Answers a question: lists the stages, then runs the decision code of the kernel programs.

use std::net::SocketAddr;

use lb_common::cidr;
use lb_common::layout::FlowKey;
use lb_common::net::{Address4, Address6, Port};
use lb_common::reason::Reason;
use lb_common::tables::Tables as _;

use super::explanation::{Explanation, Fate, Stage};
use super::packet;
use super::programs::{decide_leaving, decide_packet, decide_socket};
use super::question::{From, PacketProtocol, Question};
use super::steps::Stages;
use super::surroundings::Surroundings;
use super::tables::Recorder;
use super::verdict::verdict_text;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::inspect::ServicePorts;
use crate::maps::MapError;

/// Determines what happens to a packet, and why.
///
/// # Errors
/// If a map cannot be read.
pub fn explain(
    maps: &LiveMaps,
    surroundings: &Surroundings<'_>,
    question: Question,
    from: From,
) -> Result<Explanation, MapError> {
    let ports = ServicePorts::read(maps)?;
    if question.destination.is_ipv4() {
        explain_family::<Address4>(maps, surroundings, question, from, &ports)
    } else {
        explain_family::<Address6>(maps, surroundings, question, from, &ports)
    }
}

fn explain_family<A: LiveFamily>(
    maps: &LiveMaps,
    surroundings: &Surroundings<'_>,
    mut question: Question,
    from: From,
    ports: &ServicePorts,
) -> Result<Explanation, MapError> {
    let tables = Recorder::<A>::new(maps, surroundings.clock);
    if question.source.port() == 0 && question.protocol != PacketProtocol::Icmp {
        question.source.set_port(free_port(&tables, question, from));
    }
    let mut explanation = Explanation {
        protocol: question.protocol,
        source: question.source,
        destination: question.destination,
        from,
        verdict: Fate::Passed,
        reason: None,
        service: None,
        new_source: None,
        new_destination: None,
        by_chance: false,
        source_port_by_chance: false,
        service_cidr: None,
        device: None,
        without_programs: None,
        steps: Vec::new(),
        backends: Vec::new(),
    };
    let key = key_of::<A>(question, from);
    let mut steps = Stages {
        tables: &tables,
        ports,
        key,
        from,
        explanation: &mut explanation,
    };
    if from == From::Node {
        let attached = surroundings.has_socket_programs;
        if steps.socket_stages(question.protocol, attached)? {
            decide_socket::<A>(maps, surroundings, &key, &mut explanation)?;
        }
        if explanation.verdict == Fate::Passed {
            decide_leaving::<A>(maps, surroundings, question, &mut explanation)?;
        }
    } else {
        if from == From::Pod && surroundings.has_socket_programs {
            steps.note_sockets();
        }
        let is_first = steps.packet_stages(question.protocol)?;
        decide_packet::<A>(maps, surroundings, question, is_first, &mut explanation)?;
        note_bare_device(surroundings, &mut explanation);
    }
    tables.check()?;
    if explanation.reason == Some(Reason::UnallocatedAddress.name()) {
        let cidr = A::rows(maps).range_of(cidr::SET, key.destination)?;
        explanation.service_cidr = cidr.map(|cidr| cidr.to_string());
    }
    let finding = verdict_text(&explanation);
    explanation.steps.push(Stage {
        step: "verdict",
        finding,
    });
    Ok(explanation)
}

/// A source port that has no connection to the destination yet, as a new client would use.
fn free_port<A: LiveFamily>(tables: &Recorder<'_, A>, question: Question, from: From) -> u16 {
    // The dynamic port range (RFC 6335 section 6).
    const PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
    let is_free = |port: &u16| {
        let source = SocketAddr::new(question.source.ip(), *port);
        tables
            .flow(&key_of(Question { source, ..question }, from))
            .is_none()
    };
    PORTS.into_iter().find(is_free).unwrap_or(*PORTS.start())
}

fn key_of<A: LiveFamily>(question: Question, from: From) -> FlowKey<A> {
    FlowKey {
        source: A::of(question.source.ip()).unwrap_or_default(),
        destination: A::of(question.destination.ip()).unwrap_or_default(),
        source_port: Port::new(question.source.port()),
        destination_port: Port::new(question.destination.port()),
        protocol: packet::number(&question),
        hook: from.origin().hook(),
        pad: 0,
    }
}

/// Replaces the verdict if the packet arrives on a device without programs.
fn note_bare_device(surroundings: &Surroundings<'_>, explanation: &mut Explanation) {
    let Some(device) = surroundings.bare_device(surroundings.ingress) else {
        return;
    };
    if explanation.verdict == Fate::Passed {
        return;
    }
    explanation.reason = None;
    explanation.new_source = None;
    explanation.new_destination = None;
    explanation.device = None;
    explanation.set_unseen(device);
}
