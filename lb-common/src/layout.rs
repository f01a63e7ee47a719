//! Keys and values of the BPF maps.
//!
//! Every type is `repr(C)`, has no hidden bytes (padding is a named field that is zero) and a size asserted below,
//! because the kernel compares keys byte by byte and the agent reads what another version of it wrote.
//! Addresses and ports are in network byte order, everything else is in host byte order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::flow::Lifetimes;
use crate::tables::PortRange;

/// The version of these layouts: part of the pin path, so that an agent never reads maps of another layout.
pub const LAYOUT_VERSION: u32 = 5;

/// Names of the maps, in the kernel and under the pin path.
pub mod map {
    /// Frontends of IPv4: [`super::FrontendKey`] to [`super::Frontend`].
    pub const FRONTENDS4: &str = "FRONTENDS4";
    /// Frontends of IPv6: [`super::FrontendKey`] to [`super::Frontend`].
    pub const FRONTENDS6: &str = "FRONTENDS6";
    /// Which destination addresses to look up: `u64` words of [`crate::filter`].
    pub const FILTER: &str = "FILTER";
    /// Which sources' packets to look up as replies: `u64` words of [`crate::filter`].
    pub const REPLY_FILTER: &str = "REPLY_FILTER";
    /// Where Service CIDRs are: one [`crate::cidr::Networks`].
    pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
    /// Slots: index to [`super::Slot`].
    pub const SLOTS: &str = "SLOTS";
    /// Backends of IPv4: [`super::BackendId`] to [`super::Backend`].
    pub const BACKENDS4: &str = "BACKENDS4";
    /// Backends of IPv6: [`super::BackendId`] to [`super::Backend`].
    pub const BACKENDS6: &str = "BACKENDS6";
    /// Flows of IPv4: [`super::FlowKey`] to [`super::Flow`].
    pub const FLOWS4: &str = "FLOWS4";
    /// Flows of IPv6: [`super::FlowKey`] to [`super::Flow`].
    pub const FLOWS6: &str = "FLOWS6";
    /// Translated IPv4 sockets: [`super::SocketKey`] to [`super::Socket`].
    pub const SOCKETS4: &str = "SOCKETS4";
    /// Translated IPv6 sockets: [`super::SocketKey`] to [`super::Socket`].
    pub const SOCKETS6: &str = "SOCKETS6";
    /// Which client goes to which backend of an IPv4 Service: [`super::AffinityKey`] to [`super::Affinity`].
    pub const AFFINITY4: &str = "AFFINITY4";
    /// Which client goes to which backend of an IPv6 Service: [`super::AffinityKey`] to [`super::Affinity`].
    pub const AFFINITY6: &str = "AFFINITY6";
    /// Clients that may use a load balancer's IPv4 addresses: [`super::SourceRange`] to `u32`.
    pub const SOURCE_RANGES4: &str = "SOURCE_RANGES4";
    /// Clients that may use a load balancer's IPv6 addresses: [`super::SourceRange`] to `u32`.
    pub const SOURCE_RANGES6: &str = "SOURCE_RANGES6";
    /// Ports of IPv4 datagrams in fragments: [`super::FragmentKey`] to [`super::Fragment`].
    pub const FRAGMENTS4: &str = "FRAGMENTS4";
    /// Ports of IPv6 datagrams in fragments: [`super::FragmentKey`] to [`super::Fragment`].
    pub const FRAGMENTS6: &str = "FRAGMENTS6";
    /// The device that leads to the kernel's own reassembly. The kernel takes a device that vanishes out of a map of devices,
    /// so that no packet is sent to it.
    pub const REASSEMBLY: &str = "REASSEMBLY";
    /// The index of that device for XDP, which only leaves fragments to TC: 0 if there is none. After an agent was killed
    /// it may still stand here; then TC knows better. No map of devices: generic XDP of Linux 5.10 takes no program that uses
    /// one (`generic_xdp_install`), and the kernel lets programs of one type only use it (`bpf_prog_map_compatible`).
    pub const XDP_REASSEMBLY: &str = "XDP_REASSEMBLY";
    /// Fragments that may still be handed to the kernel's own reassembly, whoever sends them
    /// ([`crate::budget::ALL_DETOURS`]): one [`crate::budget::Bucket`]. All CPUs share it without a lock: two that count at
    /// once may count one for both.
    pub const DETOURS: &str = "DETOURS";
    /// Devices that packets to Pods of other nodes leave by: interface index to [`super::Device`].
    pub const DEVICES: &str = "DEVICES";
    /// Devices that XDP programs of other devices can send through: [`super::device_row`] to interface index.
    pub const XDP_DEVICES: &str = "XDP_DEVICES";
    /// What is at the other end of devices: [`super::device_row`] to [`super::DeviceRole`].
    pub const DEVICE_ROLES: &str = "DEVICE_ROLES";
    /// Devices whose other end is in a Pod: [`super::device_row`] to interface index.
    pub const POD_DEVICES: &str = "POD_DEVICES";
    /// Which frames that a device receives XDP takes: [`super::device_row`] to [`super::DeviceLinks`].
    pub const DEVICE_LINKS: &str = "DEVICE_LINKS";
    /// Addresses of devices that take frames which come in by others: [`super::LinkAddress`] to `u32`.
    pub const NODE_LINKS: &str = "NODE_LINKS";
    /// Addresses of the node's devices, of both families: words of [`crate::address::Address::words`] to `u32`.
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// Network namespaces of others than the node, by their cookie: one of [`super::namespace_role`].
    pub const NAMESPACES: &str = "NAMESPACES";
    /// Names by service id: [`super::ServiceName`].
    pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
    /// Counters by service id: [`super::ServiceStats`] for each CPU.
    pub const SERVICE_STATS: &str = "SERVICE_STATS";
    /// Counters by [`crate::reason::Reason`]: `u64` for each CPU.
    pub const REASONS: &str = "REASONS";
    /// How often clients may still be answered: [`crate::budget::Bucket`] by [`crate::budget::Limit::bucket`], for each
    /// CPU.
    pub const ANSWERS: &str = "ANSWERS";
    /// What the programs were loaded with: one [`super::LoadedSettings`].
    pub const SETTINGS: &str = "SETTINGS";
}

