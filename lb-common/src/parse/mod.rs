//! Parses the first bytes of a frame into addresses, ports and offsets.
//!
//! Packets that are not TCP, UDP or SCTP over IP, or that are truncated or malformed, are not
//! parsed. Fragments have a separate parser, so that other packets do not pay for it.
pub(crate) mod extension;
mod fragment;
mod transport;

use core::mem::offset_of;

use network_types::eth::{EthHdr, EtherType};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::Address;
use crate::layout::FlowKey;
use crate::net::{Address4, Address6, protocol, tcp_flags};
use crate::packet::{Headers, Packet, Part};

use self::extension::skip_extensions;
pub(crate) use self::fragment::{
    FRAGMENT_LENGTH, FRAGMENT6_OFFSET, PLAIN_IPV4, is_fragment4, is_later_fragment4,
};
pub use self::fragment::{FragmentHeader, fragment4, fragment6};
pub(crate) use self::transport::{TCP_ACKNOWLEDGEMENT, TCP_DATA_OFFSET, TCP_SEQUENCE, transport};

/// A TCP, UDP or SCTP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed<A> {
    /// Addresses and ports: the key of the packet's flow.
    pub key: FlowKey<A>,
    /// Offsets.
    pub headers: Headers,
}

impl<A> Parsed<A> {
    /// Returns true if the packet requests a new connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.headers.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }
}

/// What follows the Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetworkHeader {
    /// An IPv4 header.
    V4,
    /// An IPv6 header.
    V6,
    /// Something else.
    Other,
}

/// Offset of the IP header in packets with an Ethernet header.
pub const BEHIND_ETHERNET: u32 = EthHdr::LEN as u32;

/// The network layer of an ethertype in network byte order.
#[inline(always)]
pub fn network_of(ethertype: u16) -> NetworkHeader {
    const IPV4: u16 = EtherType::Ipv4 as u16;
    const IPV6: u16 = EtherType::Ipv6 as u16;
    match ethertype {
        IPV4 => NetworkHeader::V4,
        IPV6 => NetworkHeader::V6,
        _ => NetworkHeader::Other,
    }
}

/// The network layer behind an Ethernet header.
///
/// Packets with VLAN tags are not parsed: they belong to a VLAN device, whose programs see them
/// without the tags. XDP leaves a tag that belongs to no VLAN to TC. Before TC, the kernel removes
/// the tag from the frame.
#[inline(always)]
pub fn network(packet: &impl Packet) -> NetworkHeader {
    packet
        .view::<{ EthHdr::LEN }>(0)
        .map_or(NetworkHeader::Other, |ethernet| {
            network_of(ethernet.u16::<{ offset_of!(EthHdr, ether_type) }>())
        })
}

/// The number of bytes after `offset`, according to a length field (network byte order).
///
/// In a packet that is cut into segments when it is sent, 0 means more than the field can hold
/// ("BIG TCP", `iph_totlen` in <https://github.com/torvalds/linux/blob/v6.18/include/linux/ip.h>).
/// The length then ends with the packet. In IPv6, Linux 6.18 adds a hop-by-hop header with a jumbo
/// payload option (RFC 2675), which is skipped like any other.
#[inline(always)]
fn length_after(packet: &impl Packet, offset: u32, length_field: u16) -> u32 {
    if length_field == 0 && packet.segment_size() != 0 {
        packet.length().saturating_sub(offset)
    } else {
        u32::from(u16::from_be(length_field))
    }
}

