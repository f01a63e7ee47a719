//! Selects the listed sockets that must be closed or reconnected.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use super::diag::{Connected, Listing};
use crate::datapath::sockets::SocketRow;
use crate::maps::Protocol;
use crate::network::Family;

/// The wanted sockets, by the attributes that the kernel lists.
///
/// A socket must also match by its cookie. Another socket with the same peer, which was not
/// translated, is not affected.
#[derive(Debug)]
pub(super) struct Wanted {
    rows: HashMap<Key, SocketRow>,
    listings: BTreeSet<Listing>,
}

/// Cookie, protocol and peer of a socket.
type Key = (u64, Protocol, SocketAddr);

impl Wanted {
    /// The sockets of these rows, except rows under a frontend: a socket whose peer is the frontend
    /// itself is not translated.
    pub(super) fn new(rows: impl IntoIterator<Item = SocketRow>) -> Self {
        let rows = rows.into_iter().filter(|row| !row.names_backend);
        let rows: HashMap<Key, SocketRow> = rows.map(|row| (key(&row), row)).collect();
        Self {
            listings: listings(rows.keys()),
            rows,
        }
    }

    /// Whether no wanted socket is left.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The listings to request from the kernel.
    pub(super) fn listings(&self) -> &BTreeSet<Listing> {
        &self.listings
    }

    /// The row of a socket, if it is wanted.
    pub(super) fn row(&self, socket: &Connected) -> Option<SocketRow> {
        let key = (socket.cookie, socket.protocol, socket.peer);
        self.rows.get(&key).copied()
    }

    /// Removes the socket of this row.
    pub(super) fn remove(&mut self, row: &SocketRow) {
        self.rows.remove(&key(row));
    }
}

fn key(row: &SocketRow) -> Key {
    (row.cookie, row.protocol, row.peer)
}

/// One listing for each protocol and family. The kernel can filter by one port at most.
fn listings<'a>(keys: impl Iterator<Item = &'a Key>) -> BTreeSet<Listing> {
    let mut ports: BTreeMap<(Protocol, Family), BTreeSet<u16>> = BTreeMap::new();
    for (_, protocol, peer) in keys {
        for family in families(peer) {
            ports.entry((*protocol, *family)).or_default().insert(peer.port());
        }
    }
    let listing = |((protocol, family), ports): (_, BTreeSet<u16>)| Listing {
        protocol,
        family,
        port: ports.first().copied().filter(|_| ports.len() == 1),
    };
    ports.into_iter().map(listing).collect()
}

/// The families of sockets that can have this peer.
fn families(peer: &SocketAddr) -> &'static [Family] {
    match peer {
        // IPv6 sockets use its IPv4-mapped address.
        SocketAddr::V4(_) => &Family::ALL,
        SocketAddr::V6(_) => &[Family::V6],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cookie: u64, protocol: Protocol, peer: &str) -> SocketRow {
        SocketRow {
            cookie,
            protocol,
            peer: peer.parse().unwrap(),
            named: "10.96.0.1:80".parse().unwrap(),
            names_backend: false,
            backend: 1,
            generation: 1,
        }
    }

    fn listing(protocol: Protocol, family: Family, port: Option<u16>) -> Listing {
        Listing {
            protocol,
            family,
            port,
        }
    }

    #[test]
    fn a_socket_is_recognised_by_cookie_protocol_and_peer() {
        let looked_for = row(7, Protocol::Tcp, "10.0.0.1:80");
        let mut wanted = Wanted::new([looked_for]);
        let found = |wanted: &Wanted, cookie, protocol, peer: &str| {
            wanted.row(&Connected::for_tests(cookie, protocol, peer.parse().unwrap()))
        };
        assert_eq!(found(&wanted, 7, Protocol::Tcp, "10.0.0.1:80"), Some(looked_for));
        // Connected to the Pod itself.
        assert_eq!(found(&wanted, 8, Protocol::Tcp, "10.0.0.1:80"), None);
        // Connected to something else since.
        assert_eq!(found(&wanted, 7, Protocol::Tcp, "10.0.0.2:80"), None);
        assert_eq!(found(&wanted, 7, Protocol::Tcp, "10.0.0.1:81"), None);
        assert_eq!(found(&wanted, 7, Protocol::Udp, "10.0.0.1:80"), None);
        wanted.remove(&looked_for);
        assert!(wanted.is_empty());
        assert_eq!(found(&wanted, 7, Protocol::Tcp, "10.0.0.1:80"), None);
    }

    #[test]
    fn ipv4_peers_are_searched_among_sockets_of_both_families() {
        let wanted = Wanted::new([row(1, Protocol::Tcp, "10.0.0.1:80")]);
        let expected = [Family::V4, Family::V6].map(|family| listing(Protocol::Tcp, family, Some(80)));
        assert_eq!(*wanted.listings(), BTreeSet::from(expected));

        let wanted = Wanted::new([row(1, Protocol::Udp, "[fd00::1]:53")]);
        let expected = [listing(Protocol::Udp, Family::V6, Some(53))];
        assert_eq!(*wanted.listings(), BTreeSet::from(expected));
    }

    #[test]
    fn a_listing_filters_by_port_if_there_is_only_one() {
        let wanted = Wanted::new([
            row(1, Protocol::Tcp, "10.0.0.1:80"),
            row(2, Protocol::Tcp, "10.0.0.2:80"),
            row(3, Protocol::Tcp, "[fd00::1]:81"),
            row(4, Protocol::Udp, "[fd00::1]:53"),
        ]);
        let expected = [
            listing(Protocol::Tcp, Family::V4, Some(80)),
            listing(Protocol::Tcp, Family::V6, None),
            listing(Protocol::Udp, Family::V6, Some(53)),
        ];
        assert_eq!(*wanted.listings(), BTreeSet::from(expected));
    }

    #[test]
    fn without_rows_there_are_no_listings() {
        let wanted = Wanted::new([]);
        assert!(wanted.is_empty());
        assert_eq!(*wanted.listings(), BTreeSet::new());
    }
}
