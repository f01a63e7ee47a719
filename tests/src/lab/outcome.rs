//! The outcome of requests to a Service.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::machine::Machine;

/// Enough requests to find two Pods: they miss one of them once in two billion runs.
const REQUESTS: u32 = 32;
/// The number of requests that should fail.
const FAILURES: u32 = 2;
/// The timeout of requests that should get no answer.
const TIMEOUT: Duration = Duration::from_millis(150);

/// The outcome of requests to a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// These Pods answer, and no others.
    Pods(BTreeSet<String>),
    /// The client immediately gets RST or ICMP port unreachable.
    Refused,
    /// The socket immediately gets EHOSTUNREACH.
    HostUnreachable,
    /// There is no answer.
    Lost,
}

impl Outcome {
    /// Pods of these names answer.
    pub fn pods<Name: Into<String>>(names: impl IntoIterator<Item = Name>) -> Self {
        Self::Pods(names.into_iter().map(Into::into).collect())
    }

    /// The error of the socket, without the name of the failed call.
    fn error(&self) -> Option<&'static str> {
        match self {
            Self::Pods(_) => None,
            Self::Refused => Some("ConnectionRefused"),
            Self::HostUnreachable => Some("HostUnreachable"),
            Self::Lost => Some("TimedOut"),
        }
    }
}

impl Machine {
    /// Sends HTTP requests, each on a separate connection.
    ///
    /// # Errors
    ///
    /// If they have another outcome.
    pub fn expect_tcp(&self, to: SocketAddr, expected: &Outcome) -> Result<()> {
        let client = self.http(to.ip(), to.port());
        let client = match expected {
            Outcome::Pods(_) => client.count(REQUESTS).concurrency(2),
            Outcome::Lost => client.timeout(TIMEOUT),
            Outcome::Refused | Outcome::HostUnreachable => client.count(FAILURES),
        };
        let report = client.run()?;
        let errors: Vec<&str> = report.errors.keys().map(String::as_str).collect();
        let is_expected = match expected {
            Outcome::Pods(pods) => errors.is_empty() && report.answers.keys().eq(pods),
            Outcome::Lost => errors == ["timeout"],
            other => errors == [format!("connect: {}", other.error().unwrap_or_default())],
        };
        let from = self.name();
        ensure!(
            is_expected,
            "TCP from {from} to {to} not {expected:?}: {report:?}"
        );
        Ok(())
    }

    /// Sends datagrams from connected sockets.
    ///
    /// # Errors
    ///
    /// If they have another outcome.
    pub fn expect_udp(&self, to: SocketAddr, expected: &Outcome) -> Result<()> {
        let client = self.udp(to.ip(), to.port()).connected();
        let client = match expected {
            Outcome::Pods(_) => client.sockets(REQUESTS),
            Outcome::Lost => client.timeout(TIMEOUT),
            Outcome::Refused | Outcome::HostUnreachable => client.sockets(FAILURES),
        };
        let report = client.run()?;
        let errors: BTreeSet<&str> = report.errors.keys().map(|error| reason(error)).collect();
        let is_expected = match expected {
            Outcome::Pods(pods) => {
                errors.is_empty() && report.answers.keys().eq(pods) && report.sources == [to].into()
            }
            other => report.answers.is_empty() && errors.into_iter().eq(other.error()),
        };
        let from = self.name();
        ensure!(
            is_expected,
            "UDP from {from} to {to} not {expected:?}: {report:?}"
        );
        Ok(())
    }
}

/// Returns `ConnectionRefused` of `receive: ConnectionRefused`. The call differs: for a translated
/// socket it is `connect`.
fn reason(error: &str) -> &str {
    error.split_once(": ").map_or(error, |(_, reason)| reason)
}
