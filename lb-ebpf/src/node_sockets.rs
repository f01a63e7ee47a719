//! Lookup of the node's sockets.

use core::mem::offset_of;
use core::ptr;

use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use lb_common::address::Address;
use lb_common::layout::FlowKey;
use lb_common::net::{Address4, Address6, protocol};

/// The network namespace of the packet's device (`BPF_F_CURRENT_NETNS`).
const CURRENT_NAMESPACE: u64 = u64::MAX;

/// Returns true if a socket of the node receives packets with these addresses and ports.
#[inline(never)]
pub fn has<A: Address>(context: *mut c_void, key: &FlowKey<A>) -> bool {
    // The kernel expects addresses and ports in network byte order. A key begins with these fields.
    const {
        assert!(offset_of!(FlowKey<A>, source) == 0 && offset_of!(FlowKey<A>, destination) == size_of::<A>());
        assert!(
            offset_of!(FlowKey<A>, source_port) == 2 * size_of::<A>()
                && offset_of!(FlowKey<A>, destination_port) == 2 * size_of::<A>() + 2
        );
        assert!(size_of::<A>() == size_of::<Address4>() || size_of::<A>() == size_of::<Address6>());
    }
    let length = 2 * size_of::<A>() as u32 + 4;
    let tuple: *mut bpf_sock_tuple = ptr::from_ref(key).cast_mut().cast();
    // SAFETY: the helpers read `length` bytes of the key and write none (ARG_PTR_TO_MEM |
    // MEM_RDONLY, <https://github.com/torvalds/linux/blob/v6.18/net/core/filter.c>). The socket
    // that they return is released once.
    unsafe {
        let socket: *mut c_void = if key.protocol == protocol::UDP {
            bpf_sk_lookup_udp(context, tuple, length, CURRENT_NAMESPACE, 0).cast()
        } else {
            bpf_skc_lookup_tcp(context, tuple, length, CURRENT_NAMESPACE, 0).cast()
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}
