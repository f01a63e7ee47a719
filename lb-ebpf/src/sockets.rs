//! The cgroup programs. They translate at `connect`, `sendmsg`, `recvmsg` and `getpeername`, and
//! remove the rows of a socket at `close`.

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::net::{Address4, Address6};
use lb_common::reason::Reason;
use lb_common::socket::{self, Call, Peer};

use crate::helpers;
use crate::socket_address::{ClosedSocket, SocketAddress};
use crate::tables::KernelTables;

/// The system call continues.
const ALLOW: i32 = 1;
/// The system call fails.
const DENY: i32 = 0;

/// `ECONNREFUSED`
const CONNECTION_REFUSED: i32 = 111;
/// `EHOSTUNREACH`
const HOST_UNREACHABLE: i32 = 113;

/// `connect` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn lb_connect4(context: SockAddrContext) -> i32 {
    translate4(&SocketAddress::of(&context), socket::connect)
}

/// `connect` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn lb_connect6(context: SockAddrContext) -> i32 {
    translate6(&SocketAddress::of(&context), socket::connect, socket::connect)
}

/// `sendmsg` and `sendto` of an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn lb_sendmsg4(context: SockAddrContext) -> i32 {
    translate4(&SocketAddress::of(&context), socket::send)
}

/// `sendmsg` and `sendto` of an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn lb_sendmsg6(context: SockAddrContext) -> i32 {
    translate6(&SocketAddress::of(&context), socket::send, socket::send)
}

/// The source address that `recvmsg` and `recvfrom` of an IPv4 socket return.
#[cgroup_sock_addr(recvmsg4)]
pub fn lb_recvmsg4(context: SockAddrContext) -> i32 {
    restore4(&SocketAddress::of(&context))
}

/// The source address that `recvmsg` and `recvfrom` of an IPv6 socket return.
#[cgroup_sock_addr(recvmsg6)]
pub fn lb_recvmsg6(context: SockAddrContext) -> i32 {
    restore6(&SocketAddress::of(&context))
}

/// The address that `getpeername` of an IPv4 socket returns.
#[cgroup_sock_addr(getpeername4)]
pub fn lb_getpeername4(context: SockAddrContext) -> i32 {
    restore4(&SocketAddress::of(&context))
}

/// The address that `getpeername` of an IPv6 socket returns.
#[cgroup_sock_addr(getpeername6)]
pub fn lb_getpeername6(context: SockAddrContext) -> i32 {
    restore6(&SocketAddress::of(&context))
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn lb_sock_release(context: SockContext) -> i32 {
    release(&ClosedSocket::of(&context));
    ALLOW
}

#[inline(always)]
fn release(socket: &ClosedSocket) -> Option<()> {
    if !socket.is_ipv6() {
        socket::release(&KernelTables, &socket.call(socket.peer4())?);
        return Some(());
    }
    // The socket may have used both families, whatever its peer is now.
    let peer = socket.peer6();
    socket::release(&KernelTables, &socket.call(peer)?);
    let peer4 = Peer {
        address: peer.address.to_mapped().unwrap_or_default(),
        port: peer.port,
    };
    socket::release(&KernelTables, &socket.call(peer4)?);
    Some(())
}

type Translate<A> = fn(&KernelTables, &Call<A>) -> Result<Option<Peer<A>>, Reason>;

#[inline(always)]
fn translate4(address: &SocketAddress, translate: Translate<Address4>) -> i32 {
    let Some(call) = address.call(address.peer4()) else {
        return ALLOW;
    };
    finish(translate(&KernelTables, &call), |peer| address.set_peer4(peer))
}

/// An IPv6 socket may name an IPv4 peer by its mapped address.
#[inline(always)]
fn translate6(address: &SocketAddress, translate: Translate<Address6>, mapped: Translate<Address4>) -> i32 {
    let peer = address.peer6();
    if let Some(peer4) = peer.address.to_mapped() {
        let Some(call) = address.call(Peer {
            address: peer4,
            port: peer.port,
        }) else {
            return ALLOW;
        };
        return finish(mapped(&KernelTables, &call), |peer| address.set_peer6(map(peer)));
    }
    let Some(call) = address.call(peer) else {
        return ALLOW;
    };
    finish(translate(&KernelTables, &call), |peer| address.set_peer6(peer))
}

#[inline(always)]
fn finish<A>(outcome: Result<Option<Peer<A>>, Reason>, set: impl FnOnce(Peer<A>)) -> i32 {
    match outcome {
        Ok(None) => ALLOW,
        Ok(Some(peer)) => {
            set(peer);
            ALLOW
        }
        Err(reason) => {
            let error = match reason {
                Reason::NoEndpoint | Reason::UnknownPort => CONNECTION_REFUSED,
                _ => HOST_UNREACHABLE,
            };
            helpers::set_error(error);
            DENY
        }
    }
}

#[inline(always)]
fn restore4(address: &SocketAddress) -> i32 {
    if let Some(call) = address.call(address.peer4())
        && let Some(peer) = socket::restore(&KernelTables, &call)
    {
        address.set_peer4(peer);
    }
    ALLOW
}

#[inline(always)]
fn restore6(address: &SocketAddress) -> i32 {
    let peer = address.peer6();
    if let Some(peer4) = peer.address.to_mapped() {
        if let Some(call) = address.call(Peer {
            address: peer4,
            port: peer.port,
        }) && let Some(peer) = socket::restore(&KernelTables, &call)
        {
            address.set_peer6(map(peer));
        }
    } else if let Some(call) = address.call(peer)
        && let Some(peer) = socket::restore(&KernelTables, &call)
    {
        address.set_peer6(peer);
    }
    ALLOW
}

#[inline(always)]
fn map(peer: Peer<Address4>) -> Peer<Address6> {
    Peer {
        address: Address6::from_mapped(peer.address),
        port: peer.port,
    }
}
