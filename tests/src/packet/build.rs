//! Builds packets from short descriptions, and parses packets with all checksums verified.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options,
    Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader, LinkExtHeader, LinkHeader, NetHeaders, PacketHeaders,
    PayloadSlice, TcpHeader, TransportHeader, UdpHeader, VlanId,
};

/// Link-layer address of the packets' sender.
pub const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Link-layer address of the node.
pub const NODE: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A packet to be built.
#[derive(Clone, Debug)]
pub struct Build {
    source: SocketAddr,
    destination: SocketAddr,
    transport: Transport,
    payload: Vec<u8>,
    vlans: Vec<u16>,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<(u16, bool)>,
    hop_limit: u8,
    link: Link,
    without_length: bool,
}

/// Link-layer addresses of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp(Box<TcpHeader>),
    Udp { checksum: bool },
    Sctp { chunk: u8 },
    Icmp { kind: u8, code: u8, rest: u32 },
}

/// A TCP segment without flags.
pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Build {
    let header = TcpHeader::new(source.port(), destination.port(), 1000, 64_000);
    Build::new(source, destination, Transport::Tcp(Box::new(header)))
}

/// A TCP segment that requests a connection.
pub fn syn(source: SocketAddr, destination: SocketAddr) -> Build {
    tcp(source, destination).flags(|header| header.syn = true)
}

/// A TCP segment of an open connection.
pub fn ack(source: SocketAddr, destination: SocketAddr) -> Build {
    tcp(source, destination).flags(|header| {
        header.ack = true;
        header.acknowledgment_number = 2000;
    })
}

/// A TCP segment that accepts a connection.
pub fn syn_ack(source: SocketAddr, destination: SocketAddr) -> Build {
    ack(source, destination).flags(|header| header.syn = true)
}

/// A TCP segment that ends a connection immediately.
pub fn rst(source: SocketAddr, destination: SocketAddr) -> Build {
    tcp(source, destination).flags(|header| header.rst = true)
}

/// A UDP datagram.
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Build {
    Build::new(source, destination, Transport::Udp { checksum: true })
}

/// An SCTP packet whose first chunk is of this type (RFC 9260 section 3.2).
pub fn sctp(source: SocketAddr, destination: SocketAddr, chunk: u8) -> Build {
    Build::new(source, destination, Transport::Sctp { chunk }).payload(b"some more words.")
}

/// An ICMP message of this type and code with these four bytes behind the checksum. Its ports are
/// ignored.
pub fn icmp(source: IpAddr, destination: IpAddr, [kind, code]: [u8; 2], rest: u32) -> Build {
    let [source, destination] = [source, destination].map(|address| SocketAddr::new(address, 0));
    Build::new(source, destination, Transport::Icmp { kind, code, rest })
}

