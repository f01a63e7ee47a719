//! Translation at the socket: when a process connects or sends to a frontend, its socket gets a
//! backend's address before there is a packet.

mod refusing_peer;
mod rows;

use self::refusing_peer::{frontend_row, insert_refusing_peer, remove_refusing_peer};
pub use self::rows::release;
use self::rows::{Remembered, is_usable, keep, remembered};
use crate::address::Address;
use crate::choose::{ENDED, Origin, affinity_backend, choose, find_frontend, record_affinity, region};
use crate::layout::{
    AffinityKey, Backend, BackendId, Frontend, ServiceId, Socket, SocketKey, frontend_flags, halves,
    socket_names,
};
use crate::net::{Port, protocol};
use crate::reason::Reason;
use crate::tables::Tables;

/// The rows of translated sockets, in addition to [`Tables`].
pub trait SocketTables<A: Address>: Tables<A> {
    /// The row with this key.
    fn socket(&self, key: &SocketKey<A>) -> Option<Socket<A>>;
    /// Adds or replaces a row. If the map does not accept it, the socket works, but shows the
    /// backend's address as its peer.
    fn insert_socket(&self, key: &SocketKey<A>, socket: &Socket<A>);
    /// Removes a row if it exists.
    fn remove_socket(&self, key: &SocketKey<A>);
    /// Returns true if the network namespace with this cookie is known to be that of a Pod of the
    /// cluster.
    fn is_of_pod(&self, namespace: u64) -> bool;
}

/// The address and port of a socket's peer.
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
    /// [`crate::net::protocol::TCP`] or [`crate::net::protocol::UDP`].
    pub protocol: u8,
    /// The peer that the call names.
    pub peer: Peer<A>,
    /// The cookie of the socket's network namespace; 0 if the kernel does not provide it.
    pub namespace: u64,
    /// Whether that namespace is the node's own.
    pub is_node_namespace: bool,
    /// Whether the socket already has a local port, which the process may have chosen.
    pub is_bound: bool,
    /// Whether the socket already has a peer.
    pub is_connected: bool,
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

    /// The key under which a frontend that a UDP socket has used is recorded: the unspecified
    /// address, and `index` as port.
    #[inline(always)]
    fn frontend_key(&self, index: u16) -> SocketKey<A> {
        self.key(Peer {
            address: A::default(),
            port: Port::new(index),
        })
    }
}

/// `connect`: returns the peer to connect to instead, `None` to leave the call unchanged, or the
/// reason why it fails.
///
/// `connect` of a UDP socket sends no packet and always succeeds: programs use it to learn their
/// own address. Without a backend the socket gets a peer that refuses its datagrams.
#[inline(always)]
pub fn connect<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Result<Option<Peer<A>>, Reason> {
    // The call ends any earlier connection of the socket.
    let is_datagrams = call.protocol == protocol::UDP;
    if is_datagrams && call.is_node_namespace {
        remove_refusing_peer(tables, call);
    }
    match find_backend(tables, call, false) {
        Ok(to) => Ok(to),
        Err(_) if is_datagrams => {
            let mut to = call.peer;
            Ok(insert_refusing_peer(tables, call, &mut to).then_some(to))
        }
        Err(refusal) => Err(refusal.counted(tables)),
    }
}

/// `sendmsg` of a UDP socket with an address. Returns the same as [`connect`].
#[inline(always)]
pub fn send<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Result<Option<Peer<A>>, Reason> {
    find_backend(tables, call, call.is_connected).map_err(|refusal| refusal.counted(tables))
}

/// Finds the destination of a socket's packets to a frontend. A UDP socket keeps its backend while
/// that is alive.
#[inline(always)]
fn find_backend<A: Address>(
    tables: &impl SocketTables<A>,
    call: &Call<A>,
    is_connected: bool,
) -> Result<Option<Peer<A>>, Refusal> {
    let mut known = call.peer;
    let mut remembered = Remembered::Nothing;
    if call.protocol == protocol::UDP {
        // Datagrams of Pods are translated at their devices. There, two frontends that share a
        // backend can be told apart, and a connected socket can get another backend.
        if !call.is_node_namespace {
            return Ok(None);
        }
        remembered = self::remembered(tables, call, &mut known);
        if remembered == Remembered::Backend {
            return Ok(Some(known));
        }
    }
    let to = translate(tables, call)?;
    match to {
        Some(to) if call.protocol == protocol::UDP => keep(tables, call, &to),
        // The socket sends directly to the backend, which answers with its own address. The kernel
        // also reports the backend for a connected IPv6 socket whose peer is an IPv4-mapped
        // address; that socket keeps its row.
        None if remembered == Remembered::Frontend && !is_connected => {
            tables.remove_socket(&call.key(call.peer));
        }
        _ => {}
    }
    Ok(to)
}

