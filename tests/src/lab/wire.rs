//! Packets that a test builds itself, on real devices.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etherparse::{EtherType, Ethernet2Header, SlicedPacket};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv, recvfrom,
    send, setsockopt, socket, sockopt,
};

use super::address::LEAF_GATEWAY_MAC;
use super::capture::RECEIVE_BUFFER;
use super::link::LEAF_DEVICE;
use super::machine::Machine;
use super::namespace::Namespace;
use super::wait::wait_for;

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A packet socket on a device. A test sends any frame through it and sees every frame that the
/// device receives, in addition to the kernel. For packets that no kernel sends, or that this
/// kernel does not support, like SCTP.
///
/// Checksums of frames from a kernel may be incomplete: [`super::Capture`] detects that.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    index: u32,
    /// The device's own address, if it has Ethernet headers.
    ethernet: Option<[u8; 6]>,
}

impl Machine {
    /// Opens the device of a Pod or an outside client. The kernel receives its packets as well: use
    /// [`Machine::phantom`] or [`super::Node::silent_pod`] to prevent answers from the kernel.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn wire(&self) -> Result<Wire> {
        Wire::open(self.namespace(), LEAF_DEVICE)
    }
}

impl Wire {
    /// Opens a device. Frames received from now on are seen.
    ///
    /// # Errors
    ///
    /// If there is no such device or the kernel refuses.
    pub fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        namespace.run(|| {
            let index = if_nametoindex(device).with_context(|| format!("there is no device {device}"))?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
                .context("make a packet socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
                .context("enlarge the receive buffer")?;
            bind(socket.as_raw_fd(), &everything_of(index)?).context("bind a packet socket")?;
            Ok(Self {
                socket,
                index,
                ethernet: ethernet_address(device)?,
            })
        })
    }

    /// Sends a frame as it is: with its Ethernet header, if the device has one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, for example because the frame exceeds the device's MTU.
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
        let Some(source) = self.ethernet else {
            return self.send_frame(packet);
        };
        let ether_type = match packet.first().context("an empty packet")? >> 4 {
            4 => EtherType::IPV4,
            6 => EtherType::IPV6,
            version => bail!("IP version {version}"),
        };
        let header = Ethernet2Header {
            source,
            destination: LEAF_GATEWAY_MAC.0,
            ether_type,
        };
        let mut frame = header.to_bytes().to_vec();
        frame.extend(packet);
        self.send_frame(&frame)
    }

    /// Drops all waiting frames and returns the length of the largest one; 0 if none is waiting.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn largest_frame(&self) -> Result<usize> {
        let mut largest = 0;
        loop {
            // The length is that of the frame, not of the buffer.
            match recv(self.socket.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_TRUNC) {
                Ok(length) => largest = largest.max(length),
                Err(Errno::EAGAIN) => return Ok(largest),
                Err(error) => return Err(io::Error::from(error)).context("receive a frame"),
            }
        }
    }

    /// Waits for a frame for which `wanted` returns a value, and returns the value. Other frames
    /// are dropped.
    ///
    /// # Errors
    ///
    /// If there is none for some seconds. `what` describes it in the message.
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
    /// If there is none for some seconds. `what` describes it in the message.
    pub fn receive<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        self.receive_frame(what, |frame| {
            if self.ethernet.is_none() {
                return wanted(frame);
            }
            let sliced = SlicedPacket::from_ethernet(frame).ok()?;
            let payload = sliced.ether_payload()?;
            let is_ip = [EtherType::IPV4, EtherType::IPV6].contains(&payload.ether_type);
            is_ip.then(|| wanted(payload.payload)).flatten()
        })
    }

    /// The first value that `wanted` returns for the waiting frames. The frames before that one are
    /// dropped.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn receive_now<T>(&self, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Result<Option<T>> {
        let mut buffer = vec![0; usize::from(u16::MAX) + 64];
        while let Some(frame) = self.next_frame(&mut buffer)? {
            if let Some(value) = wanted(frame) {
                return Ok(Some(value));
            }
        }
        Ok(None)
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

    /// The next frame that the device received, if one is waiting.
    fn next_frame<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        loop {
            let (length, address) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok((length, address)) => (length, address.context("a frame without an address")?),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(io::Error::from(error)).context("receive a frame"),
            };
            // Before it was bound, the socket received the frames of all devices.
            if u32::try_from(address.ifindex()) == Ok(self.index)
                && address.pkttype() != libc::PACKET_OUTGOING
            {
                return Ok(Some(&buffer[..length]));
            }
        }
    }
}

/// The address of a device of this thread's namespace, if it has Ethernet headers.
fn ethernet_address(device: &str) -> Result<Option<[u8; 6]>> {
    let mut addresses = getifaddrs().context("list the devices")?.filter_map(|found| {
        let address = *found.address?.as_link_addr()?;
        let is_ethernet = address.hatype() == libc::ARPHRD_ETHER;
        (found.interface_name == device && is_ethernet).then(|| address.addr())
    });
    Ok(addresses.next().flatten())
}

/// The address to which a packet socket is bound to receive every frame of a device.
#[expect(unsafe_code, reason = "nix builds such addresses only from raw ones")]
fn everything_of(index: u32) -> Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: u16::try_from(libc::ETH_P_ALL)?.to_be(),
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: the pointer refers to an address of this family and length.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    address.context("no address of a packet socket")
}
