//! UDP sockets that are connected to a frontend without a backend.

use super::{Call, Peer, SocketTables};
use crate::address::Address;
use crate::layout::{Socket, socket_names};
use crate::net::Port;
use crate::tables::Tables;

/// A UDP port that nobody has: it is assigned to a protocol of TCP (`tcpmux`), and 0 is none that a
/// peer may have (`inet_getname`, net/ipv4/af_inet.c, Linux 6.18).
pub(super) const NOBODY: Port = Port::new(1);

/// A peer that refuses all datagrams. Unspecified if the node has no address.
#[inline(always)]
pub(super) fn nowhere<A: Address>(tables: &impl Tables<A>) -> Peer<A> {
    Peer {
        address: tables.settings().node_address(),
        port: NOBODY,
    }
}

/// Makes that the peer of a socket; false if there is none.
#[inline(never)]
pub(super) fn lead_nowhere<A: Address>(
    tables: &impl SocketTables<A>,
    call: &Call<A>,
    to: &mut Peer<A>,
) -> bool {
    let nowhere = nowhere(tables);
    if nowhere.address.is_unspecified() {
        return false;
    }
    *to = nowhere;
    tables.insert_socket(&call.key(nowhere), &frontend_row(call.peer));
    true
}

/// Forgets that it was the peer of a socket.
#[inline(never)]
pub(super) fn leave_nowhere<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    let nowhere = nowhere(tables);
    if !nowhere.address.is_unspecified() {
        tables.remove_socket(&call.key(nowhere));
    }
}

/// A row that names a frontend, and no backend yet.
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
