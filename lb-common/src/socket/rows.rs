//! Rows of translated sockets.

use super::refusing_peer::{frontend_row, remove_refusing_peer};
use super::{Call, Peer, SocketTables};
use crate::address::Address;
use crate::layout::{Socket, backend_state, socket_names};
use crate::net::protocol;
use crate::tables::Tables;

/// Number of frontends that are recorded for a UDP socket. The rows of further frontends stay when
/// it is closed, until the map evicts them.
pub(super) const FRONTENDS: u16 = 4;

/// What the row of a socket and an address contains.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Remembered {
    /// Nothing that is valid.
    Nothing,
    /// The frontend that stands behind the address.
    Frontend,
    /// The backend of the address.
    Backend,
}

/// Looks up a row, and the backend that it names.
// Not inlined: for an optional row, LLVM would carry the undefined half around.
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

/// Records the backend that was chosen for a frontend.
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

/// Ensures that answers of a backend show the frontend that was used last.
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

/// Records a frontend that a UDP socket has used, for [`release`].
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

/// Removes the rows of a socket that is closed. `call` has its current peer. An IPv6 socket may
/// have rows of both families.
///
/// The kernel forgets the peer of a TCP connection that was refused while `connect` waited. The row
/// of that peer stays.
#[inline(always)]
pub fn release<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    if call.peer.port.get() != 0 {
        tables.remove_socket(&call.key(call.peer));
    }
    if call.protocol == protocol::UDP {
        // The socket may have lost the refusing peer since.
        remove_refusing_peer(tables, call);
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

/// Returns true if a row names a backend that is alive. A row that names a frontend does not: it is
/// for [`super::restore`].
// Not inlined: for an optional backend, LLVM would carry the undefined half around.
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