/// Parses a transport header over IPv4 at `offset` of a packet seen at `hook` (see
/// [`crate::layout::hook`]).
#[inline(always)]
pub fn ipv4(packet: &impl Packet, offset: u32, hook: u8) -> Option<Parsed<Address4>> {
    let header = packet.view::<{ Ipv4Hdr::LEN }>(offset)?;
    let version_and_length = header.u8::<{ offset_of!(Ipv4Hdr, vihl) }>();
    let header_length = u32::from(version_and_length & 0xf) * 4;
    if version_and_length >> 4 != 4 || header_length < Ipv4Hdr::LEN as u32 {
        return None;
    }
    if is_fragment4(header.u16::<{ offset_of!(Ipv4Hdr, frags) }>()) {
        return None;
    }
    let length_field = header.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>();
    let ip_length = length_after(packet, offset, length_field);
    if offset + ip_length > packet.length() {
        return None;
    }
    let room = ip_length.checked_sub(header_length)?;
    let protocol = header.u8::<{ offset_of!(Ipv4Hdr, proto) }>();
    let transport = transport(packet, offset + header_length, protocol, room)?;
    Some(Parsed {
        key: FlowKey::new(
            Address4::from_word(header.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>()),
            Address4::from_word(header.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>()),
            transport.ports,
            protocol,
            hook,
        ),
        headers: Headers {
            network: offset,
            transport: offset + header_length,
            ip_length,
            tcp_flags: transport.tcp_flags,
            part: Part::Whole,
        },
    })
}

/// Parses a transport header over IPv6 at `offset`, behind any extension headers, of a packet seen
/// at `hook`.
#[inline(always)]
pub fn ipv6(packet: &impl Packet, offset: u32, hook: u8) -> Option<Parsed<Address6>> {
    let header = packet.view::<{ Ipv6Hdr::LEN }>(offset)?;
    if header.u8::<0>() >> 4 != 6 {
        return None;
    }
    let payload = offset + Ipv6Hdr::LEN as u32;
    let length_field = header.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>();
    let payload_length = length_after(packet, payload, length_field);
    if payload + payload_length > packet.length() {
        return None;
    }
    let (extensions, protocol) = match header.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>() {
        next @ (protocol::TCP | protocol::UDP | protocol::SCTP) => (0, next),
        next => skip_extensions(packet, payload, next).get()?,
    };
    let start = payload + extensions;
    let transport = transport(packet, start, protocol, payload_length.checked_sub(extensions)?)?;
    const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
    Some(Parsed {
        key: FlowKey::new(
            Address6::from_words([
                header.u32::<SOURCE>(),
                header.u32::<{ SOURCE + 4 }>(),
                header.u32::<{ SOURCE + 8 }>(),
                header.u32::<{ SOURCE + 12 }>(),
            ]),
            Address6::from_words([
                header.u32::<DESTINATION>(),
                header.u32::<{ DESTINATION + 4 }>(),
                header.u32::<{ DESTINATION + 8 }>(),
                header.u32::<{ DESTINATION + 12 }>(),
            ]),
            transport.ports,
            protocol,
            hook,
        ),
        headers: Headers {
            network: offset,
            transport: start,
            ip_length: Ipv6Hdr::LEN as u32 + payload_length,
            tcp_flags: transport.tcp_flags,
            part: Part::Whole,
        },
    })
}

/// Parses and writes the headers of one IP version.
pub trait IpHeader: Address {
    /// Parses a whole packet with its IP header at `network`, seen at `hook` (see
    /// [`crate::layout::hook`]).
    fn parse(packet: &impl Packet, network: u32, hook: u8) -> Option<Parsed<Self>>;

    /// Parses a fragment with its IP header at `network`.
    fn parse_fragment(packet: &impl Packet, network: u32) -> Option<FragmentHeader>;

    /// The address at `offset` of a packet.
    fn read(packet: &impl Packet, offset: u32) -> Option<Self>;

    /// Writes the address at `offset` of a packet, leaving all checksums to the caller.
    fn write(self, packet: &mut impl Packet, offset: u32) -> Option<()>;
}

impl IpHeader for Address4 {
    #[inline(always)]
    fn parse(packet: &impl Packet, network: u32, hook: u8) -> Option<Parsed<Self>> {
        ipv4(packet, network, hook)
    }

