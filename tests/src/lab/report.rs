//! What the clients of `lab-tool` report: one JSON object on standard output, after the line `ready`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// HTTP requests, each on a connection of its own.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct HttpReport {
    /// Answers by the name of the server.
    pub answers: BTreeMap<String, u64>,
    /// Failed requests by reason, as in `connect: ConnectionRefused`.
    pub errors: BTreeMap<String, u64>,
    /// The client's addresses as the servers saw them.
    pub clients: BTreeSet<IpAddr>,
    /// From `connect` to the end of the answer, of requests that were answered.
    pub latency: Latency,
}

impl HttpReport {
    /// Number of answers.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }
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
    /// Where the answers came from, as the client saw it.
    pub sources: BTreeSet<SocketAddr>,
}

impl UdpReport {
    /// Number of answers.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }
}

/// Bytes sent to a server and as many received from it, all of them compared with what was sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamReport {
    /// Name of the server.
    pub server: String,
    /// Bytes in each direction.
    pub bytes: u64,
    /// Time from `connect` to the last byte received.
    pub microseconds: u64,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 99 of 100 are not slower.
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

/// What happens on a connection that a test controls.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TalkEvent {
    /// The connection is there.
    Connected {
        /// The client's own address and port.
        local: SocketAddr,
        /// Where it believes to be connected to.
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
