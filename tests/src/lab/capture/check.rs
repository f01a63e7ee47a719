//! Checks the lengths and every checksum of a frame.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, IpNumber, IpSlice, SlicedPacket};

use crate::lab::link::VXLAN_PORT;

/// ICMPv6 types of multicast listeners (130 to 132 and 143) and neighbour discovery (133 to 137).
const HOUSEKEEPING: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];

/// Length of a UDP header.
const UDP_HEADER: usize = 8;

/// Length of the UDP and VXLAN headers before the inner frame.
const VXLAN_HEADERS: usize = UDP_HEADER + 8;

/// A frame as captured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) bytes: &'a [u8],
    /// Whether it starts with an Ethernet header, or with the IP header.
    pub(super) ethernet: bool,
    pub(super) unfinished: Option<Unfinished>,
}

/// A checksum that the kernel leaves to the device that finally sends the frame (checksum offload).
/// Until then the field contains the sum of the pseudo header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unfinished {
    /// The offset in the frame at which the summed bytes start.
    pub(super) start: usize,
    /// The offset of the checksum from there.
    pub(super) offset: usize,
}

/// Kind of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// ICMP for IPv4
    Icmp,
    /// ICMP for IPv6, except [`Self::Housekeeping`]
    Icmpv6,
    /// ICMP for IPv6 that the kernel sends by itself: neighbour discovery and multicast groups.
    Housekeeping,
    /// A fragment of an IP packet of any protocol. Its transport checksum is not checked.
    Fragment,
    /// Anything else over IP.
    Other,
}

/// Source and destination of a packet; of encapsulated packets, those of the innermost. Ports are 0
/// for protocols without ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow {
    /// Kind of packet.
    pub protocol: Protocol,
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
}

/// What is wrong with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Checks a frame. Returns `None` if it is not IP.
pub(super) fn check(frame: Frame<'_>) -> Result<Option<Flow>, Fault> {
    match frame.ethernet {
        false => check_ip(frame, 0),
        true => check_ethernet(frame, 0),
    }
}

/// Checks the Ethernet frame that starts at `start`.
fn check_ethernet(frame: Frame<'_>, start: usize) -> Result<Option<Flow>, Fault> {
    let bytes = frame.bytes.get(start..).unwrap_or_default();
    let sliced = SlicedPacket::from_ethernet(bytes).map_err(|error| Fault(error.to_string()))?;
    match sliced.ether_payload() {
        Some(payload) if [EtherType::IPV4, EtherType::IPV6].contains(&payload.ether_type) => {
            check_ip(frame, frame.bytes.len() - payload.payload.len())
        }
        _ => Ok(None),
    }
}

/// Checks the IP packet that starts at `start`.
fn check_ip(frame: Frame<'_>, start: usize) -> Result<Option<Flow>, Fault> {
    let ip = IpSlice::from_slice(&frame.bytes[start..]).map_err(|error| Fault(error.to_string()))?;
    if let Some(ipv4) = ip.ipv4()
        && fold(sum(ipv4.header().slice())) != u16::MAX
    {
        return Err(Fault("wrong IPv4 header checksum".to_owned()));
    }
    let payload = ip.payload();
    let payload_start = payload.payload.as_ptr().addr() - frame.bytes.as_ptr().addr();
    if [IpNumber::IPV4, IpNumber::IPV6].contains(&payload.ip_number) && !payload.fragmented {
        return check_ip(frame, payload_start);
    }
    let transport = Transport {
        source: ip.source_addr(),
        destination: ip.destination_addr(),
        number: payload.ip_number.0,
        bytes: payload.payload,
    };
    let protocol = match payload.ip_number {
        _ if payload.fragmented => Protocol::Fragment,
        IpNumber::TCP => Protocol::Tcp,
        IpNumber::UDP => Protocol::Udp,
        IpNumber::ICMP => Protocol::Icmp,
        IpNumber::IPV6_ICMP => match payload.payload.first() {
            Some(kind) if HOUSEKEEPING.contains(kind) => Protocol::Housekeeping,
            _ => Protocol::Icmpv6,
        },
        _ => Protocol::Other,
    };
    if protocol == Protocol::Udp && transport.field(2)? == VXLAN_PORT && transport.has_vxlan_header() {
        // The incomplete checksum is that of the inner packet.
        check_transport(&transport, protocol, payload_start, None)?;
        return check_ethernet(frame, payload_start + VXLAN_HEADERS);
    }
    check_transport(&transport, protocol, payload_start, frame.unfinished)?;
    let ports = matches!(protocol, Protocol::Tcp | Protocol::Udp);
    let port = |at| if ports { transport.field(at) } else { Ok(0) };
    Ok(Some(Flow {
        protocol,
        source: SocketAddr::new(transport.source, port(0)?),
        destination: SocketAddr::new(transport.destination, port(2)?),
    }))
}

