//! What becomes of a packet, as it is told.

use std::net::SocketAddr;

use serde::Serialize;

use super::question::{From, PacketProtocol};
use crate::devices::Bare;
use crate::maps::BackendState;

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

impl Explanation {
    /// A device without programs keeps the packet, or the answer, from getting through.
    pub(super) fn say_unseen(&mut self, device: &Bare) {
        self.verdict = Fate::Unseen;
        self.without_programs = Some(device.name.clone());
        self.steps.push(Step {
            step: "device",
            finding: format!("{} carries no programs: {}", device.name, device.why.text()),
        });
    }
}