impl Build {
    fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self {
            source,
            destination,
            transport,
            payload: b"payload".to_vec(),
            vlans: Vec::new(),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            hop_limit: 64,
            link: Link {
                destination: NODE,
                source: SENDER,
            },
            without_length: false,
        }
    }

    /// Sets fields of the TCP header.
    #[must_use]
    pub fn flags(mut self, set: impl FnOnce(&mut TcpHeader)) -> Self {
        match &mut self.transport {
            Transport::Tcp(header) => set(header),
            other => panic!("{other:?} has no TCP flags"),
        }
        self
    }

    /// Makes the packet a UDP datagram without a checksum.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        self.transport = Transport::Udp { checksum: false };
        self
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Adds VLAN tags before the IP header, the outer one first.
    #[must_use]
    pub fn vlans(mut self, vlans: &[u16]) -> Self {
        self.vlans = vlans.to_vec();
        self
    }

    /// Adds IPv4 options, or an IPv6 destination options header with this content.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Adds an IPv6 extension header of this number; the content begins behind its length field.
    #[must_use]
    pub fn extension(mut self, number: u8, content: &[u8]) -> Self {
        self.extensions.push((number, content.to_vec()));
        self
    }

    /// Sets the hop limit.
    #[must_use]
    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// Sets the link-layer addresses.
    #[must_use]
    pub fn link(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    /// The same packet between other addresses.
    #[must_use]
    pub fn between(mut self, source: SocketAddr, destination: SocketAddr) -> Self {
        (self.source, self.destination) = (source, destination);
        if let Transport::Tcp(header) = &mut self.transport {
            (header.source_port, header.destination_port) = (source.port(), destination.port());
        }
        self
    }

    /// Makes the packet a fragment at this offset, in units of 8 bytes.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// Sets the length in the IP header to 0, as the kernel does if the field is too small.
    #[must_use]
    pub fn without_length(mut self) -> Self {
        self.without_length = true;
        self
    }

    /// The bytes of the frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        match &self.transport {
            Transport::Tcp(header) => {
                let mut header = header.as_ref().clone();
                header.checksum = self.tcp_checksum(&header);
                header.write(&mut transport).expect("a vector accepts it");
            }
            Transport::Udp { checksum } => {
                let header = self.udp_header(*checksum);
                header.write(&mut transport).expect("a vector accepts it");
            }
            Transport::Sctp { chunk } => transport = self.sctp_header(*chunk),
            Transport::Icmp { kind, code, rest } => transport = self.icmp_header([*kind, *code], *rest),
        }
        transport.extend_from_slice(&self.payload);
        let mut bytes = self.link_header();
        let network = bytes.len();
        self.network(transport.len())
            .write(&mut bytes)
            .expect("a vector accepts it");
        self.add_extensions(&mut bytes, network);
        bytes.extend_from_slice(&transport);
        if self.without_length {
            self.remove_length(&mut bytes[network..]);
        }
        bytes
    }

    /// Sets the length field of the IP header at the start of `packet` to 0.
    fn remove_length(&self, packet: &mut [u8]) {
        if self.source.is_ipv6() {
            packet[4..6].fill(0);
            return;
        }
        packet[2..4].fill(0);
        packet[10..12].fill(0);
        let header = usize::from(packet[0] & 0xf) * 4;
        let checksum = checksum(&packet[..header]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Chains the extension headers behind an IPv6 header at the end of `bytes`.
    fn add_extensions(&self, bytes: &mut Vec<u8>, network: usize) {
        const PAYLOAD_LENGTH: usize = 4;
        const NEXT_HEADER: usize = 6;
        let mut link = network + NEXT_HEADER;
        for (number, content) in &self.extensions {
            let next = std::mem::replace(&mut bytes[link], *number);
            link = bytes.len();
            // The length field of an authentication header counts 4-byte words minus 2; that of the
            // others counts 8-byte units minus 1.
            let length = match *number {
                51 => (content.len() + 2) / 4 - 2,
                _ => (content.len() + 2) / 8 - 1,
            };
            bytes.extend_from_slice(&[next, u8::try_from(length).expect("fits")]);
            bytes.extend_from_slice(content);
            let field = network + PAYLOAD_LENGTH;
            let payload = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
            let payload = usize::from(payload) + content.len() + 2;
            bytes[field..field + 2].copy_from_slice(&u16::try_from(payload).expect("fits").to_be_bytes());
        }
    }

    fn link_header(&self) -> Vec<u8> {
        let ethertype = if self.source.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        let outer = if self.vlans.is_empty() {
            ethertype
        } else {
            EtherType::VLAN_TAGGED_FRAME
        };
        let mut bytes = Vec::new();
        let header = Ethernet2Header {
            source: self.link.source,
            destination: self.link.destination,
            ether_type: outer,
        };
        header.write(&mut bytes).expect("a vector accepts it");
        for (depth, vlan) in self.vlans.iter().enumerate() {
            let last = depth + 1 == self.vlans.len();
            let header = etherparse::SingleVlanHeader {
                vlan_id: VlanId::try_new(*vlan).expect("a VLAN id"),
                ether_type: if last {
                    ethertype
                } else {
                    EtherType::VLAN_TAGGED_FRAME
                },
                ..Default::default()
            };
            header.write(&mut bytes).expect("a vector accepts it");
        }
        bytes
    }

    fn network(&self, length: usize) -> IpHeaders {
        let number = match self.transport {
            Transport::Tcp(_) => IpNumber::TCP,
            Transport::Udp { .. } => IpNumber::UDP,
            Transport::Sctp { .. } => IpNumber::SCTP,
            Transport::Icmp { .. } if self.source.is_ipv4() => IpNumber::ICMP,
            Transport::Icmp { .. } => IpNumber::IPV6_ICMP,
        };
        let (offset, more) = self.fragment.unwrap_or_default();
        let offset = IpFragOffset::try_new(offset).expect("a fragment offset");
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = u16::try_from(length).expect("fits");
                let mut header = Ipv4Header::new(
                    length,
                    self.hop_limit,
                    number,
                    source.octets(),
                    destination.octets(),
                )
                .expect("fits");
                header.options = Ipv4Options::try_from(self.options.as_slice()).expect("whole words");
                header.set_payload_len(usize::from(length)).expect("fits");
                header.fragment_offset = offset;
                header.more_fragments = more;
                header.dont_fragment = false;
                header.header_checksum = header.calc_header_checksum();
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = Ipv6Extensions::default();
                if !self.options.is_empty() {
                    let content = Ipv6RawExtHeader::new_raw(number, &self.options).expect("6 + 8 n bytes");
                    extensions.destination_options = Some(content);
                }
                if self.fragment.is_some() {
                    extensions.fragment = Some(etherparse::Ipv6FragmentHeader::new(number, offset, more, 7));
                }
                let first = extensions.set_next_headers(number);
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Default::default(),
                    payload_length: u16::try_from(extensions.header_len() + length).expect("fits"),
                    next_header: first,
                    hop_limit: self.hop_limit,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                IpHeaders::Ipv6(header, extensions)
            }
            _ => panic!("addresses of two families"),
        }
    }

    /// The common header, and the header of a chunk that fills the rest of the packet (RFC 9260
    /// section 3).
    fn sctp_header(&self, chunk: u8) -> Vec<u8> {
        const CHECKSUM: std::ops::Range<usize> = 8..12;
        let mut header = Vec::new();
        header.extend_from_slice(&self.source.port().to_be_bytes());
        header.extend_from_slice(&self.destination.port().to_be_bytes());
        header.extend_from_slice(&0x1234_5678_u32.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        let length = u16::try_from(4 + self.payload.len()).expect("fits");
        header.extend_from_slice(&[chunk, 0]);
        header.extend_from_slice(&length.to_be_bytes());
        let checksum = crc32c(&[header.as_slice(), &self.payload].concat());
        header[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    fn icmp_header(&self, [kind, code]: [u8; 2], rest: u32) -> Vec<u8> {
        const CHECKSUM: std::ops::Range<usize> = 2..4;
        let mut header = vec![kind, code, 0, 0];
        header.extend_from_slice(&rest.to_be_bytes());
        let length = u32::try_from(header.len() + self.payload.len()).expect("fits");
        let pseudo = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => [
                &source.octets()[..],
                &destination.octets(),
                &length.to_be_bytes(),
                &[0, 0, 0, IpNumber::IPV6_ICMP.0],
            ]
            .concat(),
            _ => Vec::new(),
        };
        let checksum = checksum(&[pseudo.as_slice(), &header, &self.payload].concat());
        header[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn tcp_checksum(&self, header: &TcpHeader) -> u16 {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &self.payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &self.payload)
            }
            _ => panic!("addresses of two families"),
        }
        .expect("fits")
    }

    fn udp_header(&self, checksum: bool) -> UdpHeader {
        let (source, destination) = (self.source.port(), self.destination.port());
        let mut header =
            UdpHeader::without_ipv4_checksum(source, destination, self.payload.len()).expect("fits");
        if checksum {
            header.checksum = udp_checksum(&header, self.source.ip(), self.destination.ip(), &self.payload);
        }
        header
    }
}

