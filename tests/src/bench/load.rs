//! The input and output of the load generator (`lab-tool load`): a line of JSON each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::lab::{Machine, Process};

/// The operation that the load generator repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Opens a TCP connection, which the server closes. Only the opening counts as latency.
    Connect,
    /// A request on a persistent TCP connection, and the answer.
    Request,
    /// A UDP datagram of a single flow and its echo, many in flight.
    Datagram,
    /// A UDP datagram and its echo, each with a new flow.
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

    /// The role of the server.
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
    /// Sends back data of TCP connections.
    Echo,
    /// Reads TCP connections to their end.
    Sink,
    /// Sends UDP datagrams back.
    Datagram,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Close, Self::Echo, Self::Sink, Self::Datagram];

    /// Its index, from 0.
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

    /// The port of the server for connections to a Service.
    pub fn target_port(self) -> u16 {
        8080 + u16::from(self.index())
    }

    /// The port of the server for direct connections to the Pod. It differs from
    /// [`Self::target_port`] because the server remembers closed connections for a minute. It would
    /// reject a connection with the same ports but other TCP timestamps, whose offset depends on
    /// the destination address.
    pub fn bare_port(self) -> u16 {
        9080 + u16::from(self.index())
    }
}

/// An order to the load generator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The operation.
    pub mode: Mode,
    /// The destinations, used in turn.
    pub to: Vec<SocketAddr>,
    /// The number of concurrent threads.
    pub threads: u32,
    /// The duration.
    pub milliseconds: u32,
    /// The control groups whose CPU time is measured.
    pub cgroups: Vec<PathBuf>,
}

/// The result of an order.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Operations that succeeded.
    pub operations: u64,
    /// Operations that failed.
    pub failures: u64,
    /// The first failure.
    pub failure: Option<String>,
    /// Total time, in nanoseconds.
    pub elapsed: u64,
    /// Median latency in nanoseconds.
    pub p50: u64,
    /// 99th percentile of the latency, in nanoseconds.
    pub p99: u64,
    /// CPU time of the client, in nanoseconds, including system time (getrusage(2)).
    pub client_cpu: u64,
    /// CPU time of all processes of the control groups and of the kernel's softirq threads, in
    /// nanoseconds.
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

/// A running load generator.
#[derive(Debug)]
pub struct LoadGenerator {
    process: Process,
    done: usize,
}

impl LoadGenerator {
    /// Starts a load generator, which waits for orders.
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

    /// Executes an order and waits for the result.
    ///
    /// # Errors
    ///
    /// If nothing succeeds, or the load generator fails.
    pub fn measure(&mut self, order: &Order) -> Result<Sample> {
        self.process.write_line(&serde_json::to_string(order)?)?;
        // Polling for the result would use CPU time.
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