struct Transport<'a> {
    source: IpAddr,
    destination: IpAddr,
    number: u8,
    bytes: &'a [u8],
}

impl Transport<'_> {
    /// A field of 16 bits.
    fn field(&self, at: usize) -> Result<u16, Fault> {
        match self.bytes.get(at..at + 2) {
            Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
            _ => Err(Fault(format!("too short for protocol {}", self.number))),
        }
    }

    /// Whether a VXLAN header (RFC 7348, section 5) follows the UDP header. A datagram to
    /// [`VXLAN_PORT`] may not have one: a node may have allocated the port as a source port in
    /// place of a client's.
    fn has_vxlan_header(&self) -> bool {
        let header = self.bytes.get(UDP_HEADER..VXLAN_HEADERS);
        matches!(header, Some([0x08, 0, 0, 0, _, _, _, 0]))
    }

    /// Sum of the pseudo header.
    fn pseudo_header(&self) -> u64 {
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                sum(&source.octets()) + sum(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                sum(&source.octets()) + sum(&destination.octets())
            }
            _ => unreachable!("both addresses are of one header"),
        };
        addresses + u64::from(self.number) + self.bytes.len() as u64
    }
}

fn check_transport(
    transport: &Transport<'_>,
    protocol: Protocol,
    start: usize,
    unfinished: Option<Unfinished>,
) -> Result<(), Fault> {
    let (offset, pseudo_header) = match protocol {
        Protocol::Tcp => (16, transport.pseudo_header()),
        Protocol::Udp => (6, transport.pseudo_header()),
        Protocol::Icmpv6 | Protocol::Housekeeping => (2, transport.pseudo_header()),
        Protocol::Icmp => (2, 0),
        Protocol::Fragment | Protocol::Other => return Ok(()),
    };
    if protocol == Protocol::Udp && usize::from(transport.field(4)?) != transport.bytes.len() {
        return Err(Fault("the UDP length does not match the IP header".to_owned()));
    }
    let found = transport.field(offset)?;
    // If a packet was turned into the ICMP error about itself, the kernel still treats its checksum
    // as incomplete.
    let unfinished = unfinished.filter(|unfinished| {
        let is_error = matches!(protocol, Protocol::Icmp | Protocol::Icmpv6);
        let quoted = transport.bytes.get(unfinished.start.saturating_sub(start)..);
        !(is_error && quoted.is_some_and(|quoted| is_settled(quoted, unfinished.offset)))
    });
    match unfinished {
        Some(unfinished) if unfinished != Unfinished { start, offset } => Err(Fault(format!(
            "the incomplete checksum is reported at {unfinished:?}, but the header is at {start}"
        ))),
        // Zero has two representations in one's complement arithmetic.
        Some(_) if found % u16::MAX != fold(pseudo_header) % u16::MAX => Err(Fault(format!(
            "incomplete {protocol:?} checksum {found:#06x}, not the pseudo header's sum {:#06x}",
            fold(pseudo_header)
        ))),
        Some(_) => Ok(()),
        None if protocol == Protocol::Udp && found == 0 => match transport.source {
            IpAddr::V4(_) => Ok(()),
            IpAddr::V6(_) => Err(Fault("UDP over IPv6 without a checksum".to_owned())),
        },
        None if fold(pseudo_header + sum(transport.bytes)) != u16::MAX => {
            Err(Fault(format!("wrong {protocol:?} checksum {found:#06x}")))
        }
        None => Ok(()),
    }
}

/// Whether the checksum at `offset` is already complete over `bytes`.
fn is_settled(bytes: &[u8], offset: usize) -> bool {
    let Some(&[high, low]) = bytes.get(offset..offset + 2) else {
        return false;
    };
    !fold(sum(bytes)) % u16::MAX == u16::from_be_bytes([high, low]) % u16::MAX
}

/// Sum of the 16-bit words. An odd byte at the end is the high half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)))
        .sum();
    sum + rest.first().map_or(0, |&byte| u64::from(byte) << 8)
}