/// The Internet checksum of bytes (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let halves = bytes
        .chunks(2)
        .map(|half| u32::from(half[0]) << 8 | u32::from(*half.get(1).unwrap_or(&0)));
    let mut sum: u32 = halves.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// The checksum of SCTP (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    !sum
}

fn udp_checksum(header: &UdpHeader, source: IpAddr, destination: IpAddr, payload: &[u8]) -> u16 {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), payload)
        }
        _ => panic!("addresses of two families"),
    }
    .expect("fits")
}

/// A parsed packet. Its checksums were valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Link-layer source.
    pub link_source: [u8; 6],
    /// Link-layer destination.
    pub link_destination: [u8; 6],
    /// VLAN tags, the outer one first.
    pub vlans: Vec<u16>,
    /// Source address, and port for TCP and UDP.
    pub source: SocketAddr,
    /// Destination address, and port for TCP and UDP.
    pub destination: SocketAddr,
    /// The transport header.
    pub transport: TransportHeader,
    /// The payload behind the transport header.
    pub payload: Vec<u8>,
}

impl Seen {
    /// The type and code of an ICMP message of either version; panics for other packets.
    pub fn icmp(&self) -> (u8, u8) {
        let bytes = match &self.transport {
            TransportHeader::Icmpv4(header) => header.to_bytes(),
            TransportHeader::Icmpv6(header) => header.to_bytes().into_iter().collect(),
            other => panic!("no ICMP: {other:?}"),
        };
        (bytes[0], bytes[1])
    }

