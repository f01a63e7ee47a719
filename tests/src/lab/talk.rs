//! Connections that a test controls.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use super::machine::Machine;
use super::process::Process;
use super::report::TalkEvent;
use super::tool::TIME_LIMIT;

/// How many connections a test may need until a certain Pod answers.
const ATTEMPTS: usize = 200;

/// A TCP connection or UDP socket that a test controls.
#[derive(Debug)]
pub struct Talk {
    process: Process,
    /// How many events the test has seen.
    seen: usize,
    local: Option<SocketAddr>,
}

impl Machine {
    /// Opens a TCP connection from this machine to an echo server. The test controls what it sends.
    ///
    /// # Errors
    ///
    /// If the client cannot be started. [`Talk::next_event`] reports the result of the connection.
    pub fn talk(&self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        self.talk_with(SocketAddr::new(address.into(), port), &[])
    }

    /// The same from a given address and port of this machine. Connections to several servers may
    /// share it.
    ///
    /// # Errors
    ///
    /// If the client cannot be started.
    pub fn talk_from(&self, source: SocketAddr, to: SocketAddr) -> Result<Talk> {
        let (address, port) = (source.ip().to_string(), source.port().to_string());
        self.talk_with(to, &["--source-address", &address, "--source-port", &port])
    }

    /// Opens a connected UDP socket on this machine. The test controls what it sends.
    ///
    /// # Errors
    ///
    /// If the client cannot be started.
    pub fn talk_udp(&self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        self.talk_with(SocketAddr::new(address.into(), port), &["--udp"])
    }

    /// The same, but the socket passes the server's address with each datagram even though it is
    /// connected.
    ///
    /// # Errors
    ///
    /// If the client cannot be started.
    pub fn talk_udp_named(&self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        self.talk_with(SocketAddr::new(address.into(), port), &["--udp", "--named"])
    }

    /// A UDP socket for [`Talk::ask`], of the family of this address.
    ///
    /// # Errors
    ///
    /// If the client cannot be started.
    pub fn asker(&self, family: impl Into<IpAddr>) -> Result<Talk> {
        self.talk_with(SocketAddr::new(family.into(), 0), &["--udp", "--unconnected"])
    }

    /// Opens a TCP connection and waits for an answer. Returns it with the server's name.
    ///
    /// # Errors
    ///
    /// If it fails or is not answered.
    pub fn connect(&self, address: impl Into<IpAddr>, port: u16) -> Result<(Talk, String)> {
        self.talk(address, port)?.begin()
    }

    /// The same with a connected UDP socket.
    ///
    /// # Errors
    ///
    /// If it fails or is not answered.
    pub fn connect_udp(&self, address: impl Into<IpAddr>, port: u16) -> Result<(Talk, String)> {
        self.talk_udp(address, port)?.begin()
    }

    /// Opens TCP connections to a Service until this Pod answers one, and returns that one.
    ///
    /// # Errors
    ///
    /// If a connection fails, or the Pod answers none of them.
    pub fn connect_to(&self, pod: &Self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        let address = address.into();
        until(pod, || self.connect(address, port))
    }

    /// The same with a connected UDP socket.
    ///
    /// # Errors
    ///
    /// If a socket is not answered, or the Pod answers none of them.
    pub fn connect_udp_to(&self, pod: &Self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        let address = address.into();
        until(pod, || self.connect_udp(address, port))
    }

    fn talk_with(&self, to: SocketAddr, arguments: &[&str]) -> Result<Talk> {
        let mut command = self.tool(Some(TIME_LIMIT))?;
        command.args(["talk", &to.to_string()]).args(arguments);
        Ok(Talk {
            process: self.spawn("talk", command)?,
            seen: 0,
            local: None,
        })
    }
}

/// Connects until this Pod answers.
fn until(pod: &Machine, connect: impl Fn() -> Result<(Talk, String)>) -> Result<Talk> {
    for _ in 0..ATTEMPTS {
        let (talk, server) = connect()?;
        if server == pod.name() {
            return Ok(talk);
        }
    }
    bail!("{} answers none of {ATTEMPTS} connections", pod.name())
}

