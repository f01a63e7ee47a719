//! Rows of translated sockets in the kernel's maps.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::maps::{Array, HashMap, MapData, MapError as KernelError};
use lb_common::choose::{Origin, region};
use lb_common::layout::{self, BackendId, Frontend, FrontendKey, SocketKey, backend_state, socket_names};
use lb_common::net::{Address4, Address6, Port};

use super::family::MapFamily;
use super::pinned::{deleted, kernel, open, open_with_size, unread};
use crate::maps::{MapError, Protocol};

/// A translated socket and its backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketRow {
    /// The kernel's socket cookie.
    pub(crate) cookie: u64,
    /// The socket's protocol.
    pub(crate) protocol: Protocol,
    /// The peer's address as the kernel sees it: the backend, or in one of the two rows of a UDP
    /// socket a frontend. An IPv6 socket with an IPv4-mapped peer has an IPv4 row.
    pub(crate) peer: SocketAddr,
    /// The address in the row: the frontend that the process named, or in the other row of a UDP
    /// socket the backend.
    pub(crate) named: SocketAddr,
    /// Whether `named` is the backend.
    pub(crate) names_backend: bool,
    /// The chosen backend. 0 if none was available.
    pub(crate) backend: BackendId,
    /// The generation of the backend row at that time.
    pub(crate) generation: u32,
}

impl SocketRow {
    /// Whether no backend was available when a UDP socket was connected.
    pub(crate) fn has_no_backend(&self) -> bool {
        self.backend == 0
    }
}

/// What a UDP socket reaches if it is connected to a frontend again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Served {
    /// The frontend no longer exists. The socket would be connected to an address that nothing
    /// serves.
    NoFrontend,
    /// No backend yet.
    Nobody,
    /// A backend.
    Backend,
}

/// The maps of translated sockets of both families.
pub struct SocketMaps {
    ipv4: FamilyMaps<Address4>,
    ipv6: FamilyMaps<Address6>,
}

/// The maps of one family.
struct FamilyMaps<A: MapFamily> {
    sockets: HashMap<MapData, SocketKey<A>, layout::Socket<A>>,
    capacity: u32,
    backends: Array<MapData, layout::Backend<A>>,
    frontends: HashMap<MapData, FrontendKey<A>, Frontend>,
}

impl SocketMaps {
    /// Opens the maps pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            ipv4: FamilyMaps::open(directory)?,
            ipv6: FamilyMaps::open(directory)?,
        })
    }

    /// All rows whose backend was removed or that never had one.
    pub fn stranded(&self) -> Result<HashSet<SocketRow>, MapError> {
        let mut stranded = self.ipv4.stranded()?;
        stranded.extend(self.ipv6.stranded()?);
        Ok(stranded)
    }

    /// What the socket of a row reaches through the frontend that the row names.
    pub(crate) fn served(&self, row: &SocketRow) -> Result<Served, MapError> {
        match row.named.ip() {
            IpAddr::V4(address) => self.ipv4.served(row, address.into()),
            IpAddr::V6(address) => self.ipv6.served(row, address.into()),
        }
    }

    /// Whether the row still exists unchanged. It changes when the socket is translated again.
    pub(crate) fn holds(&self, row: &SocketRow) -> Result<bool, MapError> {
        match row.peer.ip() {
            IpAddr::V4(address) => self.ipv4.holds(row, address.into()),
            IpAddr::V6(address) => self.ipv6.holds(row, address.into()),
        }
    }

    /// Deletes the row. A missing row is not an error.
    pub(crate) fn remove(&mut self, row: &SocketRow) -> Result<(), MapError> {
        match row.peer.ip() {
            IpAddr::V4(address) => self.ipv4.remove(row, address.into()),
            IpAddr::V6(address) => self.ipv6.remove(row, address.into()),
        }
    }
}

impl<A: MapFamily> FamilyMaps<A> {
    fn open(directory: &Path) -> Result<Self, MapError> {
        let (sockets, capacity) = open_with_size(directory, &A::SOCKETS)?;
        Ok(Self {
            sockets,
            capacity,
            backends: open(directory, &A::BACKENDS)?,
            frontends: open(directory, &A::FRONTENDS)?,
        })
    }

    fn served(&self, row: &SocketRow, address: A) -> Result<Served, MapError> {
        let port = (Port::new(row.named.port()), row.protocol.number());
        for (port, protocol) in [port, (Port::default(), 0)] {
            let key = FrontendKey {
                address,
                port,
                protocol,
                pad: 0,
            };
            match self.frontends.get(&key, 0) {
                Ok(frontend) if region(&frontend, Origin::Inside).is_err() => return Ok(Served::Nobody),
                Ok(_) => return Ok(Served::Backend),
                Err(KernelError::KeyNotFound) => {}
                Err(error) => {
                    return Err(kernel(A::FRONTENDS.name, format!("read {}", row.named), error));
                }
            }
        }
        Ok(Served::NoFrontend)
    }

    fn stranded(&self) -> Result<HashSet<SocketRow>, MapError> {
        let mut rows = self.rows()?;
        // Backends are read after the rows. If they were read first, a backend row could be reused
        // in between, and the socket row could belong to the new endpoint.
        let backends = self.backends(&rows)?;
        let is_stranded =
            |row: &SocketRow| row.has_no_backend() || is_removed(row, backends.get(&row.backend));
        rows.retain(is_stranded);
        for row in &mut rows {
            // Rows written by an older agent do not contain this flag.
            row.names_backend |= backends.get(&row.backend).is_some_and(|backend| {
                row.named == SocketAddr::new(backend.address.into(), backend.port.get())
            });
        }
        Ok(rows.into_iter().collect())
    }

