//! The verdict as text for users.

use lb_common::reason::Reason;

use super::explanation::{Explanation, Fate};
use super::question::From;

/// Describes what happens to the packet in one sentence.
pub(super) fn verdict_text(explanation: &Explanation) -> String {
    let to = match explanation.new_destination {
        Some(to) if explanation.by_chance => format!("a randomly chosen backend, for example {to}"),
        Some(to) => to.to_string(),
        None => String::new(),
    };
    let source = match explanation.new_source {
        Some(source) if source == explanation.source => ", the source is unchanged".to_owned(),
        Some(source) if explanation.source_port_by_chance => {
            format!(", the source becomes {} with a random port", source.ip())
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
        Fate::Translated => format!("translated: to {to}{source}; it continues through the node's stack"),
        Fate::Hairpin => format!("hairpin: back to {to}, which sent it{source}"),
        Fate::Forwarded => {
            let device = explanation.device.as_deref().unwrap_or("a device");
            format!("forwarded: to {to}{source}; it leaves through {device}")
        }
        Fate::Answered => "answered: the VIP answers the ping".to_owned(),
        Fate::Passed => "passed: it continues unchanged".to_owned(),
        Fate::Rejected if explanation.from == From::Node => format!("rejected: the call fails: {reason}"),
        Fate::Rejected => format!("rejected: {reason}; the sender is notified"),
        Fate::Dropped => format!("dropped: {reason}"),
        Fate::Unseen => unseen_text(explanation, &to, &source),
    }
}

fn unseen_text(explanation: &Explanation, to: &str, source: &str) -> String {
    let device = explanation.without_programs.as_deref().unwrap_or("a device");
    if explanation.device.is_none() {
        return format!("unseen: it arrives on {device}, which carries no programs, and continues unchanged");
    }
    format!(
        "unseen: forwarded to {to}{source}; it leaves through {device}, which carries no programs, so the answer is not translated back"
    )
}

/// Describes a reason.
fn description(reason: &'static str) -> &'static str {
    let found = Reason::ALL.into_iter().find(|known| known.name() == reason);
    let Some(found) = found else { return reason };
    match found {
        Reason::NoEndpoint => "the Service has no usable endpoint",
        Reason::NoLocalEndpoint => "the policy is Local, and all endpoints are on other nodes",
        Reason::UnknownPort => "no Service uses this port of the address",
        Reason::BackendGone => "the connection's backend is gone",
        Reason::StaleSlots => "the backends were just replaced; a retransmission finds the new ones",
        Reason::NoSourcePort => "no free source port or no node address for the rewrite",
        Reason::FlowTableFull => "the flow table did not accept the connection",
        Reason::RewriteFailed => "the packet could not be rewritten",
        Reason::AnswerFailed => "the answer could not be built",
        Reason::SourceRange => "the client is not in loadBalancerSourceRanges",
        Reason::NoRoute => "no route to the backend or back to the client, or the node does not forward",
        Reason::TooBig => "the packet exceeds the MTU of the link to the backend",
        Reason::HopLimit => "the packet's hop limit is exceeded at this node",
        Reason::UnknownFragment => "a fragment whose first fragment was not seen",
        Reason::ForgedSource => "from outside with a source address of this node or of one of its Pods",
        Reason::AnswerLimit => "the rate limit of answers to the sender's prefix is exceeded",
        Reason::UnallocatedAddress => "unallocated address of a Service CIDR",
        Reason::UnknownConnection => "the connection is unknown, and its backend cannot be determined",
    }
}
