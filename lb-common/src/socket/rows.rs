//! What is remembered of sockets.

use super::nowhere::{frontend_row, leave_nowhere};
use super::{Call, Peer, SocketTables};
use crate::address::Address;
use crate::layout::{Socket, backend_state, socket_names};
use crate::net::protocol;
use crate::tables::Tables;

/// How many frontends are noted of a UDP socket. The rows of others stay behind when it is closed,
/// until the map needs their room.
pub(super) const FRONTENDS: u16 = 4;

/// What is remembered of a socket and an address.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Remembered {
    /// Nothing that holds.
    Nothing,
    /// The frontend that the address stands for.
    Frontend,
    /// The backend that it leads to.
    Backend,
}

/// Looks for a row, and for the backend that it names.
// Out of line: of an optional row LLVM would carry the undefined half around.
#[inline(never)]
pub(super) fn remembered<A: Address>(
    tables: &impl SocketTables<A>,
    call: &Call<A>,
    backend: &mut Peer<A>,
) -> Remembered {
    let Some(known) = tables.socket(&call.key(call.peer)) else {
        return Remembered::Nothing;
    };
    if is_usable(tables, &known) {
        *backend = Peer {
            address: known.address,
            port: known.port,
        };
        name(tables, call, &known);
        return Remembered::Backend;
    }
    if known.names == socket_names::FRONTEND {
        Remembered::Frontend
    } else {
        Remembered::Nothing
    }
}

/// Remembers the backend that was chosen for a frontend.
#[inline(never)]
pub(super) fn keep<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>, to: &Peer<A>) {
    let Some(reverse) = tables.socket(&call.key(*to)) else {
        return;
    };
    let row = Socket {
        address: to.address,
        port: to.port,
        names: socket_names::BACKEND,
        ..reverse
    };
    tables.insert_socket(&call.key(call.peer), &row);
    record_frontend(tables, call);
}

/// Makes sure that answers of a backend bear the name of the frontend that was asked last.
#[inline(always)]
pub(super) fn name<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>, backend: &Socket<A>) {
    let key = call.key(Peer {
        address: backend.address,
        port: backend.port,
    });
    let is_named = tables
        .socket(&key)
        .is_some_and(|row| row.address == call.peer.address && row.port == call.peer.port);
    if !is_named {
        let row = Socket {
            address: call.peer.address,
            port: call.peer.port,
            names: socket_names::FRONTEND,
            ..*backend
        };
        tables.insert_socket(&key, &row);
    }
}

/// Notes a frontend that a UDP socket has asked for, for [`release`].
#[inline(never)]
pub(super) fn record_frontend<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    for index in 0..FRONTENDS {
        let key = call.frontend_key(index);
        match tables.socket(&key) {
            Some(known) if known.address == call.peer.address && known.port == call.peer.port => return,
            Some(_) => {}
            None => {
                tables.insert_socket(&key, &frontend_row(call.peer));
                return;
            }
        }
    }
}

/// A socket is closed, whose peer is now as the call says: nobody needs its rows any more. One of
/// IPv6 may have rows of both families.
///
/// The kernel forgets the peer of a TCP connection that was refused while `connect` waited: that
/// row stays.
#[inline(always)]
pub fn release<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    if call.peer.port.get() != 0 {
        tables.remove_socket(&call.key(call.peer));
    }
    if call.protocol == protocol::UDP {
        // It may have lost that peer since.
        leave_nowhere(tables, call);
        forget_frontends(tables, call);
    }
}

#[inline(never)]
pub(super) fn forget_frontends<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    for index in 0..FRONTENDS {
        let noted = call.frontend_key(index);
        let Some(frontend) = tables.socket(&noted) else {
            return;
        };
        tables.remove_socket(&noted);
        let key = call.key(Peer {
            address: frontend.address,
            port: frontend.port,
        });
        if let Some(backend) = tables.socket(&key) {
            tables.remove_socket(&call.key(Peer {
                address: backend.address,
                port: backend.port,
            }));
            tables.remove_socket(&key);
        }
    }
}

/// Whether a row names a backend that lives. One that names a frontend does not: it is for
/// [`super::restore`].
// Out of line: of an optional backend LLVM would carry the undefined half around.
#[inline(never)]
pub(super) fn is_usable<A: Address>(tables: &impl Tables<A>, known: &Socket<A>) -> bool {
    let Some(backend) = tables.backend(known.backend) else {
        return false;
    };
    backend.generation == known.generation
        && backend.state != backend_state::GONE
        && backend.address == known.address
        && backend.port == known.port
}