/// Small number of a service port; indexes the counters. 0 is never valid.
pub type ServiceId = u32;
/// Index of a row in the backends array of its family. 0 is never valid.
pub type BackendId = u32;

/// Transport protocol numbers of the IP header (IANA protocol numbers).
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// A port in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// From a number in host byte order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// The number in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From the two bytes of a header field.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The two bytes of a header field.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }
}

/// An IPv4 address in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Address4(u32);

/// An IPv6 address in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Address6([u32; 4]);

impl Address4 {
    /// From the four bytes of a header field.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// The four bytes of a header field.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// From the word as the kernel's `bpf_sock_addr` holds it: network byte order.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// The word in network byte order.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.0
    }
}

impl Address6 {
    /// From the words as the kernel's `bpf_sock_addr` holds them: network byte order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The words in network byte order.
    #[inline(always)]
    pub const fn to_words(self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 address inside an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
    #[inline(always)]
    pub const fn to_mapped(self) -> Option<Address4> {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be() {
            Some(Address4(self.0[3]))
        } else {
            None
        }
    }

    /// The IPv4-mapped IPv6 address of an IPv4 address.
    #[inline(always)]
    pub const fn from_mapped(address: Address4) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), address.0])
    }
}

impl From<Ipv4Addr> for Address4 {
    #[inline(always)]
    fn from(address: Ipv4Addr) -> Self {
        Self::from_bytes(address.octets())
    }
}

impl From<Address4> for Ipv4Addr {
    fn from(address: Address4) -> Self {
        Self::from(address.to_bytes())
    }
}

impl From<Ipv6Addr> for Address6 {
    fn from(address: Ipv6Addr) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(address.octets().chunks_exact(4)) {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(chunk);
            *word = u32::from_ne_bytes(bytes);
        }
        Self(words)
    }
}

impl From<Address6> for Ipv6Addr {
    fn from(address: Address6) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::from(octets)
    }
}

impl From<Address4> for IpAddr {
    fn from(address: Address4) -> Self {
        Self::V4(address.into())
    }
}

impl From<Address6> for IpAddr {
    fn from(address: Address6) -> Self {
        Self::V6(address.into())
    }
}

