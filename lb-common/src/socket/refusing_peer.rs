//! UDP sockets that are connected to a frontend without a backend.

use super::{Call, Peer, SocketTables};
use crate::address::Address;
use crate::layout::{Socket, socket_names};
use crate::net::Port;
use crate::tables::Tables;

/// A UDP port without a listener: it is assigned to a protocol of TCP (`tcpmux`). A peer cannot
/// have port 0 (`inet_getname`, <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c>).
pub(super) const REFUSING_PORT: Port = Port::new(1);

/// A peer that refuses all datagrams. Its address is unspecified if the node has none.
#[inline(always)]
pub(super) fn refusing_peer<A: Address>(tables: &impl Tables<A>) -> Peer<A> {
    Peer {
        address: tables.settings().node_address(),
        port: REFUSING_PORT,
    }
}

/// Makes the refusing peer the peer of a socket. Returns false if there is none.
#[inline(never)]
pub(super) fn insert_refusing_peer<A: Address>(
    tables: &impl SocketTables<A>,
    call: &Call<A>,
    to: &mut Peer<A>,
) -> bool {
    let refusing_peer = refusing_peer(tables);
    if refusing_peer.address.is_unspecified() {
        return false;
    }
    *to = refusing_peer;
    tables.insert_socket(&call.key(refusing_peer), &frontend_row(call.peer));
    true
}

/// Removes the row of the refusing peer of a socket.
#[inline(never)]
pub(super) fn remove_refusing_peer<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    let refusing_peer = refusing_peer(tables);
    if !refusing_peer.address.is_unspecified() {
        tables.remove_socket(&call.key(refusing_peer));
    }
}

/// A row that names a frontend and has no backend yet.
#[inline(always)]
pub(super) fn frontend_row<A>(frontend: Peer<A>) -> Socket<A> {
    Socket {
        address: frontend.address,
        port: frontend.port,
        names: socket_names::FRONTEND,
        service: 0,
        backend: 0,
        generation: 0,
    }
}
