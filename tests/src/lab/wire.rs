//! Packets that a test makes itself, on real devices.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etherparse::{EtherType, Ethernet2Header, SlicedPacket};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, socket,
};

use super::address::LEAF_GATEWAY_MAC;
use super::link::LEAF_DEVICE;
use super::machine::Machine;
use super::namespace::Namespace;
use super::wait::wait_for;

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device in the hands of a test, beside the kernel: sends any frame, and sees whatever the device receives. For
/// what no kernel sends or this one does not know, like SCTP.
///
/// Checksums in what comes from a kernel may be unfinished: [`super::Capture`] can tell.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    device: LinkAddr,
}

impl Machine {
    /// The device of a Pod or an outside client in the hands of a test. The kernel receives its packets as well: use
    /// [`Machine::phantom`] or [`super::Node::silent_pod`] to have no answers of it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn wire(&self) -> Result<Wire> {
        Wire::open(self.namespace(), LEAF_DEVICE)
    }
}

impl Wire {
    /// A device in the hands of a test. It sees what is received from now on.
    ///
    /// # Errors
    ///
    /// If there is no such device or the kernel refuses.
    pub fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        namespace.run(|| {
            let device = link_address(device)?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
                .context("make a packet socket")?;
            bind(socket.as_raw_fd(), &device).context("bind a packet socket")?;
            Ok(Self { socket, device })
        })
    }

    /// Sends a frame as it is: with its Ethernet header, if the device has one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, for one because it is longer than the device's MTU allows.
    pub fn send_frame(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("send a frame of {} bytes", frame.len()))?;
        if sent != frame.len() {
            bail!("{sent} of {} bytes were sent", frame.len());
        }
        Ok(())
    }

    /// Sends an IP packet to the gateway of a Pod or an outside client.
    ///
    /// # Errors
    ///
    /// As [`Self::send_frame`].
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        if !self.is_ethernet() {
            return self.send_frame(packet);
        }
        let ether_type = match packet.first().context("an empty packet")? >> 4 {
            4 => EtherType::IPV4,
            6 => EtherType::IPV6,
            version => bail!("IP version {version}"),
        };
        let header = Ethernet2Header {
            source: self.device.addr().context("the device has no address")?,
            destination: LEAF_GATEWAY_MAC.0,
            ether_type,
        };
        let mut frame = header.to_bytes().to_vec();
        frame.extend(packet);
        self.send_frame(&frame)
    }

    /// Waits for a frame of which `wanted` makes something; others are dropped.
    ///
    /// # Errors
    ///
    /// If there is none for some seconds; `what` names it in the message.
    pub fn receive_frame<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let mut buffer = vec![0; usize::from(u16::MAX) + 64];
        let found = wait_for(what, PATIENCE, || {
            loop {
                match self.next_frame(&mut buffer) {
                    Ok(None) => return None,
                    Ok(Some(frame)) => {
                        if let Some(value) = wanted(frame) {
                            return Some(Ok(value));
                        }
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
        });
        found?
    }

    /// The same with IP packets.
    ///
    /// # Errors
    ///
    /// If there is none for some seconds; `what` names it in the message.
    pub fn receive<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let is_ethernet = self.is_ethernet();
        self.receive_frame(what, |frame| {
            if !is_ethernet {
                return wanted(frame);
            }
            let sliced = SlicedPacket::from_ethernet(frame).ok()?;
            let payload = sliced.ether_payload()?;
            let is_ip = [EtherType::IPV4, EtherType::IPV6].contains(&payload.ether_type);
            is_ip.then(|| wanted(payload.payload)).flatten()
        })
    }

    /// Sends an IP packet and waits for an answer.
    ///
    /// # Errors
    ///
    /// As [`Self::send`] and [`Self::receive`].
    pub fn exchange<T>(
        &self,
        packet: &[u8],
        what: &str,
        wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        self.send(packet)?;
        self.receive(what, wanted)
    }

    fn is_ethernet(&self) -> bool {
        self.device.hatype() == libc::ARPHRD_ETHER
    }

    /// The next frame that the device received, if one waits.
    fn next_frame<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        loop {
            let (length, address) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok((length, address)) => (length, address.context("a frame without an address")?),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(io::Error::from(error)).context("receive a frame"),
            };
            // Before it was bound, the socket got the frames of all devices.
            if address.ifindex() == self.device.ifindex() && address.pkttype() != libc::PACKET_OUTGOING {
                return Ok(Some(&buffer[..length]));
            }
        }
    }
}

/// The address of a device of this thread's namespace, for packet sockets.
fn link_address(device: &str) -> Result<LinkAddr> {
    getifaddrs()
        .context("list the devices")?
        .filter(|found| found.interface_name == device)
        .find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("there is no device {device}"))
}
