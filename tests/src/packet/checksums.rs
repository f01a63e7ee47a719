//! Finds all checksums of a packet, even if the packet is damaged.

use std::ops::Range;

/// A checksum in a packet.
#[derive(Clone, Debug)]
struct Checksum {
    /// Name of the header or protocol.
    name: &'static str,
    /// Place of the checksum field.
    field: Range<usize>,
    /// The parts of the packet that it covers, including the field itself.
    covered: [Range<usize>; 2],
    /// The sum of the covered values that are not in the packet (pseudo-header).
    beside: u32,
    /// Whether a value of 0 means that there is no checksum.
    is_optional: bool,
}

/// Names of the wrong checksums in an Ethernet frame, including those in the quotation of an ICMP
/// error.
pub fn faults(bytes: &[u8]) -> Vec<&'static str> {
    let wrong = checksums(bytes).into_iter().filter(|checksum| {
        let is_absent = checksum.is_optional && bytes[checksum.field.clone()] == [0, 0];
        !is_absent && !checksum.sum(bytes).is_multiple_of(0xffff)
    });
    wrong.map(|checksum| checksum.name).collect()
}

/// Corrects all checksums, inner ones first.
pub fn repair(bytes: &mut [u8]) {
    for checksum in checksums(bytes).iter().rev() {
        if checksum.is_optional && bytes[checksum.field.clone()] == [0, 0] {
            continue;
        }
        bytes[checksum.field.clone()].fill(0);
        let sum = 0xffff - checksum.sum(bytes) % 0xffff;
        let sum = u16::try_from(sum).expect("folded");
        bytes[checksum.field.clone()].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Checksum {
    fn sum(&self, bytes: &[u8]) -> u32 {
        let covered = self.covered.iter().map(|range| sum(&bytes[range.clone()]));
        self.beside + covered.sum::<u32>()
    }
}

/// The sum of big-endian 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    let halves = bytes.chunks(2);
    halves
        .map(|half| u32::from(half[0]) << 8 | u32::from(*half.get(1).unwrap_or(&0)))
        .sum()
}

/// All checksums, outer ones first.
fn checksums(bytes: &[u8]) -> Vec<Checksum> {
    let mut found = Vec::new();
    let mut network = 14;
    while matches!(bytes.get(network - 2..network), Some([0x81, 0x00] | [0x88, 0xa8])) {
        network += 4;
    }
    match bytes.get(network - 2..network) {
        Some([0x08, 0x00]) => ipv4(bytes, network, false, &mut found),
        Some([0x86, 0xdd]) => ipv6(bytes, network, false, &mut found),
        _ => None,
    };
    found
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([
        *bytes.get(at)?,
        *bytes.get(at + 1)?,
    ])))
}

/// Adds the checksums of an IPv4 packet at `network`. Returns `None` if there are no more.
fn ipv4(bytes: &[u8], network: usize, is_quoted: bool, found: &mut Vec<Checksum>) -> Option<()> {
    let header = usize::from(*bytes.get(network)? & 0xf) * 4;
    if bytes[network] >> 4 != 4 || header < 20 || network + header > bytes.len() {
        return None;
    }
    found.push(Checksum {
        name: if is_quoted { "quoted IPv4" } else { "IPv4" },
        field: network + 10..network + 12,
        covered: [0..0, network..network + header],
        beside: 0,
        is_optional: false,
    });
    let is_fragment = half(bytes, network + 6)? & 0x3fff != 0;
    let end = network + half(bytes, network + 2)?;
    if is_fragment || end > bytes.len() {
        return None;
    }
    let addresses = network + 12..network + 20;
    transport(
        bytes,
        bytes[network + 9],
        network + header..end,
        addresses,
        is_quoted,
        found,
    )
}

/// Adds the checksums of an IPv6 packet at `network`. Returns `None` if there are no more.
fn ipv6(bytes: &[u8], network: usize, is_quoted: bool, found: &mut Vec<Checksum>) -> Option<()> {
    if bytes.get(network)? >> 4 != 6 {
        return None;
    }
    let end = network + 40 + half(bytes, network + 4)?;
    if end > bytes.len() {
        return None;
    }
    let (mut next, mut start) = (*bytes.get(network + 6)?, network + 40);
    while matches!(next, 0 | 60) {
        next = *bytes.get(start)?;
        start += (usize::from(*bytes.get(start + 1)?) + 1) * 8;
    }
    let addresses = network + 8..network + 40;
    transport(bytes, next, start..end, addresses, is_quoted, found)
}

fn transport(
    bytes: &[u8],
    protocol: u8,
    content: Range<usize>,
    addresses: Range<usize>,
    is_quoted: bool,
    found: &mut Vec<Checksum>,
) -> Option<()> {
    let start = content.start;
    let length = content.end.checked_sub(start)?;
    let (name, field) = match protocol {
        1 => ("ICMP", 2),
        6 => ("TCP", 16),
        17 => ("UDP", 6),
        58 => ("ICMPv6", 2),
        _ => return None,
    };
    if length < field + 2 {
        return None;
    }
    let has_pseudo_header = protocol != 1;
    let covered = match has_pseudo_header {
        true => [addresses, content.clone()],
        false => [0..0, content.clone()],
    };
    let beside = match has_pseudo_header {
        true => u32::from(protocol) + u32::try_from(length).ok()?,
        false => 0,
    };
    found.push(Checksum {
        name: if is_quoted { "quoted transport" } else { name },
        field: start + field..start + field + 2,
        covered,
        beside,
        is_optional: protocol == 17,
    });
    // ICMP errors quote a packet. The frame may be longer than the message.
    let message = bytes.get(..content.end)?;
    match (protocol, bytes[start], is_quoted) {
        (1, 3 | 11 | 12, false) => ipv4(message, start + 8, true, found),
        (58, 1..=4, false) => ipv6(message, start + 8, true, found),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{faults, repair};
    use crate::packet::build::{Build, ack, icmp, udp};
    use crate::packet::world::worlds;

    fn packets() -> Vec<Build> {
        let packets = worlds().into_iter().flat_map(|world| {
            let (one, other) = (world.client, world.vip);
            let quoted = ack(other, one).bytes();
            let error = if one.is_ipv4() { [3, 3] } else { [1, 4] };
            [
                ack(one, other),
                udp(one, other),
                udp(one, other).without_checksum(),
                ack(one, other).options(&[0; 14][..if one.is_ipv4() { 4 } else { 14 }]),
                icmp(one.ip(), other.ip(), error, 0).payload(&quoted[14..]),
            ]
        });
        packets.collect()
    }

    #[test]
    fn built_packets_have_no_faults() {
        for packet in packets() {
            assert_eq!(faults(&packet.bytes()), [""; 0], "{packet:?}");
        }
    }

    #[test]
    fn wrong_checksums_are_found_and_repaired() {
        for packet in packets()
            .iter()
            .filter(|packet| !format!("{packet:?}").contains("checksum: false"))
        {
            let mut bytes = packet.bytes();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert_ne!(faults(&bytes), [""; 0], "{packet:?}");
            repair(&mut bytes);
            assert_eq!(faults(&bytes), [""; 0], "{packet:?}");
        }
    }
}