/// Why a frontend has no backend for a socket.
struct Refusal {
    reason: Reason,
    /// The service port; 0 if there is none.
    service: ServiceId,
}

impl Refusal {
    /// Counts the reason and returns it.
    #[inline(always)]
    fn counted<A: Address>(self, tables: &impl Tables<A>) -> Reason {
        tables.count_reason(self.reason);
        if matches!(self.reason, Reason::NoEndpoint | Reason::NoLocalEndpoint) {
            tables.count_rejected(self.service);
        }
        self.reason
    }
}

/// Chooses a backend for a socket, and records the frontend that it stands for. Returns `None` if
/// the call needs no translation.
#[inline(always)]
fn translate<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Result<Option<Peer<A>>, Refusal> {
    // In a Pod a loopback address is the Pod's own, not that of the node's NodePorts.
    if call.peer.address.is_loopback() && !call.is_node_namespace {
        return Ok(None);
    }
    let Some(frontend) = find_frontend(tables, call.peer.address, call.peer.port, call.protocol) else {
        return Ok(None);
    };
    if frontend.flags & frontend_flags::PASS_UNKNOWN != 0 || is_for_device(tables, call, &frontend) {
        return Ok(None);
    }
    let (id, backend) = backend_for(tables, call, &frontend).map_err(|reason| Refusal {
        reason,
        service: frontend.service,
    })?;
    let to = Peer {
        address: backend.address,
        port: backend.port,
    };
    let row = Socket {
        service: frontend.service,
        backend: id,
        generation: backend.generation,
        ..frontend_row(call.peer)
    };
    tables.insert_socket(&call.key(to), &row);
    tables.count_connection(frontend.service);
    Ok(Some(to))
}

/// Returns true if the socket programs leave the connection to the TC programs of the device
/// through which its packets leave the namespace.
#[inline(always)]
fn is_for_device<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>, frontend: &Frontend) -> bool {
    if call.is_node_namespace {
        return false;
    }
    // Two Services may share a Pod, and the kernel cannot open a second connection from one port to
    // it. At the device, the port of one of them is replaced. Source ranges and affinity need the
    // Pod's address, which is known only there.
    let needs_address = frontend.source_ranges != 0 || frontend.affinity_seconds != 0;
    // In a namespace that is not a Pod's, the address may belong to something else, such as a
    // cluster inside a container. Its packets never leave the namespace. Packets that do leave it
    // meet the programs of the device, as those of a new Pod do.
    call.is_bound || needs_address || !tables.is_of_pod(call.namespace)
}