    /// The TCP header; panics for other packets.
    pub fn tcp(&self) -> &TcpHeader {
        match &self.transport {
            TransportHeader::Tcp(header) => header,
            other => panic!("no TCP: {other:?}"),
        }
    }
}

/// Parses a packet and verifies its checksums. Panics with the bytes if one is wrong.
pub fn see(bytes: &[u8]) -> Seen {
    let packet =
        PacketHeaders::from_ethernet_slice(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
    let Some(LinkHeader::Ethernet2(link)) = packet.link else {
        panic!("no Ethernet header: {bytes:02x?}")
    };
    let vlans = packet.link_exts.iter().filter_map(|header| match header {
        LinkExtHeader::Vlan(vlan) => Some(vlan.vlan_id.value()),
        LinkExtHeader::Macsec(_) => None,
    });
    let (source, destination): (IpAddr, IpAddr) = match packet.net.expect("an IP header") {
        NetHeaders::Ipv4(header, _) => {
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 checksum: {bytes:02x?}"
            );
            (header.source.into(), header.destination.into())
        }
        NetHeaders::Ipv6(header, _) => (header.source.into(), header.destination.into()),
        NetHeaders::Arp(_) => panic!("ARP"),
    };
    let transport = packet
        .transport
        .unwrap_or_else(|| panic!("no transport header: {bytes:02x?}"));
    let payload = match packet.payload {
        PayloadSlice::Udp(payload) | PayloadSlice::Tcp(payload) => payload,
        PayloadSlice::Icmpv4(payload) | PayloadSlice::Icmpv6(payload) => payload,
        other => panic!("unexpected payload {other:?}: {bytes:02x?}"),
    };
    let ports = verify(&transport, source, destination, payload, bytes);
    Seen {
        link_source: link.source,
        link_destination: link.destination,
        vlans: vlans.collect(),
        source: SocketAddr::new(source, ports.0),
        destination: SocketAddr::new(destination, ports.1),
        payload: payload.to_vec(),
        transport,
    }
}

/// Verifies the transport checksum and returns the ports.
fn verify(
    transport: &TransportHeader,
    source: IpAddr,
    destination: IpAddr,
    payload: &[u8],
    bytes: &[u8],
) -> (u16, u16) {
    match transport {
        TransportHeader::Tcp(header) => {
            let again = Build {
                payload: payload.to_vec(),
                ..tcp(
                    SocketAddr::new(source, header.source_port),
                    SocketAddr::new(destination, header.destination_port),
                )
            };
            assert_eq!(
                header.checksum,
                again.tcp_checksum(header),
                "TCP checksum: {bytes:02x?}"
            );
            (header.source_port, header.destination_port)
        }
        TransportHeader::Udp(header) => {
            if header.checksum != 0 {
                let checksum = udp_checksum(header, source, destination, payload);
                assert_eq!(header.checksum, checksum, "UDP checksum: {bytes:02x?}");
            }
            (header.source_port, header.destination_port)
        }
        TransportHeader::Icmpv4(header) => {
            assert_eq!(
                header.checksum,
                header.icmp_type.calc_checksum(payload),
                "ICMP checksum: {bytes:02x?}"
            );
            (0, 0)
        }
        TransportHeader::Icmpv6(header) => {
            let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else {
                panic!("not IPv6")
            };
            let checksum = header
                .icmp_type
                .calc_checksum(source.octets(), destination.octets(), payload)
                .expect("fits");
            assert_eq!(header.checksum, checksum, "ICMPv6 checksum: {bytes:02x?}");
            (0, 0)
        }
        other => panic!("unexpected transport {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{checksum, crc32c};

    /// RFC 9260 appendix A uses the CRC of RFC 3720, whose section B.4 has the value for 32 bytes
    /// of zeros.
    #[test]
    fn crc32c_of_known_data_is_correct() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_internet_checksum_of_known_data_is_correct() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
        assert_eq!(checksum(&[0xff, 0xff, 0x01]), !0x0100);
    }
}