/// What clients connect to: key of the frontends map.
///
/// Port 0 is the wildcard row of an address: it says that the address is a VIP, and what becomes of packets to it that
/// are for no port of a Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct FrontendKey<A> {
    /// The address that clients use.
    pub address: A,
    /// The port that clients use; 0 for the wildcard row.
    pub port: Port,
    /// One of [`protocol`]; 0 for the wildcard row.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// A contiguous part of the slots array.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Region {
    /// Index of the first slot.
    pub base: u32,
    /// Number of slots; 0 if there is no usable backend.
    pub length: u32,
}

/// What a packet to a frontend finds: value of the frontends map. Writing it publishes the Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Frontend {
    /// The service port this address belongs to; 0 in a wildcard row.
    pub service: ServiceId,
    /// Bits of [`frontend_flags`].
    pub flags: u32,
    /// Backends of the whole cluster.
    pub cluster: Region,
    /// Backends of this node.
    pub local: Region,
    /// The Maglev table of the backends that clients outside choose from; empty if they use a list like the others.
    pub maglev: Region,
    /// The set of [`SourceRange`] rows that clients must be in; 0 if all may come.
    pub source_ranges: u32,
    /// Seconds that a client stays with its backend; 0 without session affinity.
    pub affinity_seconds: u32,
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flags {
    /// Clients inside (Pods and processes of this node) use the `local` region.
    pub const INSIDE_LOCAL: u32 = 1;
    /// Clients outside use the `local` region.
    pub const OUTSIDE_LOCAL: u32 = 1 << 1;
    /// The wildcard row of a VIP.
    pub const WILDCARD: u32 = 1 << 2;
    /// In a wildcard row: ports that have no row of their own are not rejected but left to the node.
    pub const PASS_UNKNOWN: u32 = 1 << 3;
    /// In a wildcard row: ICMP echo requests are answered.
    pub const ECHO: u32 = 1 << 4;
    /// In a row with source ranges: processes of the node itself may come, as one of its addresses is in a range.
    pub const NODE_ALLOWED: u32 = 1 << 5;
    /// The address is one of the node's own: packets to it may be answers to the node's own connections.
    pub const NODE_ADDRESS: u32 = 1 << 6;
}

/// Clients that may use an address with `loadBalancerSourceRanges`: key of the source ranges maps.
///
/// They find the longest prefix; the length of a key's prefix is [`SourceRange::SET_BITS`] and that of the network's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct SourceRange<A> {
    /// Which set the network belongs to: [`Frontend::source_ranges`], or [`crate::cidr::SET`].
    pub set: u32,
    /// Address of the network.
    pub network: A,
}

impl<A> SourceRange<A> {
    /// Length of `set` in bits.
    pub const SET_BITS: u32 = u32::BITS;
}

/// One position of a region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Slot {
    /// The backend to send to.
    pub backend: BackendId,
    /// The generation that the backend row must have.
    pub generation: u32,
}

/// An endpoint that the datapath may choose: value of the backends arrays.
///
/// A row belongs to one service port. `generation` grows each time the row is given to another endpoint, so whoever
/// remembers a backend (slots, flows, sockets) notices that it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Backend<A> {
    /// Address of the Pod.
    pub address: A,
    /// Port of the Pod.
    pub port: Port,
    /// One of [`backend_state`].
    pub state: u8,
    /// Bits of [`backend_flags`].
    pub flags: u8,
    /// Counts the endpoints that this row has held.
    pub generation: u32,
    /// The service port that the endpoint belongs to.
    pub service: ServiceId,
}

/// Values of [`Backend::state`].
pub mod backend_state {
    /// No endpoint: flows to it end. The value of a row that was never written.
    pub const GONE: u8 = 0;
    /// Takes new flows.
    pub const ACTIVE: u8 = 1;
    /// Keeps the flows it has.
    pub const DRAINING: u8 = 2;
    /// Keeps the connections it has for a while: the endpoint is missing, and may come back as the same.
    pub const ABSENT: u8 = 3;
}

/// Bits of [`Backend::flags`].
pub mod backend_flags {
    /// The endpoint is on this node.
    pub const LOCAL: u8 = 1;
    /// The `cluster` region names it.
    pub const IN_CLUSTER: u8 = 1 << 1;
    /// The `local` region names it.
    pub const IN_LOCAL: u8 = 1 << 2;
}