    #[inline(always)]
    fn parse_fragment(packet: &impl Packet, network: u32) -> Option<FragmentHeader> {
        fragment4(packet, network)
    }

    #[inline(always)]
    fn read(packet: &impl Packet, offset: u32) -> Option<Self> {
        Some(Self::from_word(packet.view::<4>(offset)?.u32::<0>()))
    }

    #[inline(always)]
    fn write(self, packet: &mut impl Packet, offset: u32) -> Option<()> {
        packet.write(offset, &[self.to_word()])
    }
}

impl IpHeader for Address6 {
    #[inline(always)]
    fn parse(packet: &impl Packet, network: u32, hook: u8) -> Option<Parsed<Self>> {
        ipv6(packet, network, hook)
    }

    #[inline(always)]
    fn parse_fragment(packet: &impl Packet, network: u32) -> Option<FragmentHeader> {
        fragment6(packet, network)
    }

    #[inline(always)]
    fn read(packet: &impl Packet, offset: u32) -> Option<Self> {
        let view = packet.view::<16>(offset)?;
        Some(Self::from_words([
            view.u32::<0>(),
            view.u32::<4>(),
            view.u32::<8>(),
            view.u32::<12>(),
        ]))
    }

    #[inline(always)]
    fn write(self, packet: &mut impl Packet, offset: u32) -> Option<()> {
        packet.write(offset, &self.to_words())
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::{NetworkHeader, Parsed, ipv4, ipv6, network, tcp_flags};
    use crate::host::Bytes;
    use crate::layout::{FlowKey, hook};
    use crate::net::{Address4, Address6, Port, protocol};
    use proptest::prelude::*;

    /// The payload of an IP header: ports 1 and 2, a TCP header of five words with SYN, and four
    /// bytes.
    const TCP: [u8; 24] = [
        0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9,
    ];

    fn packet4(transport: &[u8], protocol: u8) -> Vec<u8> {
        let [high, low] = ((20 + transport.len()) as u16).to_be_bytes();
        let mut bytes = vec![
            0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        bytes.extend_from_slice(transport);
        bytes
    }

    fn packet6(payload: &[u8], next: u8) -> Vec<u8> {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        let mut bytes = vec![0x60, 0, 0, 0, high, low, next, 64];
        bytes.extend_from_slice(&[1; 16]);
        bytes.extend_from_slice(&[2; 16]);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn parse4(bytes: &[u8]) -> Option<Parsed<Address4>> {
        ipv4(&Bytes::from(bytes.to_vec()), 0, hook::EGRESS)
    }

    fn parse6(bytes: &[u8]) -> Option<Parsed<Address6>> {
        ipv6(&Bytes::from(bytes.to_vec()), 0, hook::INGRESS_INSIDE)
    }

    #[test]
    fn tcp_over_ipv4_is_parsed() {
        let parsed = parse4(&packet4(&TCP, protocol::TCP)).unwrap();
        let key = FlowKey {
            source: Address4::from_bytes([10, 0, 0, 1]),
            destination: Address4::from_bytes([10, 0, 0, 2]),
            source_port: Port::new(1),
            destination_port: Port::new(2),
            protocol: protocol::TCP,
            hook: hook::EGRESS,
            pad: 0,
        };
        assert_eq!(parsed.key, key);
        assert_eq!((parsed.headers.transport, parsed.headers.ip_length), (20, 44));
        assert_eq!(parsed.headers.tcp_flags, tcp_flags::SYN);
        assert!(parsed.is_syn());
    }

    #[test]
    fn udp_over_ipv6_is_parsed() {
        let parsed = parse6(&packet6(&TCP[..8], protocol::UDP)).unwrap();
        assert_eq!(
            parsed.key.source,
            Address6::from_words([u32::from_ne_bytes([1; 4]); 4])
        );
        assert_eq!(
            parsed.key.destination,
            Address6::from_words([u32::from_ne_bytes([2; 4]); 4])
        );
        assert_eq!(
            (parsed.key.source_port.get(), parsed.key.destination_port.get()),
            (1, 2)
        );
        assert_eq!((parsed.headers.transport, parsed.headers.ip_length), (40, 48));
        assert_eq!(parsed.headers.tcp_flags, 0);
    }

    #[test]
    fn a_syn_with_ack_requests_no_connection() {
        let mut bytes = packet4(&TCP, protocol::TCP);
        bytes[33] = tcp_flags::SYN | tcp_flags::ACK;
        assert!(!parse4(&bytes).unwrap().is_syn());
    }

    /// BIG TCP: the length of a packet that is cut into segments is that of the packet itself.
    #[test]
    fn a_packet_of_segments_with_length_0_is_parsed_to_its_end() {
        let segments = |bytes: Vec<u8>, size| Bytes {
            segment_size: size,
            ..Bytes::from(bytes)
        };
        let mut bytes = packet4(&[&TCP[..], &[7; 70_000]].concat(), protocol::TCP);
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[2..4].fill(0);
        let headers = ipv4(&segments(bytes.clone(), 1448), 0, hook::INGRESS_INSIDE)
            .unwrap()
            .headers;
        assert_eq!((headers.transport, headers.ip_length), (20, length));
        assert_eq!(ipv4(&segments(bytes, 0), 0, hook::INGRESS_INSIDE), None);

        // A jumbo payload option.
        let option = [protocol::TCP, 0, 0xc2, 4, 0, 1, 0x11, 0x88];
        for extension in [&[][..], &option] {
            let payload = [extension, &TCP, &[7; 70_000]].concat();
            let next = if extension.is_empty() { protocol::TCP } else { 0 };
            let mut bytes = packet6(&payload, next);
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[4..6].fill(0);
            let headers = ipv6(&segments(bytes.clone(), 1428), 0, hook::EGRESS)
                .unwrap()
                .headers;
            let transport = 40 + u32::try_from(extension.len()).unwrap();
            assert_eq!((headers.transport, headers.ip_length), (transport, length));
            assert_eq!(ipv6(&segments(bytes, 0), 0, hook::EGRESS), None);
        }
    }

    #[test]
    fn ipv4_options_move_the_transport_header() {
        let mut bytes = packet4(&TCP, protocol::TCP);
        bytes[0] = 0x46;
        bytes[3] += 4;
        bytes.splice(20..20, [1; 4]);
        assert_eq!(parse4(&bytes).unwrap().headers.transport, 24);
    }

    #[test]
    fn truncated_packets_are_not_parsed() {
        for bytes in [packet4(&TCP, protocol::TCP), packet4(&TCP[..8], protocol::UDP)] {
            assert!(parse4(&bytes).is_some());
            for length in 0..bytes.len() {
                assert_eq!(parse4(&bytes[..length]), None, "{length}");
            }
        }
        for bytes in [packet6(&TCP, protocol::TCP), packet6(&TCP[..8], protocol::UDP)] {
            assert!(parse6(&bytes).is_some());
            for length in 0..bytes.len() {
                assert_eq!(parse6(&bytes[..length]), None, "{length}");
            }
        }
    }

    #[test]
    fn malformed_ipv4_packets_are_not_parsed() {
        // Byte and a value that makes the packet invalid: version, header length, total length,
        // fragment offset, more fragments, protocol, TCP header length.
        let cases = [
            (0, 0x65),
            (0, 0x44),
            (0, 0x4f),
            (2, 1),
            (3, 19),
            (3, 39),
            (7, 1),
            (6, 0x20),
            (9, 1),
            (32, 0x40),
            (32, 0x70),
        ];
        for (at, value) in cases {
            let mut bytes = packet4(&TCP, protocol::TCP);
            bytes[at] = value;
            assert_eq!(parse4(&bytes), None, "{at} {value}");
        }
    }

    #[test]
    fn a_packet_with_the_do_not_fragment_flag_is_parsed() {
        let mut bytes = packet4(&TCP, protocol::TCP);
        bytes[6] = 0x40;
        assert!(parse4(&bytes).is_some());
    }

    #[test]
    fn malformed_ipv6_packets_are_not_parsed() {
        for (at, value) in [
            (0, 0x40),
            (4, 1),
            (5, 19),
            (6, 59),
            (6, 44),
            (52, 0x40),
            (52, 0x70),
        ] {
            let mut bytes = packet6(&TCP, protocol::TCP);
            bytes[at] = value;
            assert_eq!(parse6(&bytes), None, "{at} {value}");
        }
    }

    /// Extension headers of eight bytes before a TCP header, each with the number of the next one.
    fn extended(numbers: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        for next in numbers.iter().skip(1).chain([&protocol::TCP]) {
            payload.extend_from_slice(&[*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        payload.extend_from_slice(&TCP);
        packet6(&payload, numbers[0])
    }

    #[test]
    fn up_to_five_extension_headers_are_skipped() {
        for numbers in [&[0][..], &[43], &[60], &[0, 60, 43, 60, 60]] {
            let headers = parse6(&extended(numbers)).unwrap().headers;
            assert_eq!(headers.transport, 40 + 8 * u32::try_from(numbers.len()).unwrap());
        }
        // Too many headers, a fragment, encryption, no next header.
        for numbers in [&[60; 6][..], &[0, 44], &[50], &[59]] {
            assert_eq!(parse6(&extended(numbers)), None, "{numbers:?}");
        }
    }

    #[test]
    fn a_routing_header_with_segments_left_is_not_parsed() {
        let mut bytes = extended(&[43]);
        bytes[43] = 1;
        assert_eq!(parse6(&bytes), None);
        // In destination options the same byte is content.
        bytes[6] = 60;
        assert!(parse6(&bytes).is_some());
    }

    #[test]
    fn authentication_header_counts_words() {
        // 12 bytes of fixed fields and one word of check value, which is 4 words less 2.
        let mut payload = vec![protocol::TCP, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 7, 7, 7, 7];
        payload.extend_from_slice(&TCP);
        assert_eq!(parse6(&packet6(&payload, 51)).unwrap().headers.transport, 40 + 16);
    }

    #[test]
    fn the_network_layer_follows_from_the_ethertype() {
        let frame = |ethertype: u16| Bytes::from([vec![0; 12], ethertype.to_be_bytes().to_vec()].concat());
        assert_eq!(network(&frame(0x0800)), NetworkHeader::V4);
        assert_eq!(network(&frame(0x86dd)), NetworkHeader::V6);
        for other in [0x0806, 0x8100, 0x88a8] {
            assert_eq!(network(&frame(other)), NetworkHeader::Other);
        }
        assert_eq!(network(&Bytes::from(vec![0; 13])), NetworkHeader::Other);
    }

    proptest! {
        #[test]
        fn parsed_headers_are_inside_the_packet(bytes in prop::collection::vec(any::<u8>(), 0..120), version in prop::sample::select(vec![0x45_u8, 0x46, 0x60]), next in prop::sample::select(vec![0_u8, 6, 17, 43, 60])) {
            let mut bytes = bytes;
            for (at, value) in [(0, version), (2, 0), (4, 0), (6, if version == 0x60 { next } else { 0 }), (9, next)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let length = u32::try_from(bytes.len()).unwrap();
            let headers = match version {
                0x60 => parse6(&bytes).map(|parsed| parsed.headers),
                _ => parse4(&bytes).map(|parsed| parsed.headers),
            };
            if let Some(headers) = headers {
                prop_assert!(headers.transport + 8 <= headers.ip_length && headers.ip_length <= length);
            }
        }
    }
}
