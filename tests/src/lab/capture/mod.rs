//! Captures everything in a namespace and checks every checksum on the way.
//!
//! Frames between namespaces often carry unfinished checksums, since no real device ever sends
//! them. The kernel says which ones: of those the field must be the sum of the pseudo header, of
//! all others the whole checksum must be right.

mod check;
mod socket;

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow, bail};
use nix::net::if_::if_indextoname;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use check::{Flow, Protocol};
pub(super) use socket::RECEIVE_BUFFER;
use socket::{PacketSocket, Received};

use super::namespace::{Namespace, enter};

/// How many bad frames are kept; all are counted.
const BAD_KEPT: usize = 20;

/// How much of a bad frame is kept.
const DUMP_BYTES: usize = 256;

/// A capture at work in a namespace. Dropping it discards it.
#[derive(Debug)]
pub struct Capture {
    /// Closing it ends the thread.
    running: UnixStream,
    thread: JoinHandle<Result<CaptureReport>>,
}

/// What was captured.
#[derive(Clone, Default, Debug)]
pub struct CaptureReport {
    /// How many packets were seen where.
    pub seen: BTreeMap<Seen, u64>,
    /// How many frames were bad.
    pub bad_count: u64,
    /// The first of them.
    pub bad: Vec<BadFrame>,
    /// How many frames came faster than they were looked at.
    pub lost: u32,
}

/// A kind of packets in one place.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Seen {
    /// Name of the device.
    pub device: String,
    /// Whether the namespace sent or received them.
    pub outgoing: bool,
    /// From where to where.
    pub flow: Flow,
}

/// A frame with a wrong checksum or length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadFrame {
    /// Name of the device.
    pub device: String,
    /// Whether the namespace sent or received it.
    pub outgoing: bool,
    /// What is wrong.
    pub fault: String,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

impl Capture {
    /// Starts to capture all devices of a namespace; returns when it has begun.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.run(PacketSocket::new)?;
        let (running, stop) = UnixStream::pair()?;
        let name = namespace.name().to_owned();
        let thread = thread::spawn(move || {
            // Names of devices are those of the calling thread's namespace.
            enter(&name)?;
            capture(socket, &stop)
        });
        Ok(Self { running, thread })
    }

    /// Ends it, having looked at everything that was sent before.
    ///
    /// # Errors
    ///
    /// If the capture itself failed. Bad frames are part of the report.
    pub fn stop(self) -> Result<CaptureReport> {
        drop(self.running);
        self.thread
            .join()
            .map_err(|_| anyhow!("the capture's thread panicked"))?
    }

    /// Ends it and insists that all it saw is good, and that it saw more than
    /// [`Protocol::Housekeeping`].
    ///
    /// # Errors
    ///
    /// If there was a bad frame, with its bytes, or no packet.
    pub fn finish(self) -> Result<CaptureReport> {
        let report = self.stop()?;
        if report.bad_count > 0 {
            bail!("{report}");
        }
        if report
            .seen
            .keys()
            .all(|seen| seen.flow.protocol == Protocol::Housekeeping)
        {
            bail!("no packet was captured, but for {report}");
        }
        Ok(report)
    }
}

impl CaptureReport {
    /// Number of packets of a protocol, at all devices and in both directions.
    pub fn count(&self, protocol: Protocol) -> u64 {
        self.seen
            .iter()
            .filter(|(seen, _)| seen.flow.protocol == protocol)
            .map(|(_, count)| count)
            .sum()
    }

    /// Packets from or to an address.
    pub fn with_address(&self, address: IpAddr) -> impl Iterator<Item = (&Seen, u64)> {
        self.seen
            .iter()
            .filter(move |(seen, _)| [seen.flow.source.ip(), seen.flow.destination.ip()].contains(&address))
            .map(|(seen, &count)| (seen, count))
    }

    fn add(&mut self, received: &Received<'_>, device: &str) {
        let (device, outgoing) = (device.to_owned(), received.outgoing);
        match check::check(received.frame) {
            Ok(None) => {}
            Ok(Some(flow)) => {
                let seen = Seen {
                    device,
                    outgoing,
                    flow,
                };
                *self.seen.entry(seen).or_default() += 1;
            }
            Err(fault) => {
                self.bad_count += 1;
                if self.bad.len() < BAD_KEPT {
                    let bytes = received.frame.bytes;
                    self.bad.push(BadFrame {
                        device,
                        outgoing,
                        fault: fault.to_string(),
                        bytes: bytes[..bytes.len().min(DUMP_BYTES)].to_vec(),
                    });
                }
            }
        }
    }
}

impl fmt::Display for CaptureReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let good: u64 = self.seen.values().sum();
        writeln!(
            formatter,
            "{good} good packets, {} bad, {} lost",
            self.bad_count, self.lost
        )?;
        self.bad.iter().try_for_each(|bad| write!(formatter, "{bad}"))
    }
}

impl fmt::Display for BadFrame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.outgoing { "sent" } else { "received" };
        writeln!(formatter, "{direction} at {}: {}", self.device, self.fault)?;
        for (line, bytes) in self.bytes.chunks(16).enumerate() {
            let mut text = String::new();
            bytes.iter().try_for_each(|byte| write!(text, " {byte:02x}"))?;
            writeln!(formatter, "  {:04x} {text}", line * 16)?;
        }
        Ok(())
    }
}

/// Looks at frames until the other end of `stop` is closed and none is left.
fn capture(mut socket: PacketSocket, stop: &UnixStream) -> Result<CaptureReport> {
    let mut report = CaptureReport::default();
    let mut devices = HashMap::new();
    loop {
        // Asked before the last look: what was sent before the end is seen.
        let ended = wait(&socket, stop)?;
        while let Some(received) = socket.receive()? {
            let device = devices
                .entry(received.interface)
                .or_insert_with(|| device_name(received.interface));
            report.add(&received, device);
        }
        if ended {
            report.lost = socket.lost()?;
            return Ok(report);
        }
    }
}

/// Waits for a frame or the end; whether it is the end.
fn wait(socket: &PacketSocket, stop: &UnixStream) -> Result<bool> {
    let mut files = [
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut files, PollTimeout::NONE) {
        Ok(_) => Ok(files[1].any().unwrap_or(true)),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

fn device_name(index: u32) -> String {
    if_indextoname(index).map_or_else(
        |_| format!("device {index}"),
        |name| name.to_string_lossy().into_owned(),
    )
}
