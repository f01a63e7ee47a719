//! Reconnects sockets of other processes without their participation.
//!
//! A connected UDP socket only means that the kernel stores a peer address. `connect` may be called
//! again at any time. The agent calls it on a duplicate of the socket (`pidfd_getfd`, Linux 5.6).
//! The socket programs then choose a backend, and the process keeps sending without noticing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::diag::Connected;
use super::namespaces::processes;
use crate::network::Family;

/// The processes that hold sockets, with the file descriptor.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<u32, (Pid, RawFd)>);

impl Holders {
    /// Searches for processes that hold these sockets.
    pub(super) fn of<'a>(sockets: impl IntoIterator<Item = &'a Connected>) -> Self {
        let mut wanted: HashSet<u32> = sockets.into_iter().map(|socket| socket.inode).collect();
        let mut found = HashMap::new();
        for process in processes() {
            if wanted.is_empty() {
                break;
            }
            let Some(pid) = number(&process).and_then(Pid::from_raw) else {
                continue;
            };
            // Processes may end, and this thread may not access some.
            for entry in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
                let path = entry.path();
                if let Some(inode) = socket_inode(&path)
                    && wanted.remove(&inode)
                    && let Some(descriptor) = number(&path)
                {
                    found.insert(inode, (pid, descriptor));
                }
            }
        }
        Self(found)
    }

    /// Connects a socket to `frontend`, like its process did.
    ///
    /// Fails if no process is known to hold the socket, if its peer has changed, if the kernel
    /// denies access (CAP_SYS_PTRACE), or if `connect` fails.
    pub(super) fn connect_again(&self, socket: &Connected, frontend: SocketAddr) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "no process has the socket");
        let &(pid, descriptor) = self.0.get(&socket.inode).ok_or_else(gone)?;
        let duplicate = duplicate(pid, descriptor)?;
        // The process may have closed it and reused the descriptor.
        if rustix::net::sockopt::socket_cookie(&duplicate)? != socket.cookie {
            return Err(gone());
        }
        let frontend = as_named(frontend, socket.family);
        // The process may have connected it elsewhere. The programs report the frontend as the
        // peer.
        let peer = rustix::net::getpeername(&duplicate)?.map(SocketAddr::try_from);
        let known = [frontend, as_named(socket.peer, socket.family)];
        if !known.map(|known| Some(Ok(known))).contains(&peer) {
            return Err(gone());
        }
        Ok(rustix::net::connect(&duplicate, &frontend)?)
    }
}

fn duplicate(pid: Pid, descriptor: RawFd) -> io::Result<OwnedFd> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, descriptor, PidfdGetfdFlags::empty())?)
}

/// The form of an address in sockets of this family.
fn as_named(address: SocketAddr, family: Family) -> SocketAddr {
    match (address.ip(), family) {
        (IpAddr::V4(ip), Family::V6) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        _ => address,
    }
}

fn number(path: &Path) -> Option<i32> {
    path.file_name()?.to_str()?.parse().ok()
}

/// The inode number of the socket that a process's file descriptor refers to.
fn socket_inode(path: &Path) -> Option<u32> {
    let target = fs::read_link(path).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use super::super::diag::{Diag, Listing};
    use super::*;
    use crate::maps::Protocol;

    fn listed(family: Family, port: u16) -> Vec<Connected> {
        let listing = Listing {
            protocol: Protocol::Udp,
            family,
            port: Some(port),
        };
        Diag::open().unwrap().list(&listing).unwrap()
    }

    #[test]
    fn a_udp_socket_is_reconnected_to_another_peer() {
        let servers = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [first, second] = servers.map(|server| server.local_addr().unwrap());
        let any: [(Family, IpAddr); 2] = [
            (Family::V4, Ipv4Addr::UNSPECIFIED.into()),
            (Family::V6, Ipv6Addr::UNSPECIFIED.into()),
        ];
        for (family, any) in any {
            let client = UdpSocket::bind((any, 0)).unwrap();
            client.connect(as_named(first, family)).unwrap();
            let port = client.local_addr().unwrap().port();
            let sockets = listed(family, first.port());
            let [socket] = &sockets[..] else {
                panic!("{sockets:?}");
            };
            Holders::of(&sockets).connect_again(socket, second).unwrap();
            assert_eq!(client.peer_addr().unwrap(), as_named(second, family));
            assert_eq!(client.local_addr().unwrap().port(), port);
        }
    }

    #[test]
    fn a_reused_descriptor_is_left_alone() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect(to).unwrap();
        let sockets = listed(Family::V4, to.port());
        let mut other = sockets[0].clone();
        other.cookie += 1;
        let holders = Holders::of(&sockets);
        let peer = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9);
        assert_eq!(
            holders.connect_again(&other, peer).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        other.inode = 1;
        assert!(holders.connect_again(&other, peer).is_err());
        assert_eq!(client.peer_addr().unwrap(), to);
    }

    #[test]
    fn a_socket_that_was_connected_elsewhere_is_left_alone() {
        let servers = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [first, second] = servers.map(|server| server.local_addr().unwrap());
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect(first).unwrap();
        let sockets = listed(Family::V4, first.port());
        let holders = Holders::of(&sockets);
        client.connect(second).unwrap();
        let frontend = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9);
        assert!(holders.connect_again(&sockets[0], frontend).is_err());
        assert_eq!(client.peer_addr().unwrap(), second);
    }
}