/// A packet's addresses and ports as seen on the wire, and the side on which it is seen: key of the flows maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// One of [`protocol`].
    pub protocol: u8,
    /// One of [`hook`].
    pub hook: u8,
    /// Zero.
    pub pad: u16,
}

/// Values of [`FlowKey::hook`].
pub mod hook {
    /// The packet enters the node's stack from a Pod.
    pub const INGRESS_INSIDE: u8 = 0;
    /// The packet leaves the node's stack towards a Pod or a network device.
    pub const EGRESS: u8 = 1;
    /// The packet enters the node's stack from a network device. A packet from there with a Pod's address is not the
    /// Pod's, so it does not find the Pod's flows.
    pub const INGRESS_OUTSIDE: u8 = 2;
}

/// The remembered rewrite of one direction of a connection: value of the flows maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Flow<A> {
    /// Source address after the rewrite.
    pub source: A,
    /// Destination address after the rewrite.
    pub destination: A,
    /// Source port after the rewrite.
    pub source_port: Port,
    /// Destination port after the rewrite.
    pub destination_port: Port,
    /// The service port that the connection belongs to.
    pub service: ServiceId,
    /// The backend that was chosen.
    pub backend: BackendId,
    /// The backend row's generation when it was chosen.
    pub generation: u32,
    /// When a packet was last seen, in ticks (see [`crate::tables::Tables::now`]).
    pub last_seen: u32,
    /// The acknowledgement number of this direction's TCP segments, about a tick old; before the first one of a reply,
    /// the sequence number of the segment that opened the flow. Host byte order.
    pub acknowledged: u32,
    /// Bits of [`flow_state`].
    pub state: u8,
    /// Bits of [`flow_flags`].
    pub flags: u8,
    /// The ones' complement difference that the new addresses make to checksums, as it stands in memory.
    pub difference: u16,
}

/// Bits of [`Flow::state`], the same in the entries of both directions.
pub mod flow_state {
    /// The backend has answered.
    pub const ANSWERED: u8 = 1;
    /// The client has sent FIN.
    pub const FIN_REQUEST: u8 = 1 << 1;
    /// The backend has sent FIN.
    pub const FIN_REPLY: u8 = 1 << 2;
    /// Either side has sent RST.
    pub const RESET: u8 = 1 << 3;
    /// The client has sent another packet after the backend's answer. Only that makes a TCP connection established: a
    /// client with a forged address does not receive the answer.
    pub const CONFIRMED: u8 = 1 << 4;
    /// The backend has answered the SYN as if the connection were open already: the client has another connection from
    /// the same port straight to the backend. What the backend sends belongs to that one.
    pub const CLASH: u8 = 1 << 5;
    /// How many combinations there are.
    pub const COUNT: u8 = 1 << 6;
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// The entry rewrites what the backend sends.
    pub const REPLY: u8 = 1;
    /// The client is the chosen backend: the packet goes back out of the device it came in on.
    pub const HAIRPIN: u8 = 1 << 1;
    /// The client's address is replaced by one of this node, and the packet is sent on without the node's stack.
    pub const FORWARD: u8 = 1 << 2;
    /// Client and backend are on this node: the packet may be handed over to the Pod without the node's stack.
    pub const LOCAL: u8 = 1 << 3;
    /// A TCP segment that was no SYN opened the flow: its connection began elsewhere, or its entry was lost.
    pub const MIDSTREAM: u8 = 1 << 4;
    /// Nothing is rewritten: the connection is the node's own, from a port that is a frontend's too.
    pub const PASS: u8 = 1 << 5;
    /// Shift of the bits that say at which [`super::hook`] the opposite direction is seen.
    pub const PEER_HOOK_SHIFT: u8 = 6;
}

/// A socket and an address it knows its peer by: key of the sockets maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct SocketKey<A> {
    /// The kernel's socket cookie, low and high half (a `u64` would force padding for IPv4).
    pub cookie: [u32; 2],
    /// The backend's address; a frontend's or the unspecified one for a UDP socket.
    pub address: A,
    /// The port beside `address`.
    pub port: Port,
    /// One of [`protocol`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// The other side of a translation at a socket: value of the sockets maps.
