//! The verdict in words.

use lb_common::reason::Reason;

use super::explanation::{Explanation, Fate};
use super::question::From;

/// What becomes of the packet, in one sentence.
pub(super) fn verdict_text(explanation: &Explanation) -> String {
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
        None => explanation.reason.map_or("", description).to_owned(),
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

/// What a reason means.
fn description(reason: &'static str) -> &'static str {
    let found = Reason::ALL.into_iter().find(|known| known.name() == reason);
    let Some(found) = found else { return reason };
    match found {
        Reason::NoEndpoint => "the Service has no usable endpoint",
        Reason::NoLocalEndpoint => "the policy is Local, and all endpoints are on other nodes",
        Reason::UnknownPort => "no Service uses this port of the address",
        Reason::BackendGone => "the connection's backend is gone",
        Reason::StaleSlots => "the backends are just being replaced; the next packet finds the new ones",
        Reason::NoSourcePort => "no source port or no node address for the rewrite",
        Reason::FlowTableFull => "the flow table took no further connection",
        Reason::RewriteFailed => "the packet could not be rewritten",
        Reason::AnswerFailed => "the answer could not be built",
        Reason::SourceRange => "the client is outside of loadBalancerSourceRanges",
        Reason::NoRoute => "no route to the backend on another node, or the node does not forward",
        Reason::TooBig => "too big for the link to the backend",
        Reason::HopLimit => "its hop limit ends here",
        Reason::UnknownFragment => "a fragment whose first one was not seen",
        Reason::ForgedSource => "it comes from outside with an address of this node or of a Pod of it",
        Reason::AnswerLimit => "its sender was answered often enough",
        Reason::UnallocatedAddress => "unallocated address of a Service CIDR",
        Reason::UnknownConnection => "the connection is not known, and its backend cannot be told",
    }
}
