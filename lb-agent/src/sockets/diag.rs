//! Sockets as the kernel lists them (`SOCK_DIAG`), and their end (`SOCK_DESTROY`).

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

/// States in which a program can wait for its peer. UDP knows the first of them only: the socket is
/// connected.
const WAITING: StateFlags = StateFlags::ESTABLISHED
    .union(StateFlags::SYN_SENT)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::LAST_ACK)
    .union(StateFlags::CLOSING);

/// Which sockets to list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Listing {
    /// Their protocol.
    pub(super) protocol: Protocol,
    /// The family that they were made for.
    pub(super) family: Family,
    /// The peer's port; any if not set.
    pub(super) port: Option<u16>,
}

/// A connected socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Connected {
    /// The kernel's socket cookie.
    pub(super) cookie: u64,
    /// Its protocol.
    pub(super) protocol: Protocol,
    /// Its peer, IPv4 also where the socket is of IPv6 and knows it by a mapped address.
    pub(super) peer: SocketAddr,
    /// The family that it was made for.
    pub(super) family: Family,
    /// The number of its file; 0 if none leads to it any more.
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

/// A connection with the kernel about the sockets of one network namespace.
pub(super) struct Diag(Connection);

impl Diag {
    /// For the namespace that the calling thread is in.
    pub(super) fn open() -> io::Result<Self> {
        Connection::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Lists connected sockets, and those that are about to be.
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

    /// Ends a socket: its next call fails with `ECONNABORTED`, and a peer is told. False if there
    /// is no such socket any more, or the kernel finds another one by these addresses, which stays.
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

/// Whether the kernel can end sockets of this protocol (CONFIG_INET_DIAG_DESTROY; for UDP also
/// CONFIG_INET_UDP_DIAG). Takes no capability.
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

/// What is read of the kernel's description of a socket.
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

/// A socket from its description; one of IPv6 may have a peer of IPv4.
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
    fn a_socket_that_does_not_exist_cannot_be_ended() {
        let nobody = Connected::for_tests(1, Protocol::Tcp, (Ipv4Addr::LOCALHOST, 0).into());
        assert!(!Diag::open().unwrap().destroy(&nobody).unwrap());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            // True or false: what counts is that the kernel's answer is understood.
            can_destroy(protocol).unwrap();
        }
    }

    #[test]
    fn what_the_kernel_cannot_list_is_not_found() {
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
