//! Translated sockets, and session affinity.

use super::service::{BackendId, ServiceId};
use crate::net::Port;

/// A socket and an address of its peer: key of the sockets maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct SocketKey<A> {
    /// The kernel's socket cookie, low and high half (a `u64` would force padding for IPv4).
    pub cookie: [u32; 2],
    /// The backend's address. For a UDP socket also a frontend's or the unspecified address.
    pub address: A,
    /// The port that belongs to `address`.
    pub port: Port,
    /// One of [`crate::net::protocol`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// The other side of a translation at a socket: value of the sockets maps.
///
/// The row of a backend's address holds the frontend. The row of a frontend's address holds the
/// backend that was chosen for a UDP socket. The row of the unspecified address, with a small
/// number as port, holds a frontend that a UDP socket has used. A UDP socket that was connected to
/// a frontend without a backend has an address and a port of the node as its backend, and 0 as
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

/// Kinds of [`Socket::address`].
pub mod socket_names {
    /// The address of a frontend.
    pub const FRONTEND: u16 = 0;
    /// The address of a backend.
    pub const BACKEND: u16 = 1;
}

/// Splits a cookie of the kernel into low and high half, as keys hold it.
#[inline(always)]
pub const fn halves(cookie: u64) -> [u32; 2] {
    [cookie as u32, (cookie >> 32) as u32]
}

/// Joins the halves of a cookie of the kernel.
pub const fn cookie(halves: [u32; 2]) -> u64 {
    halves[0] as u64 | (halves[1] as u64) << 32
}

/// A client and the service port that it uses: key of the affinity maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct AffinityKey<A> {
    /// The client's address; unspecified if `namespace` identifies the client.
    pub client: A,
    /// The cookie of the client's network namespace, low and high half, if the client was
    /// translated at its socket, where its address is not known; 0 otherwise.
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