///
/// Under a backend's address stands the frontend; under a frontend's address the backend that was chosen for a UDP socket.
/// Under the unspecified address and a small number as port stands a frontend that a UDP socket has asked for.
/// A UDP socket that was connected to a frontend without a backend has an address and a port of the node for one, and 0 as
/// [`Self::backend`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Socket<A> {
    /// The other address.
    pub address: A,
    /// The other port.
    pub port: Port,
    /// One of [`socket_names`].
    pub names: u16,
    /// The service port.
    pub service: ServiceId,
    /// The backend that was chosen.
    pub backend: BackendId,
    /// The backend row's generation when it was chosen.
    pub generation: u32,
}

/// What [`Socket::address`] is.
pub mod socket_names {
    /// A frontend's.
    pub const FRONTEND: u16 = 0;
    /// A backend's.
    pub const BACKEND: u16 = 1;
}

/// A cookie of the kernel as keys hold it: low and high half.
#[inline(always)]
pub const fn halves(cookie: u64) -> [u32; 2] {
    [cookie as u32, (cookie >> 32) as u32]
}

/// A cookie of the kernel from its halves.
pub const fn cookie(halves: [u32; 2]) -> u64 {
    halves[0] as u64 | (halves[1] as u64) << 32
}

/// A client and the service port that it uses: key of the affinity maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct AffinityKey<A> {
    /// The client's address; unspecified if it is known by `namespace`.
    pub client: A,
    /// The cookie of the client's network namespace, low and high half, if it was translated at its socket, where its
    /// address is not known; 0 otherwise.
    pub namespace: [u32; 2],
    /// The service port.
    pub service: ServiceId,
}

/// The backend that a client stays with: value of the affinity maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Affinity {
    /// The backend.
    pub backend: BackendId,
    /// The backend row's generation when it was chosen.
    pub generation: u32,
    /// When the client last opened a connection, in jiffies (see [`crate::tables::Tables::jiffies`]).
    pub last_used: u64,
}

/// A datagram that travels in fragments: key of the fragments maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// The identification of the datagram as it stands in the header; that of IPv4 has 16 bits.
    pub identification: u32,
    /// One of [`protocol`].
    pub protocol: u8,
    /// One of [`hook`].
    pub hook: u8,
    /// Zero.
    pub pad: u16,
}

/// What is known of a datagram in fragments: value of the fragments maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Fragment {
    /// Source port; 0 unless [`fragment_state::PORTS`].
    pub source_port: Port,
    /// Destination port; 0 unless [`fragment_state::PORTS`].
    pub destination_port: Port,
    /// When the fragment was seen that the row was written for, in ticks (see [`crate::tables::Tables::now`]).
    pub seen: u32,
    /// One of [`fragment_state`].
    pub state: u32,
}

/// Values of [`Fragment::state`].
pub mod fragment_state {
    /// Nothing is known of the datagram; never in a row.
    pub const UNKNOWN: u32 = 0;
    /// Its first fragment was seen, and these are its ports.
    pub const PORTS: u32 = 1;
    /// A later fragment came first: all are handed to the kernel's own reassembly.
    pub const DETOURED: u32 = 2;
    /// Its first fragment was seen and has no ports that can be read.
    pub const FOREIGN: u32 = 3;
}

/// The first bytes of the link-layer address that a fragment has on its way to the kernel's own reassembly and back; the
/// index of the device that it came in by follows, in network byte order.
pub const DETOUR_LINK: [u8; 2] = [0x02, 0xfa];

/// A device that packets to Pods of other nodes leave by: value of the devices map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Device {
    /// The address that replaces a client's in IPv4; unspecified if the device has none and the node's is used.
    pub address4: Address4,
    /// The address that replaces a client's in IPv6; unspecified if the device has none and the node's is used.
    pub address6: Address6,
}

/// A link-layer address: key of the map of the node's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct LinkAddress {
    /// Its first four bytes as they follow each other in memory.
    pub start: u32,
    /// The other two, and two of zero.
    pub end: u32,
}

impl From<[u8; 6]> for LinkAddress {
    fn from([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self {
            start: u32::from_ne_bytes([a, b, c, d]),
            end: u32::from_ne_bytes([e, f, 0, 0]),
        }
    }
}

/// Where frames go that are this node's: value of the map of devices' link-layer addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct DeviceLinks {
    /// Index of the device; 0 in a row of none.
    pub index: u32,
    /// The device's own address, and that of the bridge or bond that it is a port of; the same again without one.
    pub addresses: [LinkAddress; 2],
}

