//! A packet socket that reports for each frame whether its checksum is complete.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, getsockopt, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

use super::check::{Frame, Unfinished};

sockopt_impl!(
    /// Prepends a `virtio_net_hdr` to each frame.
    PacketVnetHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    c_int
);

sockopt_impl!(
    /// Frame counters since the last call.
    PacketStatistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

/// Size of `virtio_net_hdr`: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset. The last
/// four have 16 bits in the machine's byte order.
const VNET_HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const NEEDS_CHECKSUM: u8 = 1;

/// The largest frame: an IP packet of 64 KiB with its Ethernet header and VLAN tags.
const LARGEST_FRAME: usize = 65536 + 64;

/// Size of the receive buffer in bytes: holds bursts of many frames of 64 KiB.
pub(in crate::lab) const RECEIVE_BUFFER: usize = 64 << 20;

/// Receives every frame of the namespace in which it was created, in both directions.
pub(super) struct PacketSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// A frame and where it was seen.
pub(super) struct Received<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) interface: u32,
    pub(super) outgoing: bool,
}

impl PacketSocket {
    pub(super) fn new() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .context("make a packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("enlarge the receive buffer")?;
        setsockopt(&socket, PacketVnetHeader, &1).context("PACKET_VNET_HDR")?;
        Ok(Self {
            socket,
            buffer: vec![0; VNET_HEADER + LARGEST_FRAME],
        })
    }

    /// The next frame, if one is waiting.
    pub(super) fn receive(&mut self) -> Result<Option<Received<'_>>> {
        let (length, address) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut self.buffer) {
            Ok((length, address)) => (length, address.context("a frame without an address")?),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            // The device went down.
            Err(Errno::ENETDOWN) => return Ok(None),
            Err(error) => return Err(io::Error::from(error)).context("receive a frame"),
        };
        if length < VNET_HEADER {
            bail!("a frame of {length} bytes");
        }
        let (header, bytes) = self.buffer[..length].split_at(VNET_HEADER);
        Ok(Some(Received {
            frame: Frame {
                bytes,
                ethernet: [libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK].contains(&address.hatype()),
                unfinished: unfinished(header),
            },
            interface: u32::try_from(address.ifindex()).context("an interface index")?,
            outgoing: address.pkttype() == libc::PACKET_OUTGOING,
        }))
    }

    /// The number of frames since the last call that did not fit into the buffer.
    pub(super) fn lost(&self) -> Result<u32> {
        Ok(getsockopt(&self.socket, PacketStatistics)
            .context("PACKET_STATISTICS")?
            .tp_drops)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unfinished(header: &[u8]) -> Option<Unfinished> {
    let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    (header[0] & NEEDS_CHECKSUM != 0).then(|| Unfinished {
        start: field(6),
        offset: field(8),
    })
}
