//! Translation at the socket: a process connects or sends to a frontend, and its socket gets a backend's address
//! before there is a packet.

use crate::address::Address;
use crate::choose::{ENDED, Origin, affine, choose, find_frontend, region, stay};
use crate::layout::{
    AffinityKey, Backend, BackendId, Frontend, Port, ServiceId, Socket, SocketKey, backend_state,
    frontend_flags, halves, protocol,
};
use crate::reason::Reason;
use crate::tables::Tables;

/// What sockets are remembered by, beside [`Tables`].
pub trait SocketTables<A: Address>: Tables<A> {
    /// The row with this key.
    fn socket(&self, key: &SocketKey<A>) -> Option<Socket<A>>;
    /// Adds or replaces a row. Without it the socket works, but shows the backend's address as its peer.
    fn insert_socket(&self, key: &SocketKey<A>, socket: &Socket<A>);
    /// Removes a row, if it is there.
    fn remove_socket(&self, key: &SocketKey<A>);
}

/// How many frontends are noted of an unconnected UDP socket. The rows of others stay behind when it is closed, until
/// the map needs their room.
const FRONTENDS: u16 = 4;

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
    /// The cookie of the socket's network namespace; 0 if the kernel does not say.
    pub namespace: u64,
    /// Whether that is the node's own.
    pub is_node: bool,
    /// Whether the socket has a port of its own already, which the process may have chosen.
    pub is_bound: bool,
}

impl<A: Address> Call<A> {
    #[inline(always)]
    fn key(&self, peer: Peer<A>) -> SocketKey<A> {
        SocketKey {
            cookie: halves(self.cookie),
            address: peer.address,
            port: peer.port,
            protocol: self.protocol,
            pad: 0,
        }
    }

    /// Where the frontends stand that an unconnected UDP socket has sent to: in rows for the unspecified address and
    /// the ports from 0 on.
    #[inline(always)]
    fn frontend_key(&self, index: u16) -> SocketKey<A> {
        self.key(Peer {
            address: A::default(),
            port: Port::new(index),
        })
    }
}

/// `connect`: the peer to connect to instead, `None` to leave the call alone, or why it fails.
#[inline(always)]
pub fn connect<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Result<Option<Peer<A>>, Reason> {
    // A Pod that talks to itself does not mean the node's NodePorts.
    if call.peer.address.is_loopback() && !call.is_node {
        return Ok(None);
    }
    let Some(frontend) = find_frontend(tables, call.peer.address, call.peer.port, call.protocol) else {
        return Ok(None);
    };
    // Two Services may share a Pod, and the kernel has no second TCP connection from one port to it: at the Pod's
    // device, the port of one is replaced.
    if call.is_bound && !call.is_node && call.protocol == protocol::TCP {
        return Ok(None);
    }
    // The address of a Pod's client is not known here: its packets are filtered at the Pod's device.
    let is_filtered = frontend.source_ranges != 0;
    if frontend.flags & frontend_flags::PASS_UNKNOWN != 0 || (is_filtered && !call.is_node) {
        return Ok(None);
    }
    let (id, backend) = backend_for(tables, call, &frontend).inspect_err(|reason| {
        tables.count_reason(*reason);
        if matches!(reason, Reason::NoEndpoint | Reason::NoLocalEndpoint) {
            tables.count_rejected(frontend.service);
        }
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
    if let Some(known) = tables.socket(&key)
        && is_usable(tables, &known)
    {
        return Ok(Some(Peer {
            address: known.address,
            port: known.port,
        }));
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
        note(tables, call);
    }
    Ok(to)
}

/// Notes the frontend that an unconnected UDP socket sends to, for [`release`].
#[inline(never)]
fn note<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    for index in 0..FRONTENDS {
        let key = call.frontend_key(index);
        match tables.socket(&key) {
            Some(known) if known.address == call.peer.address && known.port == call.peer.port => return,
            Some(_) => {}
            None => {
                let frontend = Socket {
                    address: call.peer.address,
                    port: call.peer.port,
                    pad: 0,
                    service: 0,
                    backend: 0,
                    generation: 0,
                };
                tables.insert_socket(&key, &frontend);
                return;
            }
        }
    }
}

/// A socket is closed, whose peer is now as the call says: nobody needs its rows any more.
///
/// The kernel forgets the peer of a TCP connection that was refused while `connect` waited: that row stays.
#[inline(always)]
pub fn release<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
    if call.peer.port.get() != 0 {
        tables.remove_socket(&call.key(call.peer));
    }
    if call.protocol == protocol::UDP {
        forget_frontends(tables, call);
    }
}