/// What is at the other end of a device: value of the map of devices' roles.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct DeviceRole {
    /// Index of the device; 0 in a row of none.
    pub index: u32,
    /// One of [`device_role`].
    pub role: u32,
    /// Index of the bridge or bond that it is a port of; else its own.
    pub master: u32,
}

/// Values of [`DeviceRole::role`].
pub mod device_role {
    /// A Pod.
    pub const POD: u32 = 1;
    /// The network.
    pub const NETWORK: u32 = 2;
}

/// Rows of [`map::NAMESPACES`]: the agent writes half as many, so that they fit beside those of the agent before it.
pub const NAMESPACE_ROWS: u32 = 8_192;

/// Whose a network namespace is that is not the node's own.
pub mod namespace_role {
    /// A Pod's.
    pub const POD: u32 = 1;
    /// That of something else on this node. Without a row nothing is known of it yet.
    pub const OTHER: u32 = 2;
}

/// Rows of the maps that say which devices have a quality.
pub const DEVICE_ROWS: u32 = 1_024;

/// The row of a device in such a map. Where two devices share one, the other goes without: its packets take the longer
/// way.
#[inline(always)]
pub const fn device_row(index: u32) -> u32 {
    index % DEVICE_ROWS
}

/// The name of a service port: value of the service names map. No program reads it; it tells people, and the next
/// agent, what a service id stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct ServiceName {
    /// `NAMESPACE/NAME/PORT/PROTOCOL` in UTF-8, then zeros. PORT is empty if the port has no name.
    pub text: [u8; Self::LENGTH],
}

impl ServiceName {
    /// Three DNS labels of at most 63 characters, a protocol of at most 4 and three slashes (196), rounded up.
    pub const LENGTH: usize = 200;
}

/// Counters of a service port: value of the per-CPU array of counters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct ServiceStats {
    /// Connections (or first packets of UDP flows, or translated sockets) sent to a backend.
    pub connections: u64,
    /// First packets that found no usable backend.
    pub rejected: u64,
}

/// What the programs were loaded with: value of the settings map. No program reads it; commands judge flows by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LoadedSettings {
    /// Idle lifetimes in ticks.
    pub lifetimes: Lifetimes,
    /// The rate of the kernel's clock; 0 in a row that was never written.
    pub jiffies_per_second: u32,
    /// The source ports that the programs give out last ([`crate::tables::SourcePorts::local`]).
    pub local_ports: PortRange,
    /// Not zero if connections to removed backends go on.
    pub keeps_removed: u32,
    /// The node's primary IPv4 address; unspecified if it has none.
    pub node_address4: Address4,
    /// The node's primary IPv6 address; unspecified if it has none.
    pub node_address6: Address6,
    /// The cookie of the node's own network namespace, low and high half.
    pub node_namespace: [u32; 2],
    /// Not zero if only sockets of that namespace are translated.
    pub only_node_sockets: u32,
    /// What the hash of outside clients begins with, low and high half.
    pub hash_seed: [u32; 2],
}

macro_rules! assert_layout {
    ($($type:ty: $size:literal, align $align:literal;)*) => {
        $(const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == $align);)*
    };
}

assert_layout! {
    FrontendKey<Address4>: 8, align 4;
    FrontendKey<Address6>: 20, align 4;
    Frontend: 40, align 4;
    SourceRange<Address4>: 8, align 4;
    SourceRange<Address6>: 20, align 4;
    Slot: 8, align 4;
    Backend<Address4>: 16, align 4;
    Backend<Address6>: 28, align 4;
    FlowKey<Address4>: 16, align 4;
    FlowKey<Address6>: 40, align 4;
    Flow<Address4>: 36, align 4;
    Flow<Address6>: 60, align 4;
    SocketKey<Address4>: 16, align 4;
    SocketKey<Address6>: 28, align 4;
    Socket<Address4>: 20, align 4;
    Socket<Address6>: 32, align 4;
    AffinityKey<Address4>: 16, align 4;
    AffinityKey<Address6>: 28, align 4;
    Affinity: 16, align 8;
    FragmentKey<Address4>: 16, align 4;
    FragmentKey<Address6>: 40, align 4;
    Fragment: 12, align 4;
    Device: 20, align 4;
    DeviceRole: 12, align 4;
    LinkAddress: 8, align 4;
    DeviceLinks: 20, align 4;
    ServiceName: 200, align 1;
    ServiceStats: 16, align 8;
    crate::budget::Bucket: 8, align 4;
    crate::cidr::Networks: 256, align 8;
    LoadedSettings: 80, align 4;
}

