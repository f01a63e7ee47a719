//! The result of `explain`, as it is printed.

use std::net::SocketAddr;

use serde::Serialize;

use super::question::{From, PacketProtocol};
use crate::devices::Bare;
use crate::maps::BackendState;

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It reaches a backend through the node's network stack.
    Translated,
    /// The sender is the chosen backend: the packet goes back to it with the node's address as
    /// source.
    Hairpin,
    /// It is forwarded to a backend on another node, with this node's address as source.
    Forwarded,
    /// The VIP answers it.
    Answered,
    /// It is not for a Service: it continues unchanged.
    Passed,
    /// It is discarded, and the sender is notified.
    Rejected,
    /// It is discarded silently.
    Dropped,
    /// It is for a Service, but the packet or its answer passes a device without programs.
    Unseen,
}

impl Fate {
    /// Returns true if the packet does not reach its destination or is not translated.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Rejected | Self::Dropped | Self::Unseen)
    }
}

/// A stage of the decision and its result.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stage {
    /// The stage.
    pub step: &'static str,
    /// Its result.
    pub finding: String,
}

/// A backend that the packet may be sent to.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Candidate {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its state.
    pub state: BackendState,
    /// Whether it is on this node.
    pub local: bool,
    /// Fraction of the slots that name it, from 0 to 1.
    pub share: f64,
}

/// What happens to a packet, and why.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Protocol of the packet.
    pub protocol: PacketProtocol,
    /// Source of the packet.
    pub source: SocketAddr,
    /// Destination of the packet.
    pub destination: SocketAddr,
    /// Location of the sender.
    pub from: From,
    /// What happens to it.
    pub verdict: Fate,
    /// Why it is rejected or dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The Service port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The source after the rewrite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_source: Option<SocketAddr>,
    /// The destination after the rewrite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_destination: Option<SocketAddr>,
    /// Whether the backend is chosen at random: `new_destination` is then one possible choice.
    pub by_chance: bool,
    /// Whether the source port is chosen at random: the port of `new_source` is then one possible
    /// choice.
    pub source_port_by_chance: bool,
    /// The Service CIDR of the destination, if no Service has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<String>,
    /// The device through which the packet leaves, if it is forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The device without programs that the packet or its answer passes, if the verdict is
    /// [`Fate::Unseen`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_programs: Option<String>,
    /// The stages.
    pub steps: Vec<Stage>,
    /// The backends that a new connection may be sent to.
    pub backends: Vec<Candidate>,
}

impl Explanation {
    /// Sets the verdict [`Fate::Unseen`]: the packet or its answer passes a device without
    /// programs.
    pub(super) fn set_unseen(&mut self, device: &Bare) {
        self.verdict = Fate::Unseen;
        self.without_programs = Some(device.name.clone());
        self.steps.push(Stage {
            step: "device",
            finding: format!("{} carries no programs: {}", device.name, device.why.text()),
        });
    }
}