/// `recvmsg` and `getpeername`: returns the frontend that the process sees instead of the backend.
///
/// An address that another program of the agent has already restored stays, while one program
/// replaces the other. The row of a frontend in which an older agent recorded a backend without
/// setting [`Socket::names`] is ignored too.
#[inline(always)]
pub fn restore<A: Address>(tables: &impl SocketTables<A>, call: &Call<A>) -> Option<Peer<A>> {
    let row = tables.socket(&call.key(call.peer))?;
    let names_frontend = row.names == socket_names::FRONTEND && !is_usable(tables, &row);
    names_frontend.then_some(Peer {
        address: row.address,
        port: row.port,
    })
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
        id = affinity_backend(tables, &affinity, frontend, Origin::Inside);
    }
    if id == 0 || id == ENDED {
        id = choose(tables, frontend.service, &region, tables.random());
    }
    let backend = tables
        .backend(id)
        .filter(|backend| id != 0 && backend.service == frontend.service)
        .ok_or(Reason::StaleSlots)?;
    if has_affinity {
        record_affinity(tables, &affinity, id, backend.generation);
    }
    Ok((id, backend))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::refusing_peer::REFUSING_PORT;
    use super::rows::FRONTENDS;
    use super::{Call, Peer, connect, release, restore, send};
    use crate::host::HostTables;
    use crate::layout::{
        Backend, Frontend, FrontendKey, Region, ServiceId, ServiceStats, Slot, backend_state, frontend_flags,
        socket_names,
    };
    use crate::net::{Address4, Port, protocol};
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

    /// A Service with two backends, 10.0.0.11 and 10.0.0.12, and the wildcard row of its address.
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
            is_node_namespace: true,
            is_bound: false,
            is_connected: false,
            peer,
        }
    }

    /// Publishes the Service's port for TCP as well.
    fn publish_tcp(tables: &mut HostTables<Address4>, change: impl FnOnce(&mut Frontend)) {
        let row = tables.frontends.values().find(|row| row.service == SERVICE);
        let mut row = *row.unwrap();
        change(&mut row);
        let key = FrontendKey {
            address: vip().address,
            port: vip().port,
            protocol: protocol::TCP,
            pad: 0,
        };
        tables.frontends.insert(key, row);
    }

    #[test]
    fn calls_of_pods_that_need_the_device_are_left_to_it() {
        let mut tables = tables();
        publish_tcp(&mut tables, |_| {});
        tables.pod_namespaces.push(call(7, vip()).namespace);
        for (protocol, is_node_namespace, is_bound, is_translated) in [
            (protocol::TCP, false, true, false),
            (protocol::TCP, false, false, true),
            (protocol::TCP, true, true, true),
            (protocol::UDP, false, false, false),
            (protocol::UDP, true, true, true),
        ] {
            let call = Call {
                protocol,
                is_node_namespace,
                is_bound,
                ..call(7, vip())
            };
            let to = connect(&tables, &call).unwrap();
            assert_eq!(to.is_some(), is_translated, "{call:?}");
            if protocol == protocol::UDP {
                assert_eq!(send(&tables, &call).unwrap().is_some(), is_translated, "{call:?}");
            }
        }
        // The device knows the client's address, which source ranges and affinity need.
        let changes: [fn(&mut Frontend); 2] = [|row| row.affinity_seconds = 9, |row| row.source_ranges = 1];
        for change in changes {
            publish_tcp(&mut tables, change);
            let call = Call {
                protocol: protocol::TCP,
                is_node_namespace: false,
                ..call(7, vip())
            };
            assert_eq!(connect(&tables, &call), Ok(None));
        }
    }

    /// The namespace may belong to something else, or not be known yet.
    #[test]
    fn calls_of_other_namespaces_than_pods_are_not_translated() {
        let mut tables = tables();
        let unknown = Peer {
            port: Port::new(9),
            ..vip()
        };
        publish_tcp(&mut tables, |_| {});
        let of = |namespace, is_node_namespace, peer| Call {
            protocol: protocol::TCP,
            namespace,
            is_node_namespace,
            ..call(namespace, peer)
        };
        tables.pod_namespaces.push(8);
        assert!(connect(&tables, &of(8, false, vip())).unwrap().is_some());
        assert_eq!(connect(&tables, &of(8, false, unknown)), Err(Reason::UnknownPort));
        let rows = tables.sockets.borrow().len();
        for peer in [vip(), unknown] {
            assert_eq!(connect(&tables, &of(9, false, peer)), Ok(None));
        }
        // Its calls are not refused either if a Service has no endpoints.
        publish_tcp(&mut tables, |row| row.cluster.length = 0);
        assert_eq!(connect(&tables, &of(8, false, vip())), Err(Reason::NoEndpoint));
        assert_eq!(connect(&tables, &of(9, false, vip())), Ok(None));
        assert_eq!(tables.sockets.borrow().len(), rows);
        // The node's own namespace needs no row.
        publish_tcp(&mut tables, |row| row.cluster.length = 2);
        assert!(connect(&tables, &of(9, true, vip())).unwrap().is_some());
    }

    /// A translated socket still shows the frontend when nothing is known of its namespace any
    /// more.
    #[test]
    fn names_of_translated_sockets_outlive_the_row_of_their_namespace() {
        let mut tables = tables();
        publish_tcp(&mut tables, |_| {});
        tables.pod_namespaces.push(7);
        let of_pod = |peer| Call {
            protocol: protocol::TCP,
            is_node_namespace: false,
            ..call(7, peer)
        };
        let to = connect(&tables, &of_pod(vip())).unwrap().unwrap();
        tables.pod_namespaces.clear();
        assert_eq!(restore(&tables, &of_pod(to)), Some(vip()));
        release(&tables, &of_pod(to));
        assert!(tables.sockets.borrow().is_empty());
    }

    #[test]
    fn restore_returns_the_frontend_of_a_connected_socket() {
        let tables = tables();
        let to = connect(&tables, &call(7, vip())).unwrap().unwrap();
        assert!([peer(11, 5353), peer(12, 5353)].contains(&to));
        assert_eq!(restore(&tables, &call(7, to)), Some(vip()));
        // Another socket talks to the Pod directly.
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

        // A draining backend keeps its flows.
        let id = if to == Some(peer(11, 5353)) { 1 } else { 2 };
        tables.backends.get_mut(&id).unwrap().state = backend_state::DRAINING;
        assert_eq!(send(&tables, &call(7, vip())), Ok(to));
        // A removed backend does not.
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

    /// The call for a socket that is closed.
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
        let rows = tables.sockets.borrow().len();
        let other = connect(&tables, &call(8, vip())).unwrap().unwrap();
        release(&tables, &closed(to));
        assert_eq!(restore(&tables, &call(7, to)), None);
        assert_eq!(restore(&tables, &call(8, other)), Some(vip()));
        // The socket may never have been translated.
        release(&tables, &closed(peer(99, 53)));
        release(&tables, &closed(NO_PEER));
        assert_eq!(tables.sockets.borrow().len(), rows);
    }

    /// Makes `count` ports of the VIP frontends of the Service.
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
    fn answers_show_the_frontend_that_was_used_last() {
        let mut tables = tables();
        let [first, second] = publish_ports(&mut tables, 2)[..] else {
            unreachable!()
        };
        // Both lead the socket to the same backend.
        let lead = |tables: &mut HostTables<Address4>| {
            for slot in tables.slots.values_mut() {
                slot.backend = 1;
            }
        };
        lead(&mut tables);
        let ask = |peer| send(&tables, &call(7, peer)).unwrap();
        let backend = peer(11, 5353);
        for _ in 0..2 {
            for frontend in [first, second] {
                assert_eq!(ask(frontend), Some(backend));
                assert_eq!(restore(&tables, &call(7, backend)), Some(frontend));
            }
        }
        assert_eq!(ask(backend), None);
        assert_eq!(restore(&tables, &call(7, backend)), None);
        assert_eq!(ask(first), Some(backend));
        assert_eq!(restore(&tables, &call(7, backend)), Some(first));
        // This is how the kernel reports the peer of a connected IPv6 socket.
        let connected = Call {
            is_connected: true,
            ..call(7, backend)
        };
        assert_eq!(send(&tables, &connected), Ok(None));
        assert_eq!(restore(&tables, &call(7, backend)), Some(first));
    }

    #[test]
    fn an_evicted_name_is_written_again() {
        let tables = tables();
        let to = send(&tables, &call(7, vip())).unwrap().unwrap();
        tables
            .sockets
            .borrow_mut()
            .retain(|key, _| key.address != to.address);
        assert_eq!(restore(&tables, &call(7, to)), None);
        assert_eq!(send(&tables, &call(7, vip())), Ok(Some(to)));
        assert_eq!(restore(&tables, &call(7, to)), Some(vip()));
    }

    #[test]
    fn a_name_is_restored_once() {
        let tables = tables();
        let to = send(&tables, &call(7, vip())).unwrap().unwrap();
        let name = restore(&tables, &call(7, to)).unwrap();
        // While one program replaces another, both run.
        assert_eq!(restore(&tables, &call(7, name)), None);
    }

    #[test]
    fn a_frontend_row_without_names_is_not_restored() {
        let tables = tables();
        let to = send(&tables, &call(7, vip())).unwrap().unwrap();
        for row in tables.sockets.borrow_mut().values_mut() {
            row.names = socket_names::FRONTEND;
        }
        assert_eq!(restore(&tables, &call(7, vip())), None);
        assert_eq!(restore(&tables, &call(7, to)), Some(vip()));
    }

    #[test]
    fn the_refusing_peer_is_removed_with_its_socket() {
        let mut tables = tables();
        tables.settings.node_address4 = Address4::from_bytes([192, 0, 2, 1]);
        publish(&mut tables, 0, 0);
        for last in [None, Some(peer(99, 53))] {
            connect(&tables, &call(7, vip())).unwrap().unwrap();
            if let Some(last) = last {
                assert_eq!(connect(&tables, &call(7, last)), Ok(None));
            }
            release(&tables, &closed(last.unwrap_or(NO_PEER)));
            assert!(tables.sockets.borrow().is_empty(), "{last:?}");
        }
    }

    #[test]
    fn a_connected_udp_socket_has_one_backend_for_a_frontend() {
        for cookie in 0..20 {
            let tables = tables();
            let to = connect(&tables, &call(cookie, vip())).unwrap();
            for _ in 0..3 {
                assert_eq!(send(&tables, &call(cookie, vip())), Ok(to));
                assert_eq!(connect(&tables, &call(cookie, vip())), Ok(to));
            }
            assert_eq!(tables.stats.borrow()[&SERVICE].connections, 1);
            release(&tables, &call(cookie, to.unwrap()));
            assert!(tables.sockets.borrow().is_empty());
        }
    }

    #[test]
    fn connect_of_a_udp_socket_succeeds_without_a_backend() {
        let mut tables = tables();
        tables.settings.node_address4 = Address4::from_bytes([192, 0, 2, 1]);
        let refusing_peer = Peer {
            address: tables.settings.node_address4,
            port: REFUSING_PORT,
        };
        publish(&mut tables, 0, 0);
        let unknown = Peer {
            port: Port::new(9),
            ..vip()
        };
        for frontend in [vip(), unknown] {
            assert_eq!(connect(&tables, &call(7, frontend)), Ok(Some(refusing_peer)));
            assert_eq!(restore(&tables, &call(7, refusing_peer)), Some(frontend));
        }
        // No datagram was refused yet.
        assert!(tables.stats.borrow().is_empty());
        assert_eq!(tables.reason_count(Reason::UnknownPort), 0);
        // The socket finds the first backend when it is connected again.
        publish(&mut tables, 2, 0);
        let to = connect(&tables, &call(7, vip())).unwrap().unwrap();
        assert_ne!(to, refusing_peer);
        assert_eq!(restore(&tables, &call(7, to)), Some(vip()));
        assert_eq!(restore(&tables, &call(7, refusing_peer)), None);
        publish(&mut tables, 0, 0);
        connect(&tables, &call(8, vip())).unwrap();
        release(&tables, &call(8, refusing_peer));
        release(&tables, &call(7, to));
        assert!(tables.sockets.borrow().is_empty());
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
        let of_node = call(7, node_port);
        let of_pod = Call {
            is_node_namespace: false,
            ..of_node
        };
        assert_eq!(connect(&tables, &of_pod), Ok(None));
        assert!(matches!(connect(&tables, &of_node), Ok(Some(_))));
    }

    #[test]
    fn a_row_of_an_earlier_generation_is_not_used() {
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
    fn a_service_without_endpoints_refuses_calls() {
        let mut tables = tables();
        publish(&mut tables, 0, 0);
        publish_tcp(&mut tables, |_| {});
        let tcp = Call {
            protocol: protocol::TCP,
            ..call(7, vip())
        };
        assert_eq!(connect(&tables, &tcp), Err(Reason::NoEndpoint));
        assert_eq!(send(&tables, &call(7, vip())), Err(Reason::NoEndpoint));
        assert_eq!(tables.reason_count(Reason::NoEndpoint), 2);
        assert_eq!(tables.stats.borrow()[&SERVICE].rejected, 2);
    }

    #[test]
    fn sockets_use_the_region_of_inside_clients() {
        let mut tables = tables();
        publish(&mut tables, 2, frontend_flags::OUTSIDE_LOCAL);
        assert!(connect(&tables, &call(7, vip())).unwrap().is_some());
        publish(&mut tables, 2, frontend_flags::INSIDE_LOCAL);
        assert_eq!(send(&tables, &call(8, vip())), Err(Reason::NoLocalEndpoint));
    }

    #[test]
    fn an_unknown_port_is_counted_for_no_service() {
        let tables = tables();
        let unknown = Peer {
            port: Port::new(9),
            ..vip()
        };
        assert_eq!(send(&tables, &call(7, unknown)), Err(Reason::UnknownPort));
        assert_eq!(tables.reason_count(Reason::UnknownPort), 1);
        assert!(tables.stats.borrow().is_empty());
    }

    #[test]
    fn stale_slots_fail_the_call() {
        let mut tables = tables();
        for backend in tables.backends.values_mut() {
            backend.generation = 2;
        }
        assert_eq!(send(&tables, &call(7, vip())), Err(Reason::StaleSlots));
        assert!(tables.sockets.borrow().is_empty());
    }
}
