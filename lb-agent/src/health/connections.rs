//! Bounds on open connections: a new connection takes the place of one that waits for its client.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The maximum number of connections that one client has open to one listener. Kubelets, load
/// balancers and Prometheus need one or two.
pub(super) const PER_CLIENT: usize = 32;
/// An IPv6 host may use every address with its first 64 bits (RFC 4291 section 2.5.4), so these are
/// the client.
const IPV6_CLIENT: u128 = !0 << 64;

/// What a connection waits for, in the order in which connections are displaced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Stage {
    /// The client has not sent a whole request.
    Silent,
    /// The client has not received the whole answer.
    Sending,
    /// The server is preparing the answer. Such connections are not displaced.
    Answering,
}

/// A client of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Client {
    listener: SocketAddr,
    address: IpAddr,
}

impl Client {
    fn new(listener: SocketAddr, address: IpAddr) -> Self {
        let address = match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & IPV6_CLIENT).into(),
        };
        Self { listener, address }
    }
}

struct Entry {
    client: Client,
    stage: Stage,
    /// Dropping it closes the connection.
    _open: oneshot::Sender<()>,
}

/// The open connections by number. Older ones have lower numbers.
#[derive(Default)]
struct Table {
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

impl Table {
    /// Closes the connection that has the least to lose: the oldest one without a request,
    /// otherwise the oldest one whose client does not read the answer. Returns whether there was
    /// one.
    fn displace(&mut self, is_candidate: impl Fn(&Client) -> bool) -> bool {
        let candidates = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.stage != Stage::Answering && is_candidate(&entry.client));
        let first = candidates.min_by_key(|(number, entry)| (entry.stage, **number));
        let Some(number) = first.map(|(number, _)| *number) else {
            return false;
        };
        self.entries.remove(&number).is_some()
    }
}

/// The open connections of one or several listeners.
pub(super) struct Connections {
    limit: usize,
    table: Mutex<Table>,
}

/// The place of an open connection. Dropping it frees the place.
pub(super) struct Place {
    connections: Arc<Connections>,
    number: u64,
}

/// Ends when a connection has to be closed because a newer one takes its place.
pub(super) type Displaced = oneshot::Receiver<()>;

