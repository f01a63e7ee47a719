//! The contenders: methods to translate connections to a Service.

use serde::{Serialize, Serializer};

use crate::bench::filter::Filter;
use crate::lab::{SocketLb, Xdp};

/// A method of translation. Each has separate namespaces for each number of Services.
#[derive(PartialEq, Eq, Debug)]
pub struct Contender {
    /// Its name.
    pub name: &'static str,
    /// The means of translation.
    pub(super) means: Means,
    /// The places of the clients.
    pub(super) views: &'static [ClientLocation],
    /// Limit of the time to open a connection from a Pod, in percent of that to the bare Pod.
    pub(super) connect_limit: Option<u32>,
}

/// The means of translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Means {
    /// Rules as kube-proxy writes them.
    Rules(Filter),
    /// The agent.
    Agent {
        socket_lb: SocketLb,
        xdp: Xdp,
        arguments: &'static [&'static str],
    },
}

/// The place of the client and of the Pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientLocation {
    /// The client is a Pod of the same node as the Pods.
    Pod,
    /// The client is outside; the Pods are on the node that receives its packets.
    Outside,
    /// The client is outside; the Pods are on another node.
    Forwarded,
}

/// All contenders. A new contender, or another option of the agent, is another line.
pub(super) const CONTENDERS: &[Contender] = &[
    rules("nftables", Filter::Nftables),
    rules("iptables", Filter::Iptables),
    agent(
        "sockets",
        SocketLb::All,
        Xdp::Off,
        &[],
        &[ClientLocation::Pod],
        Some(103),
    ),
    agent(
        "TC",
        SocketLb::Off,
        Xdp::Off,
        &[],
        &ClientLocation::ALL,
        Some(110),
    ),
    agent(
        "TC, local redirect",
        SocketLb::Off,
        Xdp::Off,
        &["--local-redirect"],
        &[ClientLocation::Pod],
        Some(95),
    ),
    agent(
        "XDP",
        SocketLb::Off,
        Xdp::Native,
        &[],
        ClientLocation::FROM_OUTSIDE,
        None,
    ),
];

const fn rules(name: &'static str, filter: Filter) -> Contender {
    Contender {
        name,
        means: Means::Rules(filter),
        views: &[ClientLocation::Pod],
        connect_limit: None,
    }
}

const fn agent(
    name: &'static str,
    socket_lb: SocketLb,
    xdp: Xdp,
    arguments: &'static [&'static str],
    views: &'static [ClientLocation],
    connect_limit: Option<u32>,
) -> Contender {
    Contender {
        name,
        means: Means::Agent {
            socket_lb,
            xdp,
            arguments,
        },
        views,
        connect_limit,
    }
}

impl Contender {
    /// Whether it is the agent.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.means, Means::Agent { .. })
    }
}

impl Serialize for Contender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl ClientLocation {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Pod, Self::Outside, Self::Forwarded];

    /// The views of clients outside.
    const FROM_OUTSIDE: &[Self] = &[Self::Outside, Self::Forwarded];

    /// The text after the contender's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Pod => "",
            Self::Outside => " from outside",
            Self::Forwarded => " from outside, to another node",
        }
    }
}

/// A contender, the place of its clients, and its number of Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Subject {
    /// The contender.
    pub way: &'static Contender,
    /// The place of the client.
    pub view: ClientLocation,
    /// The number of Services.
    pub services: u32,
}

impl std::fmt::Display for Subject {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}{}", self.way.name, self.view.suffix())
    }
}
