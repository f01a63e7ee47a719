//! Builds the packet as it would arrive: Ethernet, IP and transport headers with correct checksums,
//! no payload.

use std::net::IpAddr;

use lb_common::checksum::Sum;
use lb_common::net::protocol;
use lb_common::net::tcp_flags;
use lb_common::parse::BEHIND_ETHERNET;

use super::question::{PacketProtocol, Question};

/// Offset of the IP header.
pub(super) const NETWORK: u32 = BEHIND_ETHERNET;

/// Common initial hop limit of senders.
const HOP_LIMIT: u8 = 64;

/// Builds the packet: the first packet of a connection or a later one.
pub(super) fn build(question: &Question, is_first: bool) -> Vec<u8> {
    let transport = transport(question, is_first);
    let mut bytes = vec![0; 12];
    let payload = u16::try_from(transport.len()).unwrap_or(u16::MAX);
    let number = number(question);
    match (question.source.ip(), question.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend_from_slice(&[0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&(20 + payload).to_be_bytes());
            header.extend_from_slice(&[0, 0, 0, 0, HOP_LIMIT, number, 0, 0]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            let checksum = sum(&header).finish();
            put(&mut header, 10, checksum);
            bytes.extend_from_slice(&header);
        }
        (source, destination) => {
            bytes.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend_from_slice(&payload.to_be_bytes());
            bytes.extend_from_slice(&[number, HOP_LIMIT]);
            bytes.extend_from_slice(&octets(source));
            bytes.extend_from_slice(&octets(destination));
        }
    }
    bytes.extend_from_slice(&transport);
    bytes
}

/// The protocol number in the IP header.
pub(super) fn number(question: &Question) -> u8 {
    match (question.protocol, question.destination.is_ipv4()) {
        (PacketProtocol::Tcp, _) => protocol::TCP,
        (PacketProtocol::Udp, _) => protocol::UDP,
        (PacketProtocol::Sctp, _) => protocol::SCTP,
        (PacketProtocol::Icmp, true) => protocol::ICMP,
        (PacketProtocol::Icmp, false) => protocol::ICMPV6,
    }
}

fn transport(question: &Question, is_first: bool) -> Vec<u8> {
    const WINDOW: [u8; 2] = [0xfa, 0xf0];
    const SCTP_INIT: u8 = 1;
    const SCTP_DATA: u8 = 0;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&question.source.port().to_be_bytes());
    bytes.extend_from_slice(&question.destination.port().to_be_bytes());
    let checksum = match question.protocol {
        PacketProtocol::Tcp => {
            let flags = if is_first { tcp_flags::SYN } else { tcp_flags::ACK };
            bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, u8::from(!is_first), 0x50, flags]);
            bytes.extend_from_slice(&WINDOW);
            bytes.extend_from_slice(&[0; 4]);
            16
        }
        PacketProtocol::Udp => {
            bytes.extend_from_slice(&[0, 8, 0, 0]);
            6
        }
        PacketProtocol::Sctp => {
            let chunk = if is_first { SCTP_INIT } else { SCTP_DATA };
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(&[chunk, 0, 0, 4]);
            // The checksum (CRC32c) is neither read nor changed.
            return bytes;
        }
        PacketProtocol::Icmp => {
            let echo = if question.destination.is_ipv4() { 8 } else { 128 };
            // Identifier and sequence number.
            bytes = vec![echo, 0, 0, 0, 0, 1, 0, 1];
            2
        }
    };
    let mut all = sum(&bytes);
    if question.protocol != PacketProtocol::Icmp || question.destination.is_ipv6() {
        all = all.join(pseudo_header(question, bytes.len()));
    }
    put(&mut bytes, checksum, all.finish());
    bytes
}

/// The checksum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo_header(question: &Question, length: usize) -> Sum {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    sum(&octets(question.source.ip()))
        .join(sum(&octets(question.destination.ip())))
        .add(length.to_be())
        .add(u32::from(number(question)).to_be())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sum of the complete 32-bit words.
fn sum(bytes: &[u8]) -> Sum {
    let words = bytes.chunks_exact(4);
    words.fold(Sum::new(), |sum, word| {
        let [a, b, c, d] = *word else { return sum };
        sum.add(u32::from_ne_bytes([a, b, c, d]))
    })
}

fn put(bytes: &mut [u8], offset: usize, checksum: u16) {
    if let Some(field) = bytes.get_mut(offset..offset + 2) {
        field.copy_from_slice(&checksum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use lb_common::host::Bytes;
    use lb_common::layout::hook;
    use lb_common::parse;

    use super::*;

    fn question(protocol: PacketProtocol, source: &str, destination: &str) -> Question {
        Question {
            protocol,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn built_packets_parse_to_the_requested_addresses_and_ports() {
        use PacketProtocol::{Sctp, Tcp, Udp};
        for protocol in [Tcp, Udp, Sctp] {
            for is_first in [true, false] {
                let v4 = question(protocol, "10.0.0.1:1000", "10.0.0.2:80");
                let parsed = parse::ipv4(&Bytes::from(build(&v4, is_first)), NETWORK, hook::INGRESS_INSIDE)
                    .expect("a packet");
                assert_eq!(
                    (parsed.key.source_port.get(), parsed.key.destination_port.get()),
                    (1000, 80)
                );
                assert_eq!(IpAddr::from(parsed.key.destination), v4.destination.ip());
                assert_eq!(parsed.is_syn(), is_first && protocol != Udp);
                let v6 = question(protocol, "[fd00::1]:1000", "[fd00::2]:80");
                let parsed = parse::ipv6(&Bytes::from(build(&v6, is_first)), NETWORK, hook::INGRESS_INSIDE)
                    .expect("a packet");
                assert_eq!(IpAddr::from(parsed.key.source), v6.source.ip());
            }
        }
    }

    #[test]
    fn built_packets_have_correct_checksums() {
        use PacketProtocol::{Icmp, Tcp, Udp};
        for protocol in [Tcp, Udp, Icmp] {
            let v4 = question(protocol, "10.0.0.1:1000", "10.0.0.2:80");
            let bytes = build(&v4, true);
            assert_eq!(sum(&bytes[14..34]).finish(), 0, "{bytes:02x?}");
            let v6 = question(protocol, "[fd00::1]:1000", "[fd00::2]:80");
            for (question, start) in [(v4, 34), (v6, 54)] {
                let bytes = build(&question, true);
                let mut all = sum(&bytes[start..]);
                if protocol != Icmp || start == 54 {
                    all = all.join(pseudo_header(&question, bytes.len() - start));
                }
                assert_eq!(all.finish(), 0, "{bytes:02x?}");
            }
        }
    }
}