#[inline(never)]
fn forget_frontends<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) {
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

/// Whether a row names a backend that lives.
///
/// A row that names a frontend is one for [`restore`]: then the datagram goes to the backend itself, as the kernel does
/// for connected IPv6 sockets whose peer is an IPv4-mapped address.
// Out of line: of an optional backend LLVM would carry the undefined half around.
#[inline(never)]
fn is_usable<A: Address>(tables: &impl Tables<A>, known: &Socket<A>) -> bool {
    let Some(backend) = tables.backend(known.backend) else {
        return false;
    };
    backend.generation == known.generation
        && backend.state != backend_state::GONE
        && backend.address == known.address
        && backend.port == known.port
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
    call: &Call<A>,
    frontend: &Frontend,
) -> Result<(BackendId, Backend<A>), Reason> {
    if frontend.flags & frontend_flags::WILDCARD != 0 {
        return Err(Reason::UnknownPort);
    }
    if frontend.source_ranges != 0 && frontend.flags & frontend_flags::NODE_ALLOWED == 0 {
        return Err(Reason::SourceRange);
    }
    let region = region(frontend, Origin::Inside)?;
    let affinity = AffinityKey {
        client: A::default(),
        namespace: halves(call.namespace),
        service: frontend.service,
    };
    let has_affinity = frontend.affinity_seconds != 0;
    let mut id = 0;
    if has_affinity {
        id = affine(tables, &affinity, frontend, Origin::Inside);
    }
    if id == 0 || id == ENDED {
        id = choose(tables, frontend.service, &region, tables.random());
    }
    let backend = tables
        .backend(id)
        .filter(|backend| id != 0 && backend.service == frontend.service)
        .ok_or(Reason::StaleSlots)?;
    if has_affinity {
        stay(tables, &affinity, id, backend.generation);
    }
    Ok((id, backend))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::{Call, FRONTENDS, Peer, connect, release, restore, send};
    use crate::host::HostTables;
    use crate::layout::{
        Address4, Backend, Frontend, FrontendKey, Port, Region, ServiceId, ServiceStats, Slot, backend_state,
        frontend_flags, protocol,
    };
    use crate::reason::Reason;

    fn peer(last: u8, port: u16) -> Peer<Address4> {
        Peer {
            address: Address4::from_bytes([10, 0, 0, last]),
            port: Port::new(port),
        }
    }

    const SERVICE: ServiceId = 5;

    fn vip() -> Peer<Address4> {
        peer(1, 53)
    }

    /// A Service of two backends, 10.0.0.11 and 10.0.0.12, and the wildcard row of its address.
    fn tables() -> HostTables<Address4> {
        let mut tables = HostTables::<Address4>::default();
        for id in [1, 2] {
            let Peer { address, port } = peer(10 + u8::try_from(id).unwrap(), 5353);
            let backend = Backend {
                address,
                port,
                state: backend_state::ACTIVE,
                flags: 0,
                generation: 1,
                service: SERVICE,
            };
            tables.backends.insert(id, backend);
            tables.slots.insert(
                id,
                Slot {
                    backend: id,
                    generation: 1,
                },
            );
        }
        publish(&mut tables, 2, 0);
        let wildcard = FrontendKey {
            address: vip().address,
            port: Port::new(0),
            protocol: 0,
            pad: 0,
        };
        tables.frontends.insert(
            wildcard,
            Frontend {
                flags: frontend_flags::WILDCARD,
                ..Frontend::default()
            },
        );
        tables
    }

    fn publish(tables: &mut HostTables<Address4>, length: u32, flags: u32) {
        let key = FrontendKey {
            address: vip().address,
            port: vip().port,
            protocol: protocol::UDP,
            pad: 0,
        };
        let frontend = Frontend {
            service: SERVICE,
            flags,
            cluster: Region { base: 1, length },
            ..Frontend::default()
        };
        tables.frontends.insert(key, frontend);
    }

    fn call(cookie: u64, peer: Peer<Address4>) -> Call<Address4> {
        Call {
            cookie,
            protocol: protocol::UDP,
            namespace: 7,
            is_node: false,
            is_bound: false,
            peer,
        }
    }

    #[test]
    fn connections_of_pods_from_a_port_of_their_choice_are_left_to_their_device() {
        let mut tables = tables();
        let row = tables.frontends.values().find(|row| row.service == SERVICE);
        let row = *row.unwrap();
        let key = FrontendKey {
            address: vip().address,
            port: vip().port,
            protocol: protocol::TCP,
            pad: 0,
        };
        tables.frontends.insert(key, row);
        for (protocol, is_node, is_bound, is_translated) in [
            (protocol::TCP, false, true, false),
            (protocol::TCP, false, false, true),
            (protocol::TCP, true, true, true),
            (protocol::UDP, false, true, true),
        ] {
            let call = Call {
                protocol,
                is_node,
                is_bound,
                ..call(7, vip())
            };
            let to = connect(&tables, &call).unwrap();
            assert_eq!(to.is_some(), is_translated, "{call:?}");
        }
    }

    #[test]
    fn connect_and_restore() {
        let tables = tables();
        let to = connect(&tables, &call(7, vip())).unwrap().unwrap();
        assert!([peer(11, 5353), peer(12, 5353)].contains(&to));
        assert_eq!(restore(&tables, &call(7, to)), Some(vip()));
        // Another socket talks to the Pod itself.
        assert_eq!(restore(&tables, &call(8, to)), None);
        assert_eq!(restore(&tables, &call(7 + (1 << 32), to)), None);
        let counted = tables.stats.borrow()[&SERVICE];
        assert_eq!(
            counted,
            ServiceStats {
                connections: 1,
                rejected: 0
            }
        );
    }

    #[test]
    fn other_peers_are_left_alone() {
        let tables = tables();
        assert_eq!(connect(&tables, &call(7, peer(99, 53))), Ok(None));
        assert_eq!(send(&tables, &call(7, peer(99, 53))), Ok(None));
        assert!(tables.sockets.borrow().is_empty());
    }

    #[test]
    fn datagrams_of_a_socket_stay_with_their_backend() {
        let mut tables = tables();
        let to = send(&tables, &call(7, vip())).unwrap();
        for _ in 0..20 {
            assert_eq!(send(&tables, &call(7, vip())), Ok(to));
        }
        assert_eq!(tables.stats.borrow()[&SERVICE].connections, 1);
        assert_eq!(restore(&tables, &call(7, to.unwrap())), Some(vip()));

        // Draining keeps what it has.
        let id = if to == Some(peer(11, 5353)) { 1 } else { 2 };
        tables.backends.get_mut(&id).unwrap().state = backend_state::DRAINING;
        assert_eq!(send(&tables, &call(7, vip())), Ok(to));
        // Gone does not.
        tables.backends.get_mut(&id).unwrap().state = backend_state::GONE;
        tables.slots.insert(
            id,
            Slot {
                backend: 3 - id,
                generation: 1,
            },
        );
        let other = send(&tables, &call(7, vip())).unwrap();
        assert_ne!(other, to);
        assert_eq!(send(&tables, &call(7, vip())), Ok(other));
    }

    /// A call when the socket is closed.
    fn closed(peer: Peer<Address4>) -> Call<Address4> {
        call(7, peer)
    }

    const NO_PEER: Peer<Address4> = Peer {
        address: Address4::from_word(0),
        port: Port::new(0),
    };

    #[test]
    fn a_closed_socket_leaves_nothing() {
        let tables = tables();
        let to = connect(&tables, &call(7, vip())).unwrap().unwrap();
        let other = connect(&tables, &call(8, vip())).unwrap().unwrap();
        release(&tables, &closed(to));
        assert_eq!(restore(&tables, &call(7, to)), None);
        assert_eq!(restore(&tables, &call(8, other)), Some(vip()));
        // It may never have been translated.
        release(&tables, &closed(peer(99, 53)));
        release(&tables, &closed(NO_PEER));
        assert_eq!(tables.sockets.borrow().len(), 1);
    }

    /// Makes the first `count` ports of the VIP frontends of the Service.
    fn publish_ports(tables: &mut HostTables<Address4>, count: u16) -> Vec<Peer<Address4>> {
        let known = *tables
            .frontends
            .values()
            .find(|row| row.service == SERVICE)
            .unwrap();
        let frontends: Vec<_> = (0..count).map(|index| peer(1, 1000 + index)).collect();
        for frontend in &frontends {
            let key = FrontendKey {
                address: frontend.address,
                port: frontend.port,
                protocol: protocol::UDP,
                pad: 0,
            };
            tables.frontends.insert(key, known);
        }
        frontends
    }

    #[test]
    fn a_closed_unconnected_socket_leaves_nothing() {
        let mut tables = tables();
        let frontends = publish_ports(&mut tables, FRONTENDS);
        for _ in 0..3 {
            for frontend in &frontends {
                send(&tables, &call(7, *frontend)).unwrap().unwrap();
            }
        }
        send(&tables, &call(8, frontends[0])).unwrap().unwrap();
        release(&tables, &closed(NO_PEER));
        assert_eq!(tables.sockets.borrow().len(), 3);
        release(&tables, &call(8, NO_PEER));
        assert!(tables.sockets.borrow().is_empty());
    }

    #[test]
    fn rows_for_more_frontends_than_are_noted_stay() {
        let mut tables = tables();
        let frontends = publish_ports(&mut tables, FRONTENDS + 1);
        for frontend in &frontends {
            send(&tables, &call(7, *frontend)).unwrap().unwrap();
        }
        release(&tables, &closed(NO_PEER));
        let left = tables.sockets.borrow();
        assert!(left.keys().any(|key| key.port == frontends.last().unwrap().port));
        assert!(left.len() <= 2);
    }

    #[test]
    fn what_is_sent_to_a_backend_itself_is_left_alone() {
        let tables = tables();
        let to = connect(&tables, &call(7, vip())).unwrap().unwrap();
        assert_eq!(send(&tables, &call(7, to)), Ok(None));
        assert_eq!(restore(&tables, &call(7, to)), Some(vip()));
    }

    #[test]
    fn node_ports_at_loopback_addresses_are_for_processes_of_the_node() {
        let mut tables = tables();
        let node_port = Peer {
            address: Address4::from_bytes([127, 0, 0, 1]),
            port: Port::new(30_053),
        };
        let key = FrontendKey {
            address: node_port.address,
            port: node_port.port,
            protocol: protocol::UDP,
            pad: 0,
        };
        let frontend = Frontend {
            service: SERVICE,
            cluster: Region { base: 1, length: 2 },
            ..Frontend::default()
        };
        tables.frontends.insert(key, frontend);
        let of_pod = call(7, node_port);
        assert_eq!(connect(&tables, &of_pod), Ok(None));
        let of_node = Call {
            is_node: true,
            ..of_pod
        };
        assert!(matches!(connect(&tables, &of_node), Ok(Some(_))));
    }

    #[test]
    fn row_of_a_backend_given_to_another_endpoint_is_noticed() {
        let mut tables = tables();
        let to = send(&tables, &call(7, vip())).unwrap();
        for id in [1, 2] {
            let backend = tables.backends.get_mut(&id).unwrap();
            backend.address = Address4::from_bytes([10, 0, 0, 99]);
            backend.generation = 2;
            tables.slots.insert(
                id,
                Slot {
                    backend: id,
                    generation: 2,
                },
            );
        }
        assert_ne!(send(&tables, &call(7, vip())).unwrap(), to);
    }

    #[test]
    fn no_endpoint() {
        let mut tables = tables();
        publish(&mut tables, 0, 0);
        assert_eq!(connect(&tables, &call(7, vip())), Err(Reason::NoEndpoint));
        assert_eq!(send(&tables, &call(7, vip())), Err(Reason::NoEndpoint));
        assert_eq!(tables.reason_count(Reason::NoEndpoint), 2);
        assert_eq!(tables.stats.borrow()[&SERVICE].rejected, 2);
    }

    #[test]
    fn sockets_are_inside() {
        let mut tables = tables();
        publish(&mut tables, 2, frontend_flags::OUTSIDE_LOCAL);
        assert!(connect(&tables, &call(7, vip())).unwrap().is_some());
        publish(&mut tables, 2, frontend_flags::INSIDE_LOCAL);
        assert_eq!(connect(&tables, &call(7, vip())), Err(Reason::NoLocalEndpoint));
    }

    #[test]
    fn unknown_port_belongs_to_no_service() {
        let tables = tables();
        let unknown = Peer {
            port: Port::new(9),
            ..vip()
        };
        assert_eq!(connect(&tables, &call(7, unknown)), Err(Reason::UnknownPort));
        assert_eq!(tables.reason_count(Reason::UnknownPort), 1);
        assert!(tables.stats.borrow().is_empty());
    }

    #[test]
    fn stale_slots_fail_the_call() {
        let mut tables = tables();
        for backend in tables.backends.values_mut() {
            backend.generation = 2;
        }
        assert_eq!(connect(&tables, &call(7, vip())), Err(Reason::StaleSlots));
        assert!(tables.sockets.borrow().is_empty());
    }
}