impl Connections {
    /// `limit` is the maximum number of open connections.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            table: Mutex::default(),
        })
    }

    /// Admits a new connection. If the client or all clients together have too many, an older
    /// connection is closed. `None` if all of these are being answered.
    pub(super) fn admit(
        self: &Arc<Self>,
        listener: SocketAddr,
        address: IpAddr,
    ) -> Option<(Place, Displaced)> {
        let client = Client::new(listener, address);
        let mut table = self.lock();
        let of_client = table.entries.values().filter(|entry| entry.client == client);
        if of_client.count() >= PER_CLIENT {
            table.displace(|other| *other == client).then_some(())?;
        } else if table.entries.len() >= self.limit {
            table.displace(|_| true).then_some(())?;
        }
        let number = table.next;
        table.next += 1;
        let (_open, displaced) = oneshot::channel();
        let stage = Stage::Silent;
        table.entries.insert(number, Entry { client, stage, _open });
        let connections = self.clone();
        Some((Place { connections, number }, displaced))
    }

    /// Closes a connection that waits for its client. Returns whether there was one.
    pub(super) fn displace_one(&self) -> bool {
        self.lock().displace(|_| true)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Records what the connection waits for now.
    pub(super) fn enter(&self, stage: Stage) {
        if let Some(entry) = self.connections.lock().entries.get_mut(&self.number) {
            entry.stage = stage;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().entries.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 2 * PER_CLIENT;

    fn listener(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// Opens a connection from this client to the first listener.
    fn open(connections: &Arc<Connections>, client: &str) -> Option<(Place, Displaced)> {
        connections.admit(listener(1), client.parse().unwrap())
    }

    fn open_many(connections: &Arc<Connections>, client: &str, count: usize) -> Vec<(Place, Displaced)> {
        (0..count).map(|_| open(connections, client).unwrap()).collect()
    }

    fn is_displaced((_, displaced): &mut (Place, Displaced)) -> bool {
        displaced.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    /// The indices of the connections that were displaced.
    fn displaced(connections: &mut [(Place, Displaced)]) -> Vec<usize> {
        let all = connections.iter_mut().enumerate();
        all.filter_map(|(index, connection)| is_displaced(connection).then_some(index))
            .collect()
    }

    #[test]
    fn a_client_with_too_many_connections_loses_its_oldest() {
        let connections = Connections::new(LIMIT);
        let mut other = open(&connections, "192.0.2.9").unwrap();
        let mut many = open_many(&connections, "192.0.2.8", PER_CLIENT);
        assert_eq!(displaced(&mut many), [0_usize; 0]);
        many.extend(open_many(&connections, "::ffff:192.0.2.8", 2));
        assert_eq!(displaced(&mut many), [0, 1]);
        assert!(!is_displaced(&mut other));
    }

    #[test]
    fn addresses_of_an_ipv6_network_are_one_client_and_listeners_are_counted_separately() {
        let connections = Connections::new(usize::MAX);
        let mut many: Vec<_> = (0..PER_CLIENT)
            .map(|host| open(&connections, &format!("2001:db8:0:1::{host:x}")).unwrap())
            .collect();
        let _neighbour = open(&connections, "2001:db8:0:2::1").unwrap();
        let client = "2001:db8:0:1::1".parse().unwrap();
        let _elsewhere = connections.admit(listener(2), client).unwrap();
        assert_eq!(displaced(&mut many), [0_usize; 0]);
        let _one_more = open(&connections, "2001:db8:0:1:ffff::").unwrap();
        assert_eq!(displaced(&mut many), [0]);
    }

    #[test]
    fn a_new_client_takes_the_place_of_the_oldest_silent_connection() {
        let connections = Connections::new(LIMIT);
        let mut all: Vec<_> = (0..LIMIT)
            .map(|host| open(&connections, &format!("192.0.2.{host}")).unwrap())
            .collect();
        all[0].0.enter(Stage::Sending);
        all[1].0.enter(Stage::Answering);
        let _new = open(&connections, "198.51.100.1").unwrap();
        assert_eq!(displaced(&mut all), [2]);
        assert!(connections.displace_one());
        assert_eq!(displaced(&mut all), [2, 3]);
    }

    #[test]
    fn unread_answers_are_displaced_after_silent_connections_and_pending_ones_never() {
        let connections = Connections::new(LIMIT);
        let mut all: Vec<_> = (0..LIMIT)
            .map(|host| open(&connections, &format!("192.0.2.{host}")).unwrap())
            .collect();
        for (place, _) in &all {
            place.enter(Stage::Answering);
        }
        assert!(open(&connections, "198.51.100.1").is_none());
        assert!(!connections.displace_one());
        all[5].0.enter(Stage::Sending);
        let new = open(&connections, "198.51.100.1").unwrap();
        assert_eq!(displaced(&mut all), [5]);
        // The new one is silent now, but the next client displaces it only once it has to.
        drop(new);
        let _next = open(&connections, "198.51.100.2").unwrap();
        assert_eq!(displaced(&mut all), [5]);
    }

    #[test]
    fn closed_connections_free_their_places() {
        let connections = Connections::new(LIMIT);
        for _ in 0..3 {
            let mut many = open_many(&connections, "192.0.2.8", PER_CLIENT);
            assert_eq!(displaced(&mut many), [0_usize; 0]);
        }
        assert!(connections.lock().entries.is_empty());
        // A displaced connection does not free the place of another one when it ends.
        let mut many = open_many(&connections, "192.0.2.8", PER_CLIENT + 1);
        drop(many.remove(0));
        assert_eq!(connections.lock().entries.len(), PER_CLIENT);
    }
}
