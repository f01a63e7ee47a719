//! Translation at the socket: a process connects or sends to a frontend, and its socket gets a backend's address
//! before there is a packet.

use crate::address::Address;
use crate::ingress::{Origin, choose_again, find_frontend, region};
use crate::layout::{
    Backend, BackendId, Frontend, Port, ServiceId, Socket, SocketKey, backend_state, frontend_flags,
};
use crate::reason::Reason;
use crate::tables::Tables;

/// What sockets are remembered by, beside [`Tables`].
pub trait SocketTables<A: Address>: Tables<A> {
    /// The row with this key.
    fn socket(&self, key: &SocketKey<A>) -> Option<Socket<A>>;
    /// Adds or replaces a row. Without it the socket works, but shows the backend's address as its peer.
    fn insert_socket(&self, key: &SocketKey<A>, socket: &Socket<A>);
}

/// An address that a socket uses for its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer<A> {
    /// The address.
    pub address: A,
    /// The port.
    pub port: Port,
}

/// A socket in a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call<A> {
    /// The kernel's socket cookie.
    pub cookie: u64,
    /// [`crate::layout::protocol::TCP`] or [`crate::layout::protocol::UDP`].
    pub protocol: u8,
    /// The peer that the call names.
    pub peer: Peer<A>,
}

impl<A: Address> Call<A> {
    #[inline(always)]
    fn key(&self, peer: Peer<A>) -> SocketKey<A> {
        SocketKey {
            cookie: [self.cookie as u32, (self.cookie >> 32) as u32],
            address: peer.address,
            port: peer.port,
            protocol: self.protocol,
            pad: 0,
        }
    }
}

/// `connect`: the peer to connect to instead, `None` to leave the call alone, or why it fails.
#[inline(always)]
pub fn connect<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Result<Option<Peer<A>>, Reason> {
    let Some(frontend) = find_frontend(tables, call.peer.address, call.peer.port, call.protocol) else {
        return Ok(None);
    };
    let (id, backend) = backend_for(tables, &frontend).inspect_err(|reason| {
        tables.count_reason(*reason);
        tables.count_rejected(frontend.service);
    })?;
    let to = Peer {
        address: backend.address,
        port: backend.port,
    };
    tables.insert_socket(&call.key(to), &row(call.peer, frontend.service, id, &backend));
    tables.count_connection(frontend.service);
    Ok(Some(to))
}

/// `sendmsg` with an address (unconnected UDP): as [`connect`], but the datagrams of one socket to one frontend go
/// to the same backend while it lives.
#[inline(always)]
pub fn send<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Result<Option<Peer<A>>, Reason> {
    let key = call.key(call.peer);
    if let Some(known) = tables.socket(&key) {
        let lives = tables.backend(known.backend).is_some_and(|backend| {
            backend.generation == known.generation && backend.state != backend_state::GONE
        });
        if lives {
            return Ok(Some(Peer {
                address: known.address,
                port: known.port,
            }));
        }
    }
    let to = connect(tables, call)?;
    if let Some(to) = to
        && let Some(reverse) = tables.socket(&call.key(to))
    {
        tables.insert_socket(
            &key,
            &Socket {
                address: to.address,
                port: to.port,
                ..reverse
            },
        );
    }
    Ok(to)
}

/// `recvmsg` and `getpeername`: the frontend that the program sees instead of the backend.
#[inline(always)]
pub fn restore<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Option<Peer<A>> {
    let frontend = tables.socket(&call.key(call.peer))?;
    Some(Peer {
        address: frontend.address,
        port: frontend.port,
    })
}

#[inline(always)]
fn row<A: Address>(peer: Peer<A>, service: ServiceId, id: BackendId, backend: &Backend<A>) -> Socket<A> {
    Socket {
        address: peer.address,
        port: peer.port,
        pad: 0,
        service,
        backend: id,
        generation: backend.generation,
    }
}

#[inline(always)]
fn backend_for<A: Address>(
    tables: &impl Tables<A>,
    frontend: &Frontend,
) -> Result<(BackendId, Backend<A>), Reason> {
    if frontend.flags & frontend_flags::WILDCARD != 0 {
        return Err(Reason::UnknownPort);
    }
    choose_again(tables, region(frontend, Origin::Inside)?).ok_or(Reason::StaleSlots)
}
