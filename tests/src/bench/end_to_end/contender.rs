//! The ways in which connections to a Service can be translated.

use serde::{Serialize, Serializer};

use crate::bench::filter::Filter;
use crate::lab::{SocketLb, Xdp};

/// A way. Each has namespaces of its own for each number of Services.
#[derive(PartialEq, Eq, Debug)]
pub struct Contender {
    /// What it is called.
    pub name: &'static str,
    /// What translates.
    pub(super) means: Means,
    /// Who asks.
    pub(super) views: &'static [View],
    /// How much longer opening a connection from a Pod may take than to the bare Pod, in
    /// hundredths.
    pub(super) connect_limit: Option<u32>,
}

/// What translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Means {
    /// Rules as kube-proxy writes them.
    Rules(Filter),
    /// Our agent.
    Agent {
        socket_lb: SocketLb,
        xdp: Xdp,
        arguments: &'static [&'static str],
    },
}

/// Who asks, and where the Pods are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// A Pod of the same node.
    Pod,
    /// A client outside; the Pods are on the node that it is sent to.
    Outside,
    /// A client outside; the Pods are on another node.
    Forwarded,
}

/// All ways. Another one is another line, as is another option of the agent.
pub(super) const CONTENDERS: &[Contender] = &[
    rules("nftables", Filter::Nftables),
    rules("iptables", Filter::Iptables),
    agent("sockets", SocketLb::All, Xdp::Off, &[], &[View::Pod], Some(103)),
    agent("TC", SocketLb::Off, Xdp::Off, &[], &View::ALL, Some(110)),
    agent(
        "TC, local redirect",
        SocketLb::Off,
        Xdp::Off,
        &["--local-redirect"],
        &[View::Pod],
        Some(95),
    ),
    agent("XDP", SocketLb::Off, Xdp::Native, &[], View::FROM_OUTSIDE, None),
];

const fn rules(name: &'static str, filter: Filter) -> Contender {
    Contender {
        name,
        means: Means::Rules(filter),
        views: &[View::Pod],
        connect_limit: None,
    }
}

const fn agent(
    name: &'static str,
    socket_lb: SocketLb,
    xdp: Xdp,
    arguments: &'static [&'static str],
    views: &'static [View],
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
    /// Whether it is one of ours.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.means, Means::Agent { .. })
    }
}

impl Serialize for Contender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl View {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Pod, Self::Outside, Self::Forwarded];

    /// Those of clients outside.
    const FROM_OUTSIDE: &[Self] = &[Self::Outside, Self::Forwarded];

    /// What is said of it after a way's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Pod => "",
            Self::Outside => " from outside",
            Self::Forwarded => " from outside, to another node",
        }
    }
}

/// Services that are translated in some way and asked by somebody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Subject {
    /// The way.
    pub way: &'static Contender,
    /// Who asks.
    pub view: View,
    /// How many Services there are.
    pub services: u32,
}

impl std::fmt::Display for Subject {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}{}", self.way.name, self.view.suffix())
    }
}
