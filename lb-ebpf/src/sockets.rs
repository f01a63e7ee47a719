//! The cgroup programs: translation at `connect`, `sendmsg`, `recvmsg` and `getpeername`.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use lb_common::layout::{Address4, Address6, Port, protocol};
use lb_common::reason::Reason;
use lb_common::socket::{self, Call, Peer};

use crate::tables::{Family, KernelTables};

/// If not zero, only sockets of the network namespace with this cookie are translated; set by the agent.
#[unsafe(no_mangle)]
static SOCKET_NAMESPACE: Global<u64> = Global::new(0);

/// The system call goes on.
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
    translate4(&SocketAddress(context.sock_addr), socket::connect)
}

/// `connect` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn lb_connect6(context: SockAddrContext) -> i32 {
    translate6(
        &SocketAddress(context.sock_addr),
        socket::connect,
        socket::connect,
    )
}

/// `sendmsg` and `sendto` of an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn lb_sendmsg4(context: SockAddrContext) -> i32 {
    translate4(&SocketAddress(context.sock_addr), socket::send)
}

/// `sendmsg` and `sendto` of an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn lb_sendmsg6(context: SockAddrContext) -> i32 {
    translate6(&SocketAddress(context.sock_addr), socket::send, socket::send)
}

/// The source address that `recvmsg` and `recvfrom` of an IPv4 socket return.
#[cgroup_sock_addr(recvmsg4)]
pub fn lb_recvmsg4(context: SockAddrContext) -> i32 {
    restore4(&SocketAddress(context.sock_addr))
}

/// The source address that `recvmsg` and `recvfrom` of an IPv6 socket return.
#[cgroup_sock_addr(recvmsg6)]
pub fn lb_recvmsg6(context: SockAddrContext) -> i32 {
    restore6(&SocketAddress(context.sock_addr))
}

/// The address that `getpeername` of an IPv4 socket returns.
#[cgroup_sock_addr(getpeername4)]
pub fn lb_getpeername4(context: SockAddrContext) -> i32 {
    restore4(&SocketAddress(context.sock_addr))
}

/// The address that `getpeername` of an IPv6 socket returns.
#[cgroup_sock_addr(getpeername6)]
pub fn lb_getpeername6(context: SockAddrContext) -> i32 {
    restore6(&SocketAddress(context.sock_addr))
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
            // SAFETY: plain helper call.
            unsafe { bpf_set_retval(-error) };
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

/// The address in a system call, as the kernel shows it to the program.
struct SocketAddress(*mut bpf_sock_addr);

impl SocketAddress {
    /// The call, if it is one that the agent translates.
    #[inline(always)]
    fn call<A: Family>(&self, peer: Peer<A>) -> Option<Call<A>> {
        // SAFETY: the kernel hands the program a valid context.
        let number = unsafe { (*self.0).protocol };
        let protocol = match number {
            number if number == u32::from(protocol::TCP) => protocol::TCP,
            number if number == u32::from(protocol::UDP) => protocol::UDP,
            _ => return None,
        };
        let namespace = SOCKET_NAMESPACE.load();
        // SAFETY: plain helper calls with the context.
        if namespace != 0 && unsafe { bpf_get_netns_cookie(self.0.cast()) } != namespace {
            return None;
        }
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        Some(Call {
            cookie,
            protocol,
            peer,
        })
    }

    #[inline(always)]
    fn port(&self) -> Port {
        // The field is 32 bits wide and holds the port in network byte order in its first two.
        // SAFETY: the kernel hands the program a valid context.
        let [a, b, ..] = unsafe { (*self.0).user_port }.to_ne_bytes();
        Port::from_bytes([a, b])
    }

    #[inline(always)]
    fn set_port(&self, port: Port) {
        let [a, b] = port.to_bytes();
        // SAFETY: as above; the kernel allows the write.
        unsafe { (*self.0).user_port = u32::from_ne_bytes([a, b, 0, 0]) };
    }

    #[inline(always)]
    fn peer4(&self) -> Peer<Address4> {
        // SAFETY: as above.
        let address = Address4::from_word(unsafe { (*self.0).user_ip4 });
        Peer {
            address,
            port: self.port(),
        }
    }

    #[inline(always)]
    fn set_peer4(&self, peer: Peer<Address4>) {
        // SAFETY: as above.
        unsafe { (*self.0).user_ip4 = peer.address.to_word() };
        self.set_port(peer.port);
    }

    #[inline(always)]
    fn peer6(&self) -> Peer<Address6> {
        // One load for each word: the kernel rewrites loads of context fields one by one.
        // SAFETY: as above.
        let words = unsafe {
            let address = &raw const (*self.0).user_ip6;
            let word = |index: usize| address.cast::<u32>().add(index).read_volatile();
            [word(0), word(1), word(2), word(3)]
        };
        Peer {
            address: Address6::from_words(words),
            port: self.port(),
        }
    }

    #[inline(always)]
    fn set_peer6(&self, peer: Peer<Address6>) {
        let [a, b, c, d] = peer.address.to_words();
        // SAFETY: as above.
        unsafe {
            let address = (&raw mut (*self.0).user_ip6).cast::<u32>();
            address.write_volatile(a);
            address.add(1).write_volatile(b);
            address.add(2).write_volatile(c);
            address.add(3).write_volatile(d);
        }
        self.set_port(peer.port);
    }
}
