//! The measured operations and their figures.

use serde::Serialize;

use crate::bench::load::{CHUNK, Mode, Sample};

/// An operation of the load generator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Opens connections one after the other.
    Connect,
    /// Opens connections, several at the same time.
    Connections,
    /// Requests and answers on persistent connections, many in flight.
    Requests,
    /// Datagrams of one flow, and their echoes.
    Datagrams,
    /// Datagrams of new flows, and their echoes.
    NewFlows,
    /// A stream of bytes.
    Stream,
}

/// A figure of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Median latency in microseconds.
    P50,
    /// 99th percentile of the latency, in microseconds.
    P99,
    /// Connections or requests per second; for streams, gigabits per second.
    Rate,
    /// Packets per second of CPU time, in both directions.
    PacketsPerCpuSecond,
    /// CPU time of everything in the namespaces, in microseconds per connection, request, packet or
    /// MiB.
    Cpu,
    /// The client's part of that CPU time.
    ClientCpu,
    /// CPU time of the whole machine, including other users of it.
    MachineCpu,
}

impl Operation {
    /// All of them.
    pub(super) const ALL: [Self; 6] = [
        Self::Connect,
        Self::Connections,
        Self::Requests,
        Self::Datagrams,
        Self::NewFlows,
        Self::Stream,
    ];

    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Connect | Self::Connections => Mode::Connect,
            Self::Requests => Mode::Request,
            Self::Datagrams => Mode::Datagram,
            Self::NewFlows => Mode::NewFlow,
            Self::Stream => Mode::Stream,
        }
    }

    pub(super) fn threads(self) -> u32 {
        match self {
            Self::Connect | Self::Datagrams | Self::Stream => 1,
            Self::Connections | Self::NewFlows => 8,
            Self::Requests => 32,
        }
    }

    /// Its figures: first those of the tables, then those that are in the JSON only.
    pub(super) fn metrics(self) -> (&'static [Metric], &'static [Metric]) {
        const CPU: &[Metric] = &[Metric::ClientCpu, Metric::MachineCpu];
        const PACKETS: &[Metric] = &[Metric::Cpu, Metric::ClientCpu, Metric::MachineCpu];
        match self {
            Self::Connect => (&[Metric::P50, Metric::P99], &[]),
            Self::Connections | Self::Requests | Self::Stream => (&[Metric::Rate, Metric::Cpu], CPU),
            Self::Datagrams | Self::NewFlows => (&[Metric::PacketsPerCpuSecond], PACKETS),
        }
    }

    /// Its description.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Connect => "opening a connection",
            Self::Connections => "connections, 8 at a time",
            Self::Requests => "requests of 64 bytes, 32 in flight",
            Self::Datagrams => "UDP packets, one flow",
            Self::NewFlows => "UDP packets, a new flow for each request",
            Self::Stream => "a stream",
        }
    }

    /// The title of a table: the operation and the unit of the figure.
    pub(super) fn title(self, metric: Metric) -> String {
        let what = self.what();
        let unit = match self {
            Self::Connect | Self::Connections => "connection",
            Self::Requests => "request",
            Self::Datagrams | Self::NewFlows => "packet",
            Self::Stream => "MiB",
        };
        match metric {
            Metric::P50 => format!("{what}: median, microseconds"),
            Metric::P99 => format!("{what}: 99th percentile, microseconds"),
            Metric::Rate if self == Self::Stream => format!("{what}: Gbit/s"),
            Metric::Rate => format!("{what}: per second"),
            Metric::PacketsPerCpuSecond => format!("{what}: per CPU second"),
            Metric::Cpu => format!("{what}: CPU microseconds per {unit}"),
            Metric::ClientCpu => format!("{what}: CPU microseconds of the client per {unit}"),
            Metric::MachineCpu => format!("{what}: CPU microseconds of the machine per {unit}"),
        }
    }
}

impl Metric {
    /// The figure of a sample.
    pub(super) fn of(self, operation: Operation, sample: &Sample) -> f64 {
        let operations = sample.operations as f64;
        let bytes = operations * CHUNK as f64;
        let units = match operation {
            Operation::Connect | Operation::Connections | Operation::Requests => operations,
            // Both directions.
            Operation::Datagrams | Operation::NewFlows => operations * 2.0,
            Operation::Stream => bytes / f64::from(1 << 20),
        };
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        match self {
            Self::P50 => microseconds(sample.p50),
            Self::P99 => microseconds(sample.p99),
            Self::Rate if operation == Operation::Stream => bytes * 8.0 / sample.elapsed as f64,
            Self::Rate => operations / (sample.elapsed as f64 / 1e9),
            Self::PacketsPerCpuSecond => units / (sample.lab_cpu as f64 / 1e9),
            Self::Cpu => microseconds(sample.lab_cpu) / units,
            Self::ClientCpu => microseconds(sample.client_cpu) / units,
            Self::MachineCpu => microseconds(sample.machine_cpu) / units,
        }
    }
}