impl Talk {
    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// If there is none for some seconds.
    pub fn next_event(&mut self) -> Result<TalkEvent> {
        let seen = self.seen;
        let line = self.process.wait_until("next event", |process| {
            let output = process.output_so_far();
            let complete = output.rfind('\n').map_or("", |end| &output[..end]);
            complete.lines().nth(seen).map(str::to_owned)
        })?;
        self.seen += 1;
        serde_json::from_str(&line).with_context(|| format!("read the event {line:?}"))
    }

    /// Waits until it is connected. Returns the client's own address and port, and the peer address
    /// that its socket reports.
    ///
    /// # Errors
    ///
    /// If the next event is another one.
    pub fn connected(&mut self) -> Result<(SocketAddr, SocketAddr)> {
        match self.next_event()? {
            TalkEvent::Connected { local, peer } => {
                self.local = Some(local);
                Ok((local, peer))
            }
            other => bail!("not connected: {other:?}"),
        }
    }

    /// The client's own address and port, if the test has waited until it is connected.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Sends a line.
    ///
    /// # Errors
    ///
    /// If the client has ended.
    pub fn send(&mut self, line: &str) -> Result<()> {
        self.process.write_line(line)
    }

    /// Sends a line and returns the next event. Normally that is the echo.
    ///
    /// # Errors
    ///
    /// If there is none for some seconds.
    pub fn exchange(&mut self, line: &str) -> Result<TalkEvent> {
        self.send(line)?;
        self.next_event()
    }

    /// Sends a line and returns the name of the server that answers.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn server(&mut self) -> Result<String> {
        match self.exchange("hello")? {
            TalkEvent::Line(line) => Ok(line.split(' ').next().unwrap_or_default().to_owned()),
            other => bail!("not answered: {other:?}"),
        }
    }

    /// Sends a line and returns the names of the servers that have answered since the last event.
    /// It does not wait: datagrams in flight may be lost while a UDP socket changes its server.
    ///
    /// # Errors
    ///
    /// If the client has ended.
    pub fn servers(&mut self) -> Result<Vec<String>> {
        self.send("hello")?;
        let output = self.process.output_so_far();
        let complete = output.rfind('\n').map_or("", |end| &output[..end]);
        let mut servers = Vec::new();
        for line in complete.lines().skip(self.seen) {
            self.seen += 1;
            match serde_json::from_str(line)? {
                TalkEvent::Line(line) => servers.extend(line.split(' ').next().map(str::to_owned)),
                other => bail!("not answered: {other:?}"),
            }
        }
        Ok(servers)
    }

    /// Sends a request to a server with the socket of [`Machine::asker`]. Returns the name of the
    /// server that answers, and the source address of the answer.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn ask(&mut self, to: SocketAddr) -> Result<(String, SocketAddr)> {
        match self.exchange(&to.to_string())? {
            TalkEvent::Line(line) => {
                let (name, from) = line.split_once(' ').context("a name and an address")?;
                Ok((name.to_owned(), from.parse()?))
            }
            other => bail!("not answered: {other:?}"),
        }
    }

    /// Sends a line on a TCP connection and waits for RST.
    ///
    /// # Errors
    ///
    /// If the next event is another one.
    pub fn expect_reset(&mut self) -> Result<()> {
        // Fails if a delayed ACK already got the RST: then the client has ended.
        let _ = self.send("hello");
        let event = self.next_event()?;
        let is_reset = matches!(&event, TalkEvent::Error(error) if error.ends_with(": ConnectionReset"));
        ensure!(is_reset, "not reset: {event:?}");
        Ok(())
    }

    fn begin(mut self) -> Result<(Self, String)> {
        self.connected()?;
        let server = self.server()?;
        Ok((self, server))
    }
}