#[cfg(feature = "aya")]
mod pod {
    #![expect(
        unsafe_code,
        reason = "aya asks for the promise that these types are plain bytes"
    )]

    use super::*;

    /// An address that rows are generic over, so that whoever reads maps may be generic too.
    ///
    /// # Safety
    /// The rows listed below have no padding with this address: it consists of whole, aligned words.
    pub unsafe trait PlainAddress: crate::address::Address + aya::Pod {}

    // SAFETY: the sizes asserted above leave no room for padding.
    unsafe impl PlainAddress for Address4 {}
    // SAFETY: as above.
    unsafe impl PlainAddress for Address6 {}

    macro_rules! plain {
        ($($type:ty),* $(,)?) => {
            // SAFETY: `repr(C)` structs of integers; the sizes asserted above leave no room for padding.
            $(unsafe impl aya::Pod for $type {})*
        };
    }

    macro_rules! plain_of {
        ($($row:ident),* $(,)?) => {
            // SAFETY: `repr(C)` structs of integers and of an address that promises to leave no room for padding.
            $(unsafe impl<A: PlainAddress> aya::Pod for $row<A> {})*
        };
    }

    plain!(
        Address4,
        Address6,
        Frontend,
        Slot,
        Affinity,
        Fragment,
        Device,
        DeviceRole,
        LinkAddress,
        DeviceLinks,
        ServiceName,
        ServiceStats,
        LoadedSettings,
        crate::budget::Bucket,
        crate::cidr::Networks,
    );
    plain_of!(
        FrontendKey,
        Backend,
        FlowKey,
        Flow,
        SocketKey,
        Socket,
        SourceRange,
        AffinityKey,
        FragmentKey,
    );
}
#[cfg(feature = "aya")]
pub use pod::PlainAddress;

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::{Address4, Address6, Port};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn port(number: u16) {
            let port = Port::new(number);
            prop_assert_eq!(port.get(), number);
            prop_assert_eq!(port.to_bytes(), number.to_be_bytes());
            prop_assert_eq!(Port::from_bytes(number.to_be_bytes()), port);
        }

        #[test]
        fn address4(octets: [u8; 4]) {
            let address = Address4::from(Ipv4Addr::from(octets));
            prop_assert_eq!(address.to_bytes(), octets);
            prop_assert_eq!(address.to_word().to_ne_bytes(), octets);
            prop_assert_eq!(Address4::from_word(address.to_word()), address);
            prop_assert_eq!(Ipv4Addr::from(address).octets(), octets);
        }

        #[test]
        fn address6(octets: [u8; 16]) {
            let address = Address6::from(Ipv6Addr::from(octets));
            prop_assert_eq!(address.to_words()[1].to_ne_bytes(), [octets[4], octets[5], octets[6], octets[7]]);
            prop_assert_eq!(Address6::from_words(address.to_words()), address);
            prop_assert_eq!(Ipv6Addr::from(address).octets(), octets);
        }

        #[test]
        fn mapped(octets: [u8; 4]) {
            let address = Address4::from_bytes(octets);
            let mapped = Address6::from_mapped(address);
            prop_assert_eq!(Ipv6Addr::from(mapped), Ipv4Addr::from(octets).to_ipv6_mapped());
            prop_assert_eq!(mapped.to_mapped(), Some(address));
        }

        #[test]
        fn mapped_as_the_standard_library_has_it(octets: [u8; 16], zeros in 0_usize..16) {
            let mut octets = octets;
            octets[..zeros.min(10)].fill(0);
            if zeros > 12 {
                octets[10..12].fill(0xff);
            }
            let address = Ipv6Addr::from(octets);
            let expected = address.to_ipv4_mapped().map(Address4::from);
            prop_assert_eq!(Address6::from(address).to_mapped(), expected);
        }
    }
}
