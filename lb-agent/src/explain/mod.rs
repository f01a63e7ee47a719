//! `lb-agent explain`: what becomes of a packet, and why.
//!
//! The answer comes from the code that the kernel programs run ([`lb_common`]), over the pinned maps; nothing is written.
//! The steps before it are the same stages one by one, for people.

mod arguments;
mod packet;
mod probe;
mod question;
mod routes;
mod run;
mod steps;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::choose::Origin;
use lb_common::cidr;
use lb_common::decide;
use lb_common::host::Bytes;
use lb_common::layout::{Address4, Address6, FlowKey, Port, hook, protocol};
use lb_common::packet::{Route, Verdict};
use lb_common::reason::Reason;
use lb_common::socket::{self, Call, Peer};
use lb_common::tables::Tables as _;
use serde::Serialize;

pub use self::arguments::ExplainArguments;
use self::packet::NETWORK;
use self::probe::Probe;
pub use self::probe::{Routes, Way};
pub use self::question::{Endpoint, From, PacketProtocol, Question};
pub use self::routes::KernelRoutes;
pub use self::run::run;
use self::steps::{Steps, says};
use self::tables::Recorder;
use crate::datapath::clock::Clock;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::devices::Bare;
use crate::inspect::{ServicePorts, end};
use crate::maps::{BackendState, MapError};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It reaches a backend through the node's stack.
    Translated,
    /// The sender is the backend: it goes back to where it came from, with the node's address.
    Hairpin,
    /// It is sent on to a backend on another node, with this node's address.
    Forwarded,
    /// The VIP answers it.
    Answered,
    /// It is not for a Service: it goes on untouched.
    Passed,
    /// It ends here, and the sender is told.
    Rejected,
    /// It ends here.
    Dropped,
    /// It is for a Service, and it or the answer passes a device without programs.
    Unseen,
}

impl Fate {
    /// Whether the packet does not get through.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Rejected | Self::Dropped | Self::Unseen)
    }
}

/// A stage of the decision and what it found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    /// The stage.
    pub step: &'static str,
    /// What it found.
    pub finding: String,
}

/// A backend that the packet may go to.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Candidate {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its state.
    pub state: BackendState,
    /// Whether it is on this node.
    pub local: bool,
    /// The part of the slots that name it, from 0 to 1.
    pub share: f64,
}

/// What becomes of a packet, and why.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What the packet carries.
    pub protocol: PacketProtocol,
    /// Who sends it.
    pub source: SocketAddr,
    /// Whom to.
    pub destination: SocketAddr,
    /// Where the sender is.
    pub from: From,
    /// What becomes of it.
    pub verdict: Fate,
    /// Why it ends here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The Service's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The source after the rewrite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_source: Option<SocketAddr>,
    /// The destination after the rewrite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_destination: Option<SocketAddr>,
    /// Whether chance chooses among the backends: `new_destination` is then one of them.
    pub by_chance: bool,
    /// Whether chance chooses the source's port: that of `new_source` is then one of many.
    pub source_port_by_chance: bool,
    /// The Service CIDR of the destination, if no Service has that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<String>,
    /// The device that the packet leaves by, if it is sent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The device without programs that it passes, if that keeps it from getting through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_programs: Option<String>,
    /// The stages.
    pub steps: Vec<Step>,
    /// The backends that a new connection may go to.
    pub backends: Vec<Candidate>,
}

/// What the answer depends on beside the maps.
pub struct Surroundings<'a> {
    /// The time.
    pub clock: Clock,
    /// The node's routing tables.
    pub routes: &'a dyn Routes,
    /// Index of the device that the packet comes in by; 0 if that is not known.
    pub ingress: u32,
    /// The devices that carry no programs.
    pub bare: &'a BTreeSet<Bare>,
    /// Whether programs are attached to sockets.
    pub has_socket_programs: bool,
}

/// Says what becomes of a packet.
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
    let mut steps = Steps {
        tables: &tables,
        ports,
        key,
        from,
        explanation: &mut explanation,
    };
    if from == From::Node {
        let attached = surroundings.has_socket_programs;
        if steps.of_socket(question.protocol, attached)? {
            ask_socket::<A>(maps, surroundings, &key, &mut explanation)?;
        }
        if explanation.verdict == Fate::Passed {
            ask_leaving::<A>(maps, surroundings, question, &mut explanation)?;
        }
    } else {
        if from == From::Pod && surroundings.has_socket_programs {
            steps.note_sockets();
        }
        let is_first = steps.of_packet(question.protocol)?;
        ask_packet::<A>(maps, surroundings, question, is_first, &mut explanation)?;
        note_bare_device(surroundings, &mut explanation);
    }
    tables.check()?;
    if explanation.reason == Some(Reason::UnallocatedAddress.name()) {
        let cidr = A::rows(maps).range_of(cidr::SET, key.destination)?;
        explanation.service_cidr = cidr.map(|cidr| cidr.to_string());
    }
    let finding = verdict_text(&explanation);
    explanation.steps.push(Step {
        step: "verdict",
        finding,
    });
    Ok(explanation)
}