    fn rows(&self) -> Result<Vec<SocketRow>, MapError> {
        // If a row is deleted while it is read, the iteration restarts at the first one, so it
        // needs a limit.
        let limit = 2 * self.capacity as usize;
        let mut rows = Vec::new();
        for row in self.sockets.iter().take(limit) {
            let (key, socket) = row.map_err(unread(A::SOCKETS.name))?;
            rows.extend(row_of(&key, &socket));
        }
        Ok(rows)
    }

    fn backends(&self, rows: &[SocketRow]) -> Result<BTreeMap<BackendId, layout::Backend<A>>, MapError> {
        let ids: BTreeSet<BackendId> = rows.iter().map(|row| row.backend).collect();
        let mut backends = BTreeMap::new();
        for id in ids {
            match self.backends.get(&id, 0) {
                Ok(backend) => {
                    backends.insert(id, backend);
                }
                Err(KernelError::OutOfBounds { .. }) => {}
                Err(error) => return Err(kernel(A::BACKENDS.name, format!("read backend {id}"), error)),
            }
        }
        Ok(backends)
    }

    fn holds(&self, row: &SocketRow, address: A) -> Result<bool, MapError> {
        match self.sockets.get(&key(row, address), 0) {
            Ok(socket) => Ok(
                (socket.backend, socket.generation) == (row.backend, row.generation)
                    && SocketAddr::new(socket.address.into(), socket.port.get()) == row.named,
            ),
            Err(KernelError::KeyNotFound) => Ok(false),
            Err(error) => Err(kernel(A::SOCKETS.name, format!("read the row of {row:?}"), error)),
        }
    }

    fn remove(&mut self, row: &SocketRow, address: A) -> Result<(), MapError> {
        if !self.holds(row, address)? {
            return Ok(());
        }
        deleted(self.sockets.remove(&key(row, address)))
            .map_err(|error| kernel(A::SOCKETS.name, format!("delete {row:?}"), error))
    }
}

/// Whether the chosen backend was removed, or its row was reused for another endpoint.
fn is_removed<A>(row: &SocketRow, backend: Option<&layout::Backend<A>>) -> bool {
    backend.is_none_or(|backend| backend.state == backend_state::GONE || backend.generation != row.generation)
}

/// Converts a row. `None` if no program would have written it, or if it contains no backend.
fn row_of<A: Copy + Into<IpAddr>>(key: &SocketKey<A>, socket: &layout::Socket<A>) -> Option<SocketRow> {
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let [low, high] = key.cookie.map(u64::from);
    let address = key.address.into();
    if address.is_unspecified() {
        return None;
    }
    Some(SocketRow {
        cookie: low | high << 32,
        protocol: protocols
            .into_iter()
            .find(|protocol| protocol.number() == key.protocol)?,
        peer: SocketAddr::new(address, key.port.get()),
        named: SocketAddr::new(socket.address.into(), socket.port.get()),
        names_backend: socket.names == socket_names::BACKEND,
        backend: socket.backend,
        generation: socket.generation,
    })
}

fn key<A>(row: &SocketRow, address: A) -> SocketKey<A> {
    let word = |shift: u32| u32::try_from(row.cookie >> shift & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    SocketKey {
        cookie: [word(0), word(32)],
        address,
        port: Port::new(row.peer.port()),
        protocol: row.protocol.number(),
        pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: SocketRow = SocketRow {
        cookie: 0x1234_5678_9abc_def0,
        protocol: Protocol::Udp,
        peer: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 53),
        named: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)), 53),
        names_backend: false,
        backend: 3,
        generation: 7,
    };

    fn backend(state: u8, generation: u32) -> layout::Backend<Address4> {
        layout::Backend {
            state,
            generation,
            ..Default::default()
        }
    }

    #[test]
    fn a_socket_row_round_trips_through_its_key() {
        let address = Address4::from_bytes([10, 0, 0, 1]);
        let socket = layout::Socket {
            address: Address4::from_bytes([10, 96, 0, 1]),
            port: Port::new(53),
            backend: ROW.backend,
            generation: ROW.generation,
            ..Default::default()
        };
        let key = key(&ROW, address);
        assert_eq!(key.cookie, [0x9abc_def0, 0x1234_5678]);
        assert_eq!(row_of(&key, &socket), Some(ROW));
        let unknown = SocketKey { protocol: 1, ..key };
        assert_eq!(row_of(&unknown, &socket), None);
        let frontend_note = SocketKey {
            address: Address4::default(),
            ..key
        };
        assert_eq!(row_of(&frontend_note, &socket), None);
    }

    #[test]
    fn only_gone_and_replaced_backends_are_removed() {
        let removed = |state, generation| is_removed(&ROW, Some(&backend(state, generation)));
        assert!(!removed(backend_state::ACTIVE, 7));
        assert!(!removed(backend_state::DRAINING, 7));
        assert!(!removed(backend_state::ABSENT, 7));
        assert!(removed(backend_state::GONE, 7));
        assert!(removed(backend_state::ACTIVE, 8));
        assert!(is_removed::<Address4>(&ROW, None));
    }
}
