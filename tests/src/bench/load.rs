//! What the load generator (`lab-tool load`) is told and what it tells: a line of JSON each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::lab::{Machine, Process};

/// What is done again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A TCP connection is opened, which the server closes; only the opening counts as latency.
    Connect,
    /// A request on a lasting TCP connection, and the answer.
    Request,
    /// A UDP datagram and its echo, all of one flow, with many under way.
    Datagram,
    /// A UDP datagram and its echo, each of a flow of its own.
    NewFlow,
    /// [`CHUNK`] bytes of a TCP stream.
    Stream,
}

/// Bytes of a stream that count as one operation.
pub const CHUNK: usize = 64 << 10;

impl Mode {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Connect,
        Self::Request,
        Self::Datagram,
        Self::NewFlow,
        Self::Stream,
    ];

    /// What the server has to do.
    pub fn role(self) -> Role {
        match self {
            Self::Connect => Role::Close,
            Self::Request => Role::Echo,
            Self::Datagram | Self::NewFlow => Role::Datagram,
            Self::Stream => Role::Sink,
        }
    }
}

/// What a server does at one of its ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Closes TCP connections.
    Close,
    /// Sends back what comes on TCP connections.
    Echo,
    /// Reads TCP connections to their end.
    Sink,
    /// Sends UDP datagrams back.
    Datagram,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Close, Self::Echo, Self::Sink, Self::Datagram];

    /// Where it comes in a row of all, from 0.
    pub(super) fn index(self) -> u8 {
        match self {
            Self::Close => 0,
            Self::Echo => 1,
            Self::Sink => 2,
            Self::Datagram => 3,
        }
    }

    /// `TCP` or `UDP`
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::Datagram => "UDP",
            _ => "TCP",
        }
    }

    /// The port at which the server expects connections that were made to a Service.
    pub fn target_port(self) -> u16 {
        8080 + u16::from(self.index())
    }

    /// The port at which it expects those that were made to the Pod. It is another one: the server
    /// remembers closed connections for a minute, and one with the same ports but another clock of
    /// the client's (which the kernel starts for each address that it connects to) would be
    /// refused.
    pub fn bare_port(self) -> u16 {
        9080 + u16::from(self.index())
    }
}

/// What the load generator is to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The operation.
    pub mode: Mode,
    /// Whom to; in turn if there are several.
    pub to: Vec<SocketAddr>,
    /// How many threads do it at the same time.
    pub threads: u32,
    /// For how long.
    pub milliseconds: u32,
    /// The control groups whose CPU time counts.
    pub cgroups: Vec<PathBuf>,
}

/// What it did.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Operations that succeeded.
    pub operations: u64,
    /// Those that did not.
    pub failures: u64,
    /// The first of these.
    pub failure: Option<String>,
    /// How long all took together, in nanoseconds.
    pub elapsed: u64,
    /// Median latency in nanoseconds.
    pub p50: u64,
    /// Latency that 99 of 100 do not exceed, in nanoseconds.
    pub p99: u64,
    /// CPU time of the client, in nanoseconds: what the kernel did in its name included
    /// (getrusage(2)).
    pub client_cpu: u64,
    /// CPU time of all processes of the control groups and of the kernel's threads for deferred
    /// packets, in nanoseconds.
    pub lab_cpu: u64,
    /// CPU time of the whole machine, in nanoseconds, to a hundredth of a second.
    pub machine_cpu: u64,
}

/// Starts the server for all [`Role`]s, and waits until it listens.
///
/// # Errors
///
/// If it cannot listen.
pub fn serve(machine: &Machine) -> Result<Process> {
    let mut process = machine.load("serve")?;
    process.wait_until_ready()?;
    Ok(process)
}

/// A load generator at work in some place.
#[derive(Debug)]
pub struct LoadGenerator {
    process: Process,
    done: usize,
}

impl LoadGenerator {
    /// Starts one, which waits for orders.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(machine: &Machine) -> Result<Self> {
        Ok(Self {
            process: machine.load("ask")?,
            done: 0,
        })
    }

    /// Does it and waits for the result.
    ///
    /// # Errors
    ///
    /// If nothing succeeds, or the load generator fails.
    pub fn measure(&mut self, order: &Order) -> Result<Sample> {
        self.process.write_line(&serde_json::to_string(order)?)?;
        // Looking for the result all the time would take part of the CPU time.
        std::thread::sleep(Duration::from_millis(order.milliseconds.into()));
        let done = self.done;
        let line = self.process.wait_until("its result", |process| {
            let output = process.output_so_far();
            let complete = output.rfind('\n').map_or("", |end| &output[..end]);
            complete.lines().nth(done).map(str::to_owned)
        })?;
        self.done += 1;
        let sample: Sample = serde_json::from_str(&line).with_context(|| format!("read {line:?}"))?;
        ensure!(
            sample.operations > 0,
            "{:?} to {:?}: nothing succeeded: {}",
            order.mode,
            order.to,
            sample.failure.unwrap_or_default()
        );
        Ok(sample)
    }
}