/// A source port without a connection to the destination, as a new client would have.
fn free_port<A: LiveFamily>(tables: &Recorder<'_, A>, question: Question, from: From) -> u16 {
    // The range that the Internet leaves to clients (RFC 6335 section 6).
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

/// Lets the code of the packet programs decide.
fn ask_packet<A: LiveFamily>(
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
    explanation.by_chance &= tables.has_opened();
    if explanation.verdict.is_refusal() {
        explanation.reason = tables.reason().map(Reason::name);
    }
    if is_changed && !explanation.verdict.is_refusal() && question.protocol != PacketProtocol::Icmp {
        (explanation.new_source, explanation.new_destination) = ends::<A>(&probe.bytes);
        let port = explanation.new_source.map(|source| source.port());
        explanation.source_port_by_chance = tables.has_opened() && port != Some(question.source.port());
    }
    note_forwarding(surroundings, probe.way(), explanation);
    if explanation.verdict == Fate::Forwarded {
        let way = probe.way().map(|(_, way)| way);
        explanation.device = way.map(|way| device_name(way.device));
        // The answer comes in by it.
        if let Some(device) = way.and_then(|way| surroundings.bare_device(way.device)) {
            explanation.say_unseen(device);
        }
    }
    Ok(())
}

/// Says why a packet is not sent on, or what becomes of it in the stack of a node that does not forward.
fn note_forwarding(
    surroundings: &Surroundings<'_>,
    asked: Option<(IpAddr, Way)>,
    explanation: &mut Explanation,
) {
    let no_route = explanation.reason == Some(Reason::NoRoute.name());
    let to = match explanation.new_destination {
        Some(to) if explanation.verdict == Fate::Translated => Some(to.ip()),
        _ => asked.map(|(to, _)| to).filter(|_| no_route),
    };
    let Some(to) = to else { return };
    let finding = match surroundings.routes.not_forwarding(to) {
        Some(sysctl) => format!("there is one to {to}, but the node does not forward: {sysctl} is 0"),
        None if no_route => format!("there is none to {to}"),
        None => return,
    };
    explanation.steps.push(Step {
        step: "route",
        finding,
    });
}

/// Says that what the programs would do with a packet is not done, as none is where it comes in.
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
    explanation.say_unseen(device);
}

impl Surroundings<'_> {
    fn bare_device(&self, index: u32) -> Option<&Bare> {
        self.bare.iter().find(|device| device.index == index)
    }
}

impl Explanation {
    fn say_unseen(&mut self, device: &Bare) {
        self.verdict = Fate::Unseen;
        self.without_programs = Some(device.name.clone());
        self.steps.push(Step {
            step: "device",
            finding: format!("{} carries no programs: {}", device.name, device.why.text()),
        });
    }
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

fn device_name(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok();
    let name = name.and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("index {index}"))
}

/// Lets the code of the packet programs decide about what a process of the node sends to the network.
fn ask_leaving<A: LiveFamily>(
    maps: &LiveMaps,
    surroundings: &Surroundings<'_>,
    question: Question,
    explanation: &mut Explanation,
) -> Result<(), MapError> {
    if surroundings.routes.to(question.destination.ip()).route == Route::Local {
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

/// Lets the code of the socket programs decide.
fn ask_socket<A: LiveFamily>(
    maps: &LiveMaps,
    surroundings: &Surroundings<'_>,
    key: &FlowKey<A>,
    explanation: &mut Explanation,
) -> Result<(), MapError> {
    let tables = Recorder::<A>::new(maps, surroundings.clock);
    let call = call(maps, key);
    // A UDP socket is told when it sends.
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

/// A process of the node calls `connect`.
fn call<A: LiveFamily>(maps: &LiveMaps, key: &FlowKey<A>) -> Call<A> {
    Call {
        cookie: 0,
        protocol: key.protocol,
        peer: Peer {
            address: key.destination,
            port: key.destination_port,
        },
        namespace: lb_common::layout::cookie(maps.settings().node_namespace),
        is_node: true,
        is_bound: false,
        is_connected: false,
    }
}

fn verdict_text(explanation: &Explanation) -> String {
    let to = match explanation.new_destination {
        Some(to) if explanation.by_chance => format!("one of the backends by chance, say {to}"),
        Some(to) => to.to_string(),
        None => String::new(),
    };
    let source = match explanation.new_source {
        Some(source) if source == explanation.source => ", the source stays".to_owned(),
        Some(source) if explanation.source_port_by_chance => {
            format!(", the source becomes {} with a port by chance", source.ip())
        }
        Some(source) => format!(", the source becomes {source}"),
        None => String::new(),
    };
    let reason = match &explanation.service_cidr {
        Some(cidr) => format!("unallocated address of the Service CIDR {cidr}"),
        None => explanation.reason.map_or("", says).to_owned(),
    };
    match explanation.verdict {
        Fate::Translated if explanation.from == From::Node => {
            format!("translated: the socket connects to {to}")
        }
        Fate::Translated => format!("translated: to {to}{source}; it goes on through the node's stack"),
        Fate::Hairpin => format!("hairpin: back to {to}, which sent it{source}"),
        Fate::Forwarded => {
            let device = explanation.device.as_deref().unwrap_or("a device");
            format!("forwarded: to {to}{source}; it leaves by {device}")
        }
        Fate::Answered => "answered: the VIP answers the ping".to_owned(),
        Fate::Passed => "passed: it goes on untouched".to_owned(),
        Fate::Rejected if explanation.from == From::Node => format!("rejected: the call fails: {reason}"),
        Fate::Rejected => format!("rejected: {reason}; the sender is told"),
        Fate::Dropped => format!("dropped: {reason}"),
        Fate::Unseen => unseen_text(explanation, &to, &source),
    }
}

fn unseen_text(explanation: &Explanation, to: &str, source: &str) -> String {
    let device = explanation.without_programs.as_deref().unwrap_or("a device");
    if explanation.device.is_none() {
        return format!("unseen: it comes in by {device}, which carries no programs, and goes on untouched");
    }
    format!(
        "unseen: forwarded to {to}{source}; it leaves by {device}, which carries no programs, so the answer stays as it is"
    )
}

/// Number of slots by backend.
type Counts = BTreeMap<u32, u32>;
