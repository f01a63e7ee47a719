//! Servers and clients of `lab-tool`, started in a machine of a lab.

use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use super::machine::Machine;
use super::process::Process;
use super::report::{Fragmentation, HttpReport, PageReport, PingReport, StreamReport, UdpReport};

/// How long servers and clients may run, whatever happens to their test.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(1200);

impl Machine {
    /// A server on this machine, which answers with the machine's name.
    pub fn serve(&self) -> ServerBuilder<'_> {
        ServerBuilder {
            machine: self,
            arguments: Vec::new(),
            time_limit: Some(TIME_LIMIT),
        }
    }

    /// HTTP requests from this machine.
    pub fn http(&self, address: impl Into<IpAddr>, port: u16) -> ClientBuilder<'_, HttpReport> {
        ClientBuilder::new(self, "http", address.into(), port)
    }

    /// Requests one page from this machine and returns it with any status.
    ///
    /// # Errors
    ///
    /// If the request fails, with the reason as in `connect: ConnectionRefused`.
    pub fn get(&self, address: impl Into<IpAddr>, port: u16, path: &str) -> Result<PageReport> {
        let client: ClientBuilder<'_, PageReport> = ClientBuilder::new(self, "get", address.into(), port);
        client.with("--path", path).run()
    }

    /// UDP datagrams from this machine.
    pub fn udp(&self, address: impl Into<IpAddr>, port: u16) -> ClientBuilder<'_, UdpReport> {
        ClientBuilder::new(self, "udp", address.into(), port)
    }

    /// A stream of bytes from this machine to a server and back.
    pub fn stream(&self, address: impl Into<IpAddr>, port: u16) -> ClientBuilder<'_, StreamReport> {
        ClientBuilder::new(self, "stream", address.into(), port)
    }

    /// One side of a load generator, without a time limit: see [`crate::bench::load`].
    pub(crate) fn load(&self, side: &str) -> Result<Process> {
        let mut command = self.tool(None)?;
        command.args(["load", side]);
        self.spawn("load", command)
    }

    /// ICMP or ICMPv6 echo requests from this machine.
    pub fn ping(&self, address: impl Into<IpAddr>) -> ClientBuilder<'_, PingReport> {
        ClientBuilder::to(self, "ping", &address.into())
    }
}

/// A server to be started.
#[derive(Debug)]
pub struct ServerBuilder<'a> {
    machine: &'a Machine,
    arguments: Vec<String>,
    time_limit: Option<Duration>,
}

impl ServerBuilder<'_> {
    /// Answers HTTP requests.
    pub fn http(self, port: u16) -> Self {
        self.with("--http", port)
    }

    /// Answers each UDP datagram.
    pub fn udp(self, port: u16) -> Self {
        self.with("--udp", port)
    }

    /// Pads UDP answers to this payload size in bytes, so that they are larger than the requests.
    pub fn udp_answer_size(self, bytes: u32) -> Self {
        self.with("--udp-answer-size", bytes)
    }

    /// Sets how large UDP answers are fragmented, instead of the kernel's default.
    pub fn udp_fragmentation(self, fragmentation: Fragmentation) -> Self {
        self.with("--udp-fragmentation", fragmentation)
    }

    /// Echoes lines on TCP connections, for [`Machine::talk`].
    pub fn echo(self, port: u16) -> Self {
        self.with("--echo", port)
    }

    /// Receives streams of bytes and sends them back, for [`Machine::stream`].
    pub fn stream(self, port: u16) -> Self {
        self.with("--stream", port)
    }

    /// Listens at one address instead of all, IPv4 and IPv6.
    pub fn at(self, address: impl Into<IpAddr>) -> Self {
        self.with("--address", address.into())
    }

    /// Answers with this name instead of the machine's.
    pub fn named(self, name: &str) -> Self {
        self.with("--name", name)
    }

    /// Lets it run as long as the lab, for manual use.
    pub fn without_time_limit(mut self) -> Self {
        self.time_limit = None;
        self
    }

    /// Starts it, and waits until it listens. [`Process::stop`] lets it finish open requests.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub fn start(self) -> Result<Process> {
        let mut command = self.machine.tool(self.time_limit)?;
        command
            .args(["serve", "--name", &self.machine.name])
            .args(self.arguments);
        let mut process = self.machine.spawn("server", command)?;
        process.wait_until_ready()?;
        Ok(process)
    }

    fn with(mut self, option: &str, value: impl ToString) -> Self {
        self.arguments.extend([option.to_owned(), value.to_string()]);
        self
    }
}

/// A client to be started, which sends a report.
#[derive(Debug)]
pub struct ClientBuilder<'a, Report> {
    machine: &'a Machine,
    role: &'static str,
    arguments: Vec<String>,
    report: PhantomData<Report>,
}

impl<'a, Report: DeserializeOwned> ClientBuilder<'a, Report> {
    fn new(machine: &'a Machine, role: &'static str, address: IpAddr, port: u16) -> Self {
        Self::to(machine, role, &SocketAddr::new(address, port))
    }

    fn to(machine: &'a Machine, role: &'static str, to: &impl ToString) -> Self {
        Self {
            machine,
            role,
            arguments: vec![to.to_string()],
            report: PhantomData,
        }
    }

    /// Runs the client and returns its report.
    ///
    /// # Errors
    ///
    /// If the client cannot do its work at all. Requests that fail are part of the report.
    pub fn run(self) -> Result<Report> {
        self.spawn()?.finish()
    }

