//! Translated sockets, and clients that stay with a backend.

use super::service::{BackendId, ServiceId};
use crate::net::Port;

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
    /// One of [`crate::net::protocol`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// The other side of a translation at a socket: value of the sockets maps.
///
/// Under a backend's address stands the frontend; under a frontend's address the backend that was
/// chosen for a UDP socket. Under the unspecified address and a small number as port stands a
/// frontend that a UDP socket has asked for. A UDP socket that was connected to a frontend without
/// a backend has an address and a port of the node for one, and 0 as [`Self::backend`].
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
    /// The cookie of the client's network namespace, low and high half, if it was translated at its
    /// socket, where its address is not known; 0 otherwise.
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
    /// When the client last opened a connection, in jiffies (see
    /// [`crate::tables::Tables::jiffies`]).
    pub last_used: u64,
}
