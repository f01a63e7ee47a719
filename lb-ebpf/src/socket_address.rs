//! The address in a socket's system call, and the address of a closed socket.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::address::Address;
use lb_common::net::{Address4, Address6, Port, protocol};
use lb_common::socket::{Call, Peer};

use crate::routes::AF_INET6;
use crate::settings::settings;

/// Returns true if the agent identifies network namespaces by their cookies.
#[inline(always)]
pub fn has_namespace_cookies() -> bool {
    settings().node_namespace != 0
}

#[inline(always)]
fn node_namespace() -> u64 {
    match settings().node_namespace {
        // SAFETY: plain helper call. Without a context it returns the cookie of the initial
        // namespace.
        0 => unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) },
        cookie => cookie,
    }
}

/// The address in a system call, as the kernel shows it to the program.
pub struct SocketAddress(*mut bpf_sock_addr);

impl SocketAddress {
    /// The address in the call for which the program runs.
    #[inline(always)]
    pub fn of(context: &SockAddrContext) -> Self {
        Self(context.sock_addr)
    }

    /// The call, if the agent translates calls of its kind.
    #[inline(always)]
    pub fn call<A: Address>(&self, peer: Peer<A>) -> Option<Call<A>> {
        // SAFETY: the kernel hands the program a valid context.
        let protocol = known_protocol(unsafe { (*self.0).protocol })?;
        // SAFETY: plain helper call with the context.
        let namespace = unsafe { bpf_get_netns_cookie(self.0.cast()) };
        let is_node_namespace = namespace == node_namespace();
        if settings().only_node_sockets != 0 && !is_node_namespace {
            return None;
        }
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        Some(Call {
            cookie,
            protocol,
            peer,
            namespace,
            is_node_namespace,
            is_bound: self.is_bound(),
            is_connected: self.is_connected(),
        })
    }

    #[inline(always)]
    fn is_bound(&self) -> bool {
        // SAFETY: the kernel hands the program a valid context, whose socket can be read.
        unsafe {
            let socket = (*self.0).__bindgen_anon_1.sk;
            !socket.is_null() && (*socket).src_port != 0
        }
    }

    #[inline(always)]
    fn is_connected(&self) -> bool {
        // SAFETY: as above.
        unsafe {
            let socket = (*self.0).__bindgen_anon_1.sk;
            !socket.is_null() && (*socket).dst_port != 0
        }
    }

    #[inline(always)]
    fn port(&self) -> Port {
        // The field has 32 bits. Its first two bytes hold the port in network byte order.
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
    pub fn peer4(&self) -> Peer<Address4> {
        // SAFETY: as above.
        let address = Address4::from_word(unsafe { (*self.0).user_ip4 });
        Peer {
            address,
            port: self.port(),
        }
    }

    #[inline(always)]
    pub fn set_peer4(&self, peer: Peer<Address4>) {
        // SAFETY: as above.
        unsafe { (*self.0).user_ip4 = peer.address.to_word() };
        self.set_port(peer.port);
    }

    #[inline(always)]
    pub fn peer6(&self) -> Peer<Address6> {
        Peer {
            // SAFETY: as above.
            address: unsafe { address6(&raw const (*self.0).user_ip6) },
            port: self.port(),
        }
    }

    #[inline(always)]
    pub fn set_peer6(&self, peer: Peer<Address6>) {
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

/// The IPv6 address in a field of a context.
///
/// # Safety
/// The field is one of a valid context.
#[inline(always)]
unsafe fn address6(field: *const [u32; 4]) -> Address6 {
    // One load for each word: the kernel rewrites loads of context fields one by one.
    // SAFETY: the caller guarantees that the field is valid.
    let word = |index: usize| unsafe { field.cast::<u32>().add(index).read_volatile() };
    Address6::from_words([word(0), word(1), word(2), word(3)])
}

/// The protocol with this number, if the agent translates it.
#[inline(always)]
fn known_protocol(number: u32) -> Option<u8> {
    match number {
        number if number == u32::from(protocol::TCP) => Some(protocol::TCP),
        number if number == u32::from(protocol::UDP) => Some(protocol::UDP),
        _ => None,
    }
}

/// A closed socket, as the kernel shows it to the program.
pub struct ClosedSocket(*mut bpf_sock);

impl ClosedSocket {
    /// The socket for which the program runs.
    #[inline(always)]
    pub fn of(context: &SockContext) -> Self {
        Self(context.sock)
    }

    /// Whether it is an IPv6 socket.
    #[inline(always)]
    pub fn is_ipv6(&self) -> bool {
        // SAFETY: the kernel hands the program a valid context.
        unsafe { (*self.0).family == u32::from(AF_INET6) }
    }

    /// Its last system call, if the agent translates sockets of its kind.
    #[inline(always)]
    pub fn call<A: Address>(&self, peer: Peer<A>) -> Option<Call<A>> {
        // SAFETY: as above.
        let protocol = known_protocol(unsafe { (*self.0).protocol })?;
        // SAFETY: plain helper call with the context.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        Some(Call {
            cookie,
            protocol,
            peer,
            // No backend is chosen for it any more.
            namespace: 0,
            is_node_namespace: false,
            is_bound: false,
            is_connected: false,
        })
    }

    /// The peer of an IPv4 socket; all zeros if it has none.
    #[inline(always)]
    pub fn peer4(&self) -> Peer<Address4> {
        // SAFETY: as above.
        let address = Address4::from_word(unsafe { (*self.0).dst_ip4 });
        Peer {
            address,
            port: self.port(),
        }
    }

    /// The peer of an IPv6 socket; all zeros if it has none.
    #[inline(always)]
    pub fn peer6(&self) -> Peer<Address6> {
        Peer {
            // SAFETY: as above.
            address: unsafe { address6(&raw const (*self.0).dst_ip6) },
            port: self.port(),
        }
    }

    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: as above.
        Port::from_bytes(unsafe { (*self.0).dst_port }.to_ne_bytes())
    }
}
