//! TCP, UDP and SCTP headers.

use core::mem::offset_of;

use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::net::{Port, protocol, tcp_flags};
use crate::packet::Packet;

/// Ports and flags of a transport header.
pub(crate) struct Transport {
    /// Source and destination port as one word in header order.
    pub(crate) ports: u32,
    pub(crate) tcp_flags: u8,
}

impl Transport {
    /// Source and destination port.
    #[inline(always)]
    pub(crate) fn ports(&self) -> [Port; 2] {
        let [a, b, c, d] = self.ports.to_ne_bytes();
        [[a, b], [c, d]].map(Port::from_bytes)
    }
}

/// Reads the transport header at `offset`, for which the IP header leaves `room` bytes.
#[inline(always)]
pub(crate) fn transport(packet: &impl Packet, offset: u32, protocol: u8, room: u32) -> Option<Transport> {
    let (ports, tcp_flags) = match protocol {
        protocol::TCP if room >= TcpHdr::LEN as u32 => {
            let header = packet.view::<{ TcpHdr::LEN }>(offset)?;
            let length = u32::from(header.u8::<TCP_DATA_OFFSET>() >> 4) * 4;
            if length < TcpHdr::LEN as u32 || length > room {
                return None;
            }
            (header.u32::<0>(), header.u8::<TCP_FLAGS>())
        }
        protocol::UDP if room >= UdpHdr::LEN as u32 => {
            let header = packet.view::<{ UdpHdr::LEN }>(offset)?;
            (header.u32::<0>(), 0)
        }
        protocol::SCTP if room >= SCTP_LENGTH => {
            let header = packet.view::<{ SCTP_LENGTH as usize }>(offset)?;
            let flags = match header.u8::<SCTP_CHUNK_TYPE>() {
                sctp_chunk::INIT => tcp_flags::SYN,
                sctp_chunk::ABORT | sctp_chunk::SHUTDOWN_COMPLETE => tcp_flags::RST,
                _ => 0,
            };
            (header.u32::<0>(), flags)
        }
        _ => return None,
    };
    Some(Transport { ports, tcp_flags })
}

/// Length of the SCTP header and of the header of the first chunk (RFC 9260 section 3).
const SCTP_LENGTH: u32 = 12 + 4;

/// Offset of the first chunk's type.
const SCTP_CHUNK_TYPE: usize = 12;

/// Types of SCTP chunks that begin or end an association (RFC 9260 section 3.2).
mod sctp_chunk {
    pub(super) const INIT: u8 = 1;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Offset of the sequence number in a TCP header.
pub(crate) const TCP_SEQUENCE: u32 = offset_of!(TcpHdr, seq) as u32;

/// Offset of the acknowledgement number in a TCP header.
pub(crate) const TCP_ACKNOWLEDGEMENT: u32 = offset_of!(TcpHdr, ack_seq) as u32;

/// Offset of the byte whose upper half is the length of the TCP header in words.
pub(crate) const TCP_DATA_OFFSET: usize = 12;

/// Offset of the byte with the TCP flags.
const TCP_FLAGS: usize = 13;
