//! Connections in the hands of a test.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use super::machine::Machine;
use super::process::Process;
use super::report::TalkEvent;
use super::tool::TIME_LIMIT;

/// How many connections a test may need to meet a certain Pod.
const ATTEMPTS: usize = 200;

/// A TCP connection or connected UDP socket in the hands of a test.
#[derive(Debug)]
pub struct Talk {
    process: Process,
    /// How many events the test has seen.
    seen: usize,
    local: Option<SocketAddr>,
}

impl Machine {
    /// A TCP connection from here to an echo server, for the test to use as it likes.
    ///
    /// # Errors
    ///
    /// If the client cannot be started. How the connection fares is told by [`Talk::next_event`].
    pub fn talk(&self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        self.talk_with(SocketAddr::new(address.into(), port), &[])
    }

    /// The same from an address and port of this machine. Connections to several servers may share
    /// it.
    ///
    /// # Errors
    ///
    /// If the client cannot be started.
    pub fn talk_from(&self, source: SocketAddr, to: SocketAddr) -> Result<Talk> {
        let (address, port) = (source.ip().to_string(), source.port().to_string());
        self.talk_with(to, &["--source-address", &address, "--source-port", &port])
    }

    /// A connected UDP socket here, for the test to exchange datagrams with a server as it likes.
    ///
    /// # Errors
    ///
    /// If the client cannot be started.
    pub fn talk_udp(&self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        self.talk_with(SocketAddr::new(address.into(), port), &["--udp"])
    }

    /// A connected UDP socket that names the server with each datagram all the same.
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

    /// A TCP connection that the server has answered on, and the server's name.
    ///
    /// # Errors
    ///
    /// If it is not there or not answered.
    pub fn connect(&self, address: impl Into<IpAddr>, port: u16) -> Result<(Talk, String)> {
        self.talk(address, port)?.begin()
    }

    /// The same of a connected UDP socket.
    ///
    /// # Errors
    ///
    /// If it is not there or not answered.
    pub fn connect_udp(&self, address: impl Into<IpAddr>, port: u16) -> Result<(Talk, String)> {
        self.talk_udp(address, port)?.begin()
    }

    /// A TCP connection to a Service that this Pod answers: one of as many as it takes.
    ///
    /// # Errors
    ///
    /// If a connection fails, or the Pod answers none of them.
    pub fn connect_to(&self, pod: &Self, address: impl Into<IpAddr>, port: u16) -> Result<Talk> {
        let address = address.into();
        until(pod, || self.connect(address, port))
    }

    /// The same of a connected UDP socket.
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

/// Connects until it is this Pod that answers.
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
    /// Waits for what happens next.
    ///
    /// # Errors
    ///
    /// If nothing does for some seconds.
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

    /// Waits until it is connected; returns the client's own address and port, and where it
    /// believes to be connected to.
    ///
    /// # Errors
    ///
    /// If something else happens.
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

    /// Sends a line and waits for what happens next: its echo, if all is well.
    ///
    /// # Errors
    ///
    /// If nothing does for some seconds.
    pub fn exchange(&mut self, line: &str) -> Result<TalkEvent> {
        self.send(line)?;
        self.next_event()
    }

    /// Says something and returns the name of the server that answers.
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

    /// Says something and returns the names of the servers that have answered since the last event
    /// that was seen. What is on its way while a UDP socket changes its server may be lost, so this
    /// does not wait.
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

    /// Asks a server with the socket of [`Machine::asker`]; returns the name of the server that
    /// answers, and where the answer says to come from.
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

    /// Says something on a TCP connection and waits for RST.
    ///
    /// # Errors
    ///
    /// If something else comes.
    pub fn expect_reset(&mut self) -> Result<()> {
        // The next packet may have been an acknowledgement that was put off, and the client be gone
        // by now.
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
