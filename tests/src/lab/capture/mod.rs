//! Captures all frames in a namespace and checks every checksum.
//!
//! Frames between namespaces often have incomplete checksums, because no real device sends them.
//! The kernel marks these. In a marked frame the field must contain the sum of the pseudo header.
//! In all others the complete checksum must be correct.

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

/// How many bad frames are stored. All are counted.
const BAD_KEPT: usize = 20;

/// How many bytes of a bad frame are stored.
const DUMP_BYTES: usize = 256;

/// A running capture in a namespace. Dropping it discards the report.
#[derive(Debug)]
pub struct Capture {
    /// Closing it ends the thread.
    running: UnixStream,
    thread: JoinHandle<Result<CaptureReport>>,
}

/// The result of a capture.
#[derive(Clone, Default, Debug)]
pub struct CaptureReport {
    /// The number of packets by device, direction and flow.
    pub seen: BTreeMap<Seen, u64>,
    /// How many frames were bad.
    pub bad_count: u64,
    /// The first bad frames.
    pub bad: Vec<BadFrame>,
    /// How many frames were lost because they arrived faster than they were checked.
    pub lost: u32,
}

/// A device, a direction and a flow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Seen {
    /// Name of the device.
    pub device: String,
    /// Whether the namespace sent or received them.
    pub outgoing: bool,
    /// Protocol, source and destination.
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
    /// Starts to capture all devices of a namespace. Returns when the capture has begun.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.run(PacketSocket::new)?;
        let (running, stop) = UnixStream::pair()?;
        let name = namespace.name().to_owned();
        let thread = thread::spawn(move || {
            // Device names are looked up in the calling thread's namespace.
            enter(&name)?;
            capture(socket, &stop)
        });
        Ok(Self { running, thread })
    }

    /// Ends the capture after it has checked everything that was sent before.
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

    /// Ends the capture and checks that all frames were good and that some were not
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

/// Checks frames until the other end of `stop` is closed and no frame is left.
fn capture(mut socket: PacketSocket, stop: &UnixStream) -> Result<CaptureReport> {
    let mut report = CaptureReport::default();
    let mut devices = HashMap::new();
    loop {
        // Checked before the last pass, so that frames sent before the end are seen.
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

/// Waits for a frame or the end. Returns true at the end.
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