    /// Starts the client in the background, and waits until it has begun.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(self) -> Result<Client<Report>> {
        let mut client = self.spawn()?;
        client.process.wait_until_ready()?;
        Ok(client)
    }

    fn spawn(self) -> Result<Client<Report>> {
        let mut command: Command = self.machine.tool(Some(TIME_LIMIT))?;
        command.arg(self.role).args(self.arguments);
        Ok(Client {
            process: self.machine.spawn(self.role, command)?,
            report: PhantomData,
        })
    }

    fn with(mut self, option: &str, value: impl ToString) -> Self {
        self.arguments.push(option.to_owned());
        self.arguments.push(value.to_string());
        self
    }
}

impl ClientBuilder<'_, HttpReport> {
    /// The number of requests; 1 by default.
    pub fn count(self, count: u32) -> Self {
        self.with("--count", count)
    }

    /// The number of concurrent requests; 1 by default.
    pub fn concurrency(self, concurrency: u32) -> Self {
        self.with("--concurrency", concurrency)
    }

    /// How long each of the concurrent clients waits before its next request.
    pub fn interval(self, interval: Duration) -> Self {
        self.with("--interval-ms", interval.as_millis())
    }

    /// How long a request may take; 2 s by default.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with("--timeout-ms", timeout.as_millis())
    }

    /// The interval of intermediate reports, for [`Client::so_far`]. By default there is only one
    /// at the end.
    pub fn progress(self, interval: Duration) -> Self {
        self.with("--progress-ms", interval.as_millis())
    }
}

impl ClientBuilder<'_, UdpReport> {
    /// The number of datagrams from each socket; 1 by default.
    pub fn count(self, count: u32) -> Self {
        self.with("--count", count)
    }

    /// The number of sockets, used one after another; 1 by default.
    pub fn sockets(self, sockets: u32) -> Self {
        self.with("--sockets", sockets)
    }

    /// Connects the socket, so that the kernel delivers only datagrams from the peer.
    pub fn connected(mut self) -> Self {
        self.arguments.push("--connected".to_owned());
        self
    }

    /// Size of a datagram's payload in bytes. The server's answer is slightly larger. Datagrams
    /// that do not fit into a packet are sent in fragments.
    pub fn size(self, bytes: u32) -> Self {
        self.with("--size", bytes)
    }

    /// Sets how large datagrams are fragmented, instead of the kernel's default.
    pub fn fragmentation(self, fragmentation: Fragmentation) -> Self {
        self.with("--fragmentation", fragmentation)
    }

    /// How long to wait before the next datagram.
    pub fn interval(self, interval: Duration) -> Self {
        self.with("--interval-ms", interval.as_millis())
    }

    /// How long an answer may take; 1 s by default.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with("--timeout-ms", timeout.as_millis())
    }
}

impl ClientBuilder<'_, PingReport> {
    /// The number of requests; 1 by default.
    pub fn count(self, count: u16) -> Self {
        self.with("--count", count)
    }

    /// Size of a request's payload in bytes.
    pub fn size(self, bytes: u32) -> Self {
        self.with("--size", bytes)
    }

    /// How long an answer may take; 1 s by default.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with("--timeout-ms", timeout.as_millis())
    }
}

/// Reports of clients whose source address and port can be chosen.
pub trait HasSource: DeserializeOwned {}

impl HasSource for HttpReport {}
impl HasSource for UdpReport {}
impl HasSource for StreamReport {}

impl<Report: HasSource> ClientBuilder<'_, Report> {
    /// The client's source port. Each further connection or socket takes the next one. TCP
    /// connections then end with a RST, so that the port is free again immediately.
    pub fn source_port(self, port: u16) -> Self {
        self.with("--source-port", port)
    }

    /// The client's source addresses, of the IP version of the destination. Connections or sockets
    /// take them in turn.
    pub fn source_addresses(self, addresses: impl IntoIterator<Item = impl Into<IpAddr>>) -> Self {
        addresses.into_iter().fold(self, |client, address| {
            client.with("--source-address", address.into())
        })
    }
}

impl ClientBuilder<'_, StreamReport> {
    /// The amount in each direction; 1 MiB by default.
    pub fn mebibytes(self, mebibytes: u32) -> Self {
        self.with("--mebibytes", mebibytes)
    }
}

/// A running client.
#[derive(Debug)]
pub struct Client<Report> {
    process: Process,
    report: PhantomData<Report>,
}

impl<Report: DeserializeOwned> Client<Report> {
    /// Its last report so far, if there is one.
    ///
    /// # Errors
    ///
    /// If it wrote something else.
    pub fn so_far(&self) -> Result<Option<Report>> {
        let output = self.process.output_so_far();
        let complete = output.rfind('\n').map_or("", |end| &output[..end]);
        let report = complete.lines().last().filter(|line| *line != "ready");
        report
            .map(|report| serde_json::from_str(report).with_context(|| format!("read the report {report:?}")))
            .transpose()
    }

    /// Waits until it has finished.
    ///
    /// # Errors
    ///
    /// If the client fails as a whole.
    pub fn finish(self) -> Result<Report> {
        let output = self.process.output(TIME_LIMIT)?;
        let report = output.lines().last().unwrap_or_default();
        serde_json::from_str(report).with_context(|| format!("read the report {output:?}"))
    }

    /// Lets it finish the current request, and returns its report.
    ///
    /// # Errors
    ///
    /// If the client fails as a whole.
    pub fn stop(mut self) -> Result<Report> {
        if !self.process.has_ended() {
            self.process.signal(Signal::SIGTERM)?;
        }
        self.finish()
    }
}
