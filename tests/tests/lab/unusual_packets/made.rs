//! Packets that a test builds, and parsers for the packets that it receives.

use std::net::IpAddr;

use etherparse::{IpHeaders, IpNumber, IpSlice, LaxIpSlice, PacketBuilder, PacketBuilderStep};

use super::SILENT_UDP;

/// Payload of datagrams.
const PAYLOAD: &[u8] = b"payload";

/// A packet with this hop limit and transport header.
fn packet(source: IpAddr, destination: IpAddr, limit: u8) -> PacketBuilderStep<IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), limit)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), limit)
        }
        _ => panic!("{source} and {destination}"),
    }
}

pub(crate) fn udp(source: IpAddr, destination: IpAddr, limit: u8, source_port: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet(source, destination, limit)
        .udp(source_port, SILENT_UDP.port)
        .write(&mut bytes, PAYLOAD)
        .unwrap();
    bytes
}

pub(crate) fn sctp_packet(source: IpAddr, destination: IpAddr, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet(source, destination, 64)
        .write(&mut bytes, IpNumber::SCTP, content)
        .unwrap();
    bytes
}

/// Ports, verification tag, checksum, and arbitrary bytes as a chunk.
pub(crate) fn sctp_chunk(source_port: u16, destination_port: u16, chunk: &[u8]) -> Vec<u8> {
    let mut bytes = source_port.to_be_bytes().to_vec();
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.extend(chunk);
    bytes
}

/// Returns source, destination and payload of an SCTP packet.
pub(crate) fn read_sctp(packet: &[u8]) -> Option<(IpAddr, IpAddr, Vec<u8>)> {
    let ip = IpSlice::from_slice(packet).ok()?;
    let payload = ip.payload();
    (payload.ip_number == IpNumber::SCTP)
        .then(|| (ip.source_addr(), ip.destination_addr(), payload.payload.to_vec()))
}

pub(crate) fn hop_limit(ip: &IpSlice<'_>) -> u8 {
    match ip {
        IpSlice::Ipv4(ip) => ip.header().ttl(),
        IpSlice::Ipv6(ip) => ip.header().hop_limit(),
    }
}

/// Source, destination and the first 8 bytes of the transport header.
pub(crate) type Headers = (IpAddr, IpAddr, Vec<u8>);

/// The headers of a packet of [`udp`].
pub(crate) fn udp_headers(source: IpAddr, destination: IpAddr, source_port: u16) -> Headers {
    let packet = udp(source, destination, 64, source_port);
    let header = &packet[packet.len() - 8 - PAYLOAD.len()..][..8];
    (source, destination, header.to_vec())
}

/// Type and code, first for ICMP, then for ICMPv6.
pub(crate) type Kinds = [[u8; 2]; 2];

pub(crate) const HOP_LIMIT_EXCEEDED: Kinds = [[11, 0], [3, 0]];
pub(crate) const PORT_UNREACHABLE: Kinds = [[3, 3], [1, 4]];

/// Returns the headers that an ICMP message of this type and code quotes.
pub(crate) fn quotation(packet: &[u8], kinds: Kinds) -> Option<Headers> {
    let ip = IpSlice::from_slice(packet).ok()?;
    let kind = match ip.payload().ip_number {
        IpNumber::ICMP => kinds[0],
        IpNumber::IPV6_ICMP => kinds[1],
        _ => return None,
    };
    let message = ip.payload().payload;
    // The message may quote only the beginning of the packet.
    let (quoted, _) = LaxIpSlice::from_slice(&message[8..]).ok()?;
    let headers = || {
        let header = quoted.payload().payload.get(..8)?;
        Some((quoted.source_addr(), quoted.destination_addr(), header.to_vec()))
    };
    (message[..2] == kind).then(headers).flatten()
}
