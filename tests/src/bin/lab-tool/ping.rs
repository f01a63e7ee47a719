//! ICMP and ICMPv6 echo requests.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type, IpSlice,
};
use lb_tests::lab::report::PingReport;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto, socket,
};
use nix::unistd::getpid;

use crate::reason;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Destination address
    to: IpAddr,
    /// Number of requests
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Size of the payload in bytes
    #[arg(long, default_value_t = 16)]
    size: usize,
    /// Timeout of an answer in milliseconds
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
}

/// An answer or error for a request.
enum Heard {
    Answer { sequence: u16 },
    Error { sequence: u16, what: &'static str },
}

struct Pinger {
    socket: OwnedFd,
    to: IpAddr,
    /// Identifies the requests of this process in the namespace.
    id: u16,
    payload: Vec<u8>,
    timeout: Duration,
    buffer: Vec<u8>,
}

/// Sends the requests, each after the result of the previous one.
pub(crate) fn run(options: &Options) -> Result<PingReport> {
    let mut pinger = Pinger::new(options)?;
    println!("ready");
    let mut report = PingReport::default();
    for sequence in 0..options.count {
        if let Err(error) = pinger.send(sequence) {
            let reason = reason("send", &error.into());
            *report.errors.entry(reason).or_default() += 1;
            continue;
        }
        match pinger.wait_for(sequence)? {
            None => report.lost += 1,
            Some((from, Heard::Answer { .. })) => *report.answers.entry(from).or_default() += 1,
            Some((from, Heard::Error { what, .. })) => {
                *report.errors.entry(format!("{what}: {from}")).or_default() += 1;
            }
        }
    }
    Ok(report)
}

impl Pinger {
    fn new(options: &Options) -> Result<Self> {
        let (family, protocol) = match options.to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Raw, flags, protocol).context("make a raw socket")?;
        let [.., high, low] = getpid().as_raw().to_be_bytes();
        Ok(Self {
            socket,
            to: options.to,
            id: u16::from_be_bytes([high, low]),
            payload: (0..=u8::MAX).cycle().take(options.size).collect(),
            timeout: Duration::from_millis(options.timeout_ms),
            buffer: vec![0; 65536],
        })
    }

    fn send(&self, sequence: u16) -> nix::Result<()> {
        let echo = IcmpEchoHeader {
            id: self.id,
            seq: sequence,
        };
        let mut message = match self.to {
            IpAddr::V4(_) => Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &self.payload)
                .to_bytes()
                .to_vec(),
            // The kernel fills in the checksum.
            IpAddr::V6(_) => Icmpv6Header::new(Icmpv6Type::EchoRequest(echo))
                .to_bytes()
                .to_vec(),
        };
        message.extend(&self.payload);
        let to = SockaddrStorage::from(SocketAddr::new(self.to, 0));
        sendto(self.socket.as_raw_fd(), &message, &to, MsgFlags::empty()).map(|_| ())
    }

    /// Waits for the result of this request. Returns it with its source, or `None` after the
    /// timeout.
    fn wait_for(&mut self, sequence: u16) -> Result<Option<(IpAddr, Heard)>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let heard = match self.receive()? {
                Some(heard) => heard,
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let mut files = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                    poll(
                        &mut files,
                        PollTimeout::try_from(left + Duration::from_millis(1))?,
                    )?;
                    continue;
                }
            };
            match heard {
                Some((from, heard)) if heard.sequence() == sequence => return Ok(Some((from, heard))),
                // For an earlier request, or for another process.
                _ => {}
            }
        }
    }

    /// The next message, if one is waiting. The inner `Option` is `None` if it is not about
    /// requests of this process.
    fn receive(&mut self) -> Result<Option<Option<(IpAddr, Heard)>>> {
        let (length, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut self.buffer) {
            Ok((length, from)) => (length, from.context("a packet without a source address")?),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(io::Error::from(error)).context("receive"),
        };
        let bytes = &self.buffer[..length];
        let (from, heard) = match self.to {
            IpAddr::V4(_) => {
                let ip = IpSlice::from_slice(bytes).context("an IP header")?;
                (ip.source_addr(), heard4(ip.payload().payload, self.id))
            }
            IpAddr::V6(_) => {
                let from = from.as_sockaddr_in6().context("no IPv6 address")?;
                (from.ip().into(), heard6(bytes, self.id))
            }
        };
        Ok(Some(heard.map(|heard| (from, heard))))
    }
}

impl Heard {
    fn sequence(&self) -> u16 {
        match self {
            Self::Answer { sequence } | Self::Error { sequence, .. } => *sequence,
        }
    }
}

fn heard4(message: &[u8], id: u16) -> Option<Heard> {
    const ECHO_REQUEST: u8 = 8;
    let message = Icmpv4Slice::from_slice(message).ok()?;
    let what = match message.icmp_type() {
        Icmpv4Type::EchoReply(echo) => {
            return (echo.id == id).then_some(Heard::Answer { sequence: echo.seq });
        }
        Icmpv4Type::DestinationUnreachable(_) => "unreachable",
        Icmpv4Type::TimeExceeded(_) => "time exceeded",
        _ => return None,
    };
    let quoted = message.payload();
    let header = usize::from(quoted.first()? & 0xf) * 4;
    let sequence = quoted_sequence(quoted.get(header..)?, ECHO_REQUEST, id)?;
    Some(Heard::Error { sequence, what })
}

fn heard6(message: &[u8], id: u16) -> Option<Heard> {
    const ECHO_REQUEST: u8 = 128;
    const IPV6_HEADER: usize = 40;
    let message = Icmpv6Slice::from_slice(message).ok()?;
    let what = match message.icmp_type() {
        Icmpv6Type::EchoReply(echo) => {
            return (echo.id == id).then_some(Heard::Answer { sequence: echo.seq });
        }
        Icmpv6Type::DestinationUnreachable(_) => "unreachable",
        Icmpv6Type::PacketTooBig { .. } => "too big",
        Icmpv6Type::TimeExceeded(_) => "time exceeded",
        _ => return None,
    };
    let quoted = message.payload().get(IPV6_HEADER..)?;
    let sequence = quoted_sequence(quoted, ECHO_REQUEST, id)?;
    Some(Heard::Error { sequence, what })
}

/// The sequence number of a quoted echo request of this process.
fn quoted_sequence(quoted: &[u8], echo_request: u8, id: u16) -> Option<u16> {
    match quoted.get(..8)? {
        [kind, _, _, _, id_high, id_low, high, low]
            if *kind == echo_request && [*id_high, *id_low] == id.to_be_bytes() =>
        {
            Some(u16::from_be_bytes([*high, *low]))
        }
        _ => None,
    }
}