/// The one's complement sum of 16 bits.
fn fold(mut sum: u64) -> u16 {
    loop {
        match u16::try_from(sum) {
            Ok(folded) => return folded,
            Err(_) => sum = (sum & 0xffff) + (sum >> 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// Start of the transport header in an IPv4 frame without options.
    const TRANSPORT: usize = 14 + 20;

    fn udp4() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(7, 9);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"odd length!").unwrap();
        bytes
    }

    fn tcp6() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([0xfd; 16], [0xfc; 16], 64)
            .tcp(7, 9, 1, 1);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"payload").unwrap();
        bytes
    }

    fn finished(bytes: &[u8]) -> Result<Option<Flow>, Fault> {
        check(Frame {
            bytes,
            ethernet: true,
            unfinished: None,
        })
    }

    fn unfinished(bytes: &[u8], start: usize, offset: usize) -> Result<Option<Flow>, Fault> {
        check(Frame {
            bytes,
            ethernet: true,
            unfinished: Some(Unfinished { start, offset }),
        })
    }

    #[test]
    fn correct_checksums_pass() {
        let flow = finished(&udp4()).unwrap().unwrap();
        assert_eq!(flow.protocol, Protocol::Udp);
        assert_eq!(flow.source, "10.0.0.1:7".parse().unwrap());
        assert_eq!(flow.destination, "10.0.0.2:9".parse().unwrap());
        assert_eq!(finished(&tcp6()).unwrap().unwrap().protocol, Protocol::Tcp);
    }

    #[test]
    fn any_changed_byte_after_the_ethernet_header_is_detected() {
        for frame in [udp4(), tcp6()] {
            let ipv6_without_checksum = 14..14 + 8;
            for at in 14..frame.len() {
                let mut changed = frame.clone();
                changed[at] ^= 0x10;
                let header = frame == tcp6() && ipv6_without_checksum.contains(&at);
                assert!(header || finished(&changed).is_err(), "byte {at} of {frame:x?}");
            }
        }
    }

    #[test]
    fn udp_may_lack_a_checksum_over_ipv4() {
        let mut frame = udp4();
        frame[TRANSPORT + 6..TRANSPORT + 8].fill(0);
        assert!(finished(&frame).is_ok());
    }

    #[test]
    fn an_incomplete_checksum_is_the_sum_of_the_pseudo_header() {
        let mut frame = udp4();
        let length = frame.len() - TRANSPORT;
        let pseudo_header = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 17 + u16::try_from(length).unwrap();
        frame[TRANSPORT + 6..TRANSPORT + 8].copy_from_slice(&pseudo_header.to_be_bytes());
        assert!(finished(&frame).is_err());
        assert!(unfinished(&frame, TRANSPORT, 6).is_ok());
        assert!(unfinished(&frame, TRANSPORT, 16).is_err());
        assert!(unfinished(&udp4(), TRANSPORT, 6).is_err());
    }

    #[test]
    fn encapsulated_packets_are_checked() {
        let inner = udp4()[14..].to_vec();
        let mut outer = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([172, 30, 0, 1], [172, 30, 0, 2], 64)
            .write(&mut outer, IpNumber::IPV4, &inner)
            .unwrap();
        assert_eq!(
            finished(&outer).unwrap().unwrap().source,
            "10.0.0.1:7".parse().unwrap()
        );
        *outer.last_mut().unwrap() ^= 1;
        assert!(finished(&outer).is_err());
    }

    #[test]
    fn packets_in_vxlan_are_checked() {
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 1, 0];
        vxlan.extend(udp4());
        let mut outer = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([172, 30, 0, 1], [172, 30, 0, 2], 64)
            .udp(5000, VXLAN_PORT)
            .write(&mut outer, &vxlan)
            .unwrap();
        let inner = "10.0.0.1:7".parse().unwrap();
        assert_eq!(finished(&outer).unwrap().unwrap().source, inner);
        // The outer checksum may be missing, the inner one may be incomplete.
        outer[TRANSPORT + 6..TRANSPORT + 8].fill(0);
        assert_eq!(finished(&outer).unwrap().unwrap().source, inner);
        let start = TRANSPORT + VXLAN_HEADERS + TRANSPORT;
        assert!(unfinished(&outer, start, 6).is_err());
        *outer.last_mut().unwrap() ^= 1;
        assert!(finished(&outer).is_err());
    }

    #[test]
    fn a_datagram_to_the_vxlan_port_may_be_anything() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([172, 30, 0, 1], [172, 30, 0, 2], 64)
            .udp(5353, VXLAN_PORT)
            .write(&mut frame, b"web-1 172.30.0.2:4789")
            .unwrap();
        let destination = finished(&frame).unwrap().unwrap().destination;
        assert_eq!(destination, "172.30.0.2:4789".parse().unwrap());
        *frame.last_mut().unwrap() ^= 1;
        assert!(finished(&frame).is_err());
    }

    #[test]
    fn truncated_frames_are_faults() {
        let frame = udp4();
        for length in 15..frame.len() {
            assert!(finished(&frame[..length]).is_err(), "{length} bytes");
        }
    }
}
