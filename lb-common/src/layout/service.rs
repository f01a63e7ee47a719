//! Service ports: frontends, source ranges, slots, backends, names and counters.

use crate::net::Port;

/// Small number that identifies a service port. It is the index of its counters. 0 is never valid.
pub type ServiceId = u32;
/// Index of a row in the backends array of its family. 0 is never valid.
pub type BackendId = u32;

/// What clients connect to: key of the frontends map.
///
/// Port 0 is the wildcard row of an address. It marks the address as a VIP, and determines what
/// happens to packets to ports that no Service uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct FrontendKey<A> {
    /// The address that clients use.
    pub address: A,
    /// The port that clients use; 0 for the wildcard row.
    pub port: Port,
    /// One of [`crate::net::protocol`]; 0 for the wildcard row.
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

/// The row that a packet to a frontend finds: value of the frontends map. Writing it publishes the
/// Service.
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
    /// The Maglev table of the backends that clients outside choose from. It is empty if they use a
    /// list, as clients inside do.
    pub maglev: Region,
    /// The set of [`SourceRange`] rows that clients must be in; 0 if all clients are allowed.
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
    /// In a wildcard row: packets to ports without a row are not rejected but left to the node.
    pub const PASS_UNKNOWN: u32 = 1 << 3;
    /// In a wildcard row: ICMP echo requests are answered.
    pub const ECHO: u32 = 1 << 4;
    /// In a row with source ranges: processes of the node are allowed, because one of its addresses
    /// is in a range.
    pub const NODE_ALLOWED: u32 = 1 << 5;
    /// The address is one of the node's own: packets to it may be answers to the node's own
    /// connections.
    pub const NODE_ADDRESS: u32 = 1 << 6;
}

/// Clients that may use an address with `loadBalancerSourceRanges`: key of the source ranges maps.
///
/// The maps find the longest prefix. The prefix length of a key is [`SourceRange::SET_BITS`] plus
/// that of the network.
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
/// A row belongs to one service port. `generation` grows each time the row is given to another
/// endpoint. So slots, flows and sockets that name the row can tell that their backend is gone.
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
    /// No endpoint: flows to it end. A row that was never written has this value.
    pub const GONE: u8 = 0;
    /// Takes new flows.
    pub const ACTIVE: u8 = 1;
    /// Keeps the flows it has.
    pub const DRAINING: u8 = 2;
    /// Keeps the connections it has for a while: the endpoint is missing, and may come back
    /// unchanged.
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

/// The name of a service port: value of the service names map. The programs do not read it. It
/// tells people, and the next agent, what a service id means.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct ServiceName {
    /// `NAMESPACE/NAME/PORT/PROTOCOL` in UTF-8, then zeros. PORT is empty if the port has no name.
    pub text: [u8; Self::LENGTH],
}

impl ServiceName {
    /// Three DNS labels of at most 63 characters, a protocol of at most 4 and three slashes (196),
    /// rounded up.
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
