//! Lists sockets in the kernel (`SOCK_DIAG`) and destroys them (`SOCK_DESTROY`).

use std::io;
use std::net::SocketAddr;

use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, SockDiagDestroy, SockDiagMessage};
use rtnetlink::packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, Parseable,
};
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use crate::maps::Protocol;
use crate::netlink::Connection;
use crate::network::Family;

/// States in which a program can wait for its peer. A connected UDP socket is in the first of them.
const WAITING: StateFlags = StateFlags::ESTABLISHED
    .union(StateFlags::SYN_SENT)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::LAST_ACK)
    .union(StateFlags::CLOSING);

/// A selection of sockets to list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Listing {
    /// Their protocol.
    pub(super) protocol: Protocol,
    /// The address family of the sockets.
    pub(super) family: Family,
    /// The peer's port. `None` for any.
    pub(super) port: Option<u16>,
}

/// A connected socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Connected {
    /// The kernel's socket cookie.
    pub(super) cookie: u64,
    /// Its protocol.
    pub(super) protocol: Protocol,
    /// Its peer. For an IPv6 socket with an IPv4-mapped peer, the IPv4 address.
    pub(super) peer: SocketAddr,
    /// The address family of the socket.
    pub(super) family: Family,
    /// The inode number of its file. 0 if no file refers to it any more.
    pub(super) inode: u32,
    id: SocketId,
}

#[cfg(test)]
impl Connected {
    pub(super) fn for_tests(cookie: u64, protocol: Protocol, peer: SocketAddr) -> Self {
        Self {
            cookie,
            protocol,
            peer,
            family: Family::V4,
            inode: 1,
            id: nobody(Family::V4),
        }
    }
}

/// A netlink connection for the sockets of one network namespace.
pub(super) struct Diag(Connection);

impl Diag {
    /// Opens a connection for the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        Connection::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Lists sockets that are connected or about to be.
    ///
    /// Fails with [`io::ErrorKind::NotFound`] if the kernel cannot list sockets of this protocol.
    pub(super) fn list(&mut self, listing: &Listing) -> io::Result<Vec<Connected>> {
        self.list_in(listing, WAITING)
    }

    fn list_in(&mut self, listing: &Listing, states: StateFlags) -> io::Result<Vec<Connected>> {
        let mut id = nobody(listing.family);
        id.destination_port = listing.port.unwrap_or_default();
        let request = request(listing.protocol, listing.family, id, states);
        self.0
            .send(SockDiagMessage::InetRequest(request), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        while !self
            .0
            .receive(|Answer(header)| found.push(connected(listing, header)))?
        {}
        Ok(found)
    }

    /// Destroys a socket. Its next call fails with `ECONNABORTED`, and a TCP peer is notified.
    /// Returns false if the socket no longer exists, or if another socket has the same addresses,
    /// which is not destroyed.
    pub(super) fn destroy(&mut self, socket: &Connected) -> io::Result<bool> {
        let request = request(socket.protocol, socket.family, socket.id.clone(), WAITING);
        self.destroy_requested(request)
    }

    fn destroy_requested(&mut self, request: InetRequest) -> io::Result<bool> {
        let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        self.0.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let stale = |error: &io::Error| error.raw_os_error() == Some(nix::errno::Errno::ESTALE as i32);
        loop {
            match self.0.receive(|_: Answer| {}) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound || stale(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns whether the kernel can destroy sockets of this protocol (CONFIG_INET_DIAG_DESTROY, for
/// UDP also CONFIG_INET_UDP_DIAG). Needs no capability.
pub fn can_destroy(protocol: Protocol) -> io::Result<bool> {
    let listing = Listing {
        protocol,
        family: Family::V4,
        port: None,
    };
    let mut diag = Diag::open()?;
    match diag.list_in(&listing, StateFlags::empty()) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let request = request(protocol, listing.family, nobody(listing.family), WAITING);
    match diag.destroy_requested(request) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

/// The part of the kernel's answer that is used.
#[derive(Debug)]
struct Answer(InetResponseHeader);

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        InetResponseHeader::parse(payload).map(Self)
    }
}

fn request(protocol: Protocol, family: Family, socket_id: SocketId, states: StateFlags) -> InetRequest {
    InetRequest {
        family: match family {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        },
        protocol: protocol.number(),
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    }
}

fn nobody(family: Family) -> SocketId {
    match family {
        Family::V4 => SocketId::new_v4(),
        Family::V6 => SocketId::new_v6(),
    }
}

/// Converts the kernel's description of a socket. An IPv6 socket may have an IPv4 peer.
fn connected(listing: &Listing, header: InetResponseHeader) -> Connected {
    let id = header.socket_id;
    let [a, b, c, d, e, f, g, h] = id.cookie;
    let [low, high] = [[a, b, c, d], [e, f, g, h]].map(|half| u64::from(u32::from_ne_bytes(half)));
    Connected {
        cookie: low | high << 32,
        protocol: listing.protocol,
        peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        family: listing.family,
        inode: header.inode,
        id,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn sockets(protocol: Protocol, family: Family, port: u16) -> Vec<Connected> {
        let listing = Listing {
            protocol,
            family,
            port: Some(port),
        };
        Diag::open().unwrap().list(&listing).unwrap()
    }

    #[test]
    fn connected_sockets_are_listed_by_their_peer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = listener.local_addr().unwrap();
        let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), peer.port());
        let clients = [peer, mapped].map(|to| TcpStream::connect(to).unwrap());
        for (family, client) in [Family::V4, Family::V6].into_iter().zip(&clients) {
            let found = sockets(Protocol::Tcp, family, peer.port());
            let [socket] = found.as_slice() else {
                panic!("{found:?}");
            };
            assert_eq!((socket.protocol, socket.peer), (Protocol::Tcp, peer));
            assert_eq!(socket.id.source_port, client.local_addr().unwrap().port());
            assert_ne!(socket.cookie, 0);
        }
    }

    #[test]
    fn udp_sockets_are_listed_once_they_are_connected() {
        let server = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let peer = server.local_addr().unwrap();
        let client = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        client.send_to(b"hello", peer).unwrap();
        assert_eq!(sockets(Protocol::Udp, Family::V6, peer.port()), []);
        client.connect(peer).unwrap();
        let found = sockets(Protocol::Udp, Family::V6, peer.port());
        let peers: Vec<_> = found.iter().map(|socket| socket.peer).collect();
        assert_eq!(peers, [peer]);
    }

    #[test]
    fn a_missing_socket_cannot_be_destroyed() {
        let nobody = Connected::for_tests(1, Protocol::Tcp, (Ipv4Addr::LOCALHOST, 0).into());
        assert!(!Diag::open().unwrap().destroy(&nobody).unwrap());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            // Either result is fine. The test checks that the kernel's answer is understood.
            can_destroy(protocol).unwrap();
        }
    }

    #[test]
    fn listing_an_unknown_protocol_fails_with_not_found() {
        // No protocol has this number.
        let mut diag = Diag::open().unwrap();
        let mut request = request(Protocol::Tcp, Family::V4, nobody(Family::V4), WAITING);
        request.protocol = 254;
        diag.0
            .send(SockDiagMessage::InetRequest(request), NLM_F_REQUEST | NLM_F_DUMP)
            .unwrap();
        let error = diag.0.receive(|_: Answer| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
