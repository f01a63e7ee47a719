//! The packet that an ICMP error quotes.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::message::Message;
use super::{IPV4_CHECKSUM, patch};
use crate::checksum::Sum;
use crate::layout::{Flow, FlowKey};
use crate::net::{Port, protocol};
use crate::packet::Packet;
use crate::parse::{self, FRAGMENT_LENGTH, FRAGMENT6_OFFSET, IpHeader, PLAIN_IPV4, extension};

/// Minimum number of bytes of a transport header that an error quotes (RFC 792).
const QUOTED: u32 = 8;

/// The packet that an error quotes.
#[derive(Clone, Copy)]
pub(super) struct Quotation<A> {
    /// The key of packets that travel in the direction of the error: the quoted addresses and ports
    /// reversed.
    pub(super) key: FlowKey<A>,
    /// Offset of the quoted transport header.
    pub(super) transport: u32,
}

impl<A: IpHeader> Quotation<A> {
    #[inline(always)]
    pub(super) fn parse(packet: &impl Packet, message: &Message<A>, hook: u8) -> Option<Self> {
        let network = message.quotation();
        let mut transport = network + A::HEADER_LENGTH;
        let protocol = if A::IS_IPV6 {
            let header = packet.view::<{ Ipv6Hdr::LEN }>(network)?;
            match header.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() {
                extension::FRAGMENT => {
                    let fragment = packet.view::<{ FRAGMENT_LENGTH as usize }>(transport)?;
                    if fragment.u16::<2>() & FRAGMENT6_OFFSET != 0 {
                        return None;
                    }
                    transport += FRAGMENT_LENGTH;
                    fragment.u8::<0>()
                }
                next => next,
            }
        } else {
            let header = packet.view::<{ Ipv4Hdr::LEN }>(network)?;
            if header.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() != PLAIN_IPV4
                || parse::is_later_fragment4(header.u16::<{ offset_of!(Ipv4Hdr, frags) }>())
            {
                return None;
            }
            header.u8::<{ offset_of!(Ipv4Hdr, proto) }>()
        };
        if !matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
            return None;
        }
        // Bytes behind the message are padding of the frame.
        if transport + QUOTED > message.end() {
            return None;
        }
        let ports = packet.view::<{ QUOTED as usize }>(transport)?;
        let [source_port, destination_port] =
            [ports.u16::<0>(), ports.u16::<2>()].map(|port| Port::from_bytes(port.to_ne_bytes()));
        Some(Self {
            key: FlowKey {
                source: A::read(packet, network + A::DESTINATION_OFFSET)?,
                destination: A::read(packet, network + A::SOURCE_OFFSET)?,
                source_port: destination_port,
                destination_port: source_port,
                protocol,
                hook,
                pad: 0,
            },
            transport,
        })
    }
}

/// Offsets of checksums in their headers.
const UDP_CHECKSUM: u32 = 6;

const TCP_CHECKSUM: u32 = 16;

/// Gives a quoted packet the addresses and ports that its sender used. Returns the difference that
/// this makes to the checksum over the quotation.
#[inline(always)]
pub(super) fn rewrite_quotation<A: IpHeader>(
    packet: &mut impl Packet,
    message: &Message<A>,
    quotation: &Quotation<A>,
    flow: &Flow<A>,
) -> Option<Sum> {
    let Quotation { key, transport } = quotation;
    let network = message.quotation();
    let addresses = flow.address_difference();
    let old_ports = key.reversed(key.hook).ports_word();
    let new_ports = flow.peer_key(key.protocol).ports_word();
    let mut difference = addresses.replace(old_ports, new_ports);
    // The quoted packet's own checksums compensate for the fields that they cover. The transport
    // checksum may not be quoted (padding of the frame may be in its place), and a UDP packet may
    // have none.
    let transport_checksum = match key.protocol {
        protocol::TCP => Some(transport + TCP_CHECKSUM),
        protocol::UDP => Some(transport + UDP_CHECKSUM),
        _ => None,
    };
    if let Some(offset) = transport_checksum
        && offset + size_of::<u16>() as u32 <= message.end()
        && let Some(field) = packet.view::<2>(offset).map(|field| field.u16::<0>())
        && (key.protocol == protocol::TCP || field != 0)
    {
        let zero = if key.protocol == protocol::UDP { 0xffff } else { 0 };
        difference = difference.join(patch(packet, offset, difference, zero)?);
    }
    if !A::IS_IPV6 {
        difference = difference.join(patch(packet, network + IPV4_CHECKSUM, addresses, 0)?);
    }
    flow.destination.write(packet, network + A::SOURCE_OFFSET)?;
    flow.source.write(packet, network + A::DESTINATION_OFFSET)?;
    packet.write(*transport, &[new_ports])?;
    Some(difference)
}
