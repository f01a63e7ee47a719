//! The reports of the clients of `lab-tool`: one JSON object on standard output, after the line
//! `ready`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// HTTP requests, each on a separate connection.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct HttpReport {
    /// Answers by the name of the server.
    pub answers: BTreeMap<String, u64>,
    /// Failed requests by reason, as in `connect: ConnectionRefused`.
    pub errors: BTreeMap<String, u64>,
    /// The client's addresses as the servers saw them.
    pub clients: BTreeSet<IpAddr>,
    /// The time from `connect` to the end of the answer, for answered requests.
    pub latency: Latency,
    /// The server that answered each of the client's addresses and ports, if the caller chose
    /// these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<SocketAddr, String>,
}

impl HttpReport {
    /// Number of answers.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }
}

/// One page over HTTP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageReport {
    /// The status code.
    pub status: u16,
    /// The headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

/// UDP datagrams, each waiting for its answer.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct UdpReport {
    /// Answers by the name of the server.
    pub answers: BTreeMap<String, u64>,
    /// Datagrams without an answer by reason, as in `receive: TimedOut`.
    pub errors: BTreeMap<String, u64>,
    /// The client's addresses and ports as the servers saw them.
    pub clients: BTreeSet<SocketAddr>,
    /// The source addresses of the answers, as the client saw them.
    pub sources: BTreeSet<SocketAddr>,
    /// The last server that answered each of the client's addresses and ports, if the caller chose
    /// these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<SocketAddr, String>,
    /// The path MTU to the peer that the kernel knows, of a connected socket.
    pub path_mtu: Option<u32>,
}

impl UdpReport {
    /// Number of answers.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }
}

/// Bytes sent to a server and received back from it. The client compares them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamReport {
    /// Name of the server.
    pub server: String,
    /// Bytes in each direction.
    pub bytes: u64,
    /// Time from `connect` to the last byte received.
    pub microseconds: u64,
    /// The path MTU to the server that the client's kernel knows at the end.
    pub path_mtu: u32,
}

/// Echo requests, each waiting for its answer.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct PingReport {
    /// Answers by their source address.
    pub answers: BTreeMap<IpAddr, u64>,
    /// Requests that got an ICMP error, by kind and source, as in `unreachable: 10.0.0.1`.
    pub errors: BTreeMap<String, u64>,
    /// Requests without an answer.
    pub lost: u64,
}

impl PingReport {
    /// Number of answers.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }
}

/// How a UDP socket handles datagrams that exceed the path MTU. The kernel's default: datagrams
/// that fit the known path MTU are sent with DF, larger ones are fragmented before they are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Fragmentation {
    /// All datagrams may be fragmented, here and on the path.
    Allowed,
    /// No datagram may be fragmented. Sending one that exceeds the known path MTU is an error.
    Forbidden,
    /// The same, but the limit is the MTU of this machine's device.
    Probe,
}

impl fmt::Display for Fragmentation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Allowed => "allowed",
            Self::Forbidden => "forbidden",
            Self::Probe => "probe",
        })
    }
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// The percentiles of a set of measurements, in microseconds.
    pub fn of(mut measured: Vec<u64>) -> Self {
        measured.sort_unstable();
        let at = |percent: usize| {
            let index = (measured.len() * percent / 100).min(measured.len().saturating_sub(1));
            measured.get(index).copied().unwrap_or_default()
        };
        Self {
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

/// An event on a connection that a test controls.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TalkEvent {
    /// The connection is open.
    Connected {
        /// The client's own address and port.
        local: SocketAddr,
        /// The peer address that the socket reports.
        peer: SocketAddr,
    },
    /// A line from the server.
    Line(String),
    /// The server closed its side.
    End,
    /// The connection failed, as in `read: ConnectionReset`.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let latency = Latency::of((1..=200).rev().collect());
        assert_eq!((latency.p50, latency.p99, latency.max), (101, 199, 200));
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }
}
