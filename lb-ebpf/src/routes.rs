//! FIB lookups.

use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated;
use lb_common::address::Address;
use lb_common::layout::device_role;
use lb_common::packet::{Hop, Route, Sender};

use crate::maps;
use crate::settings::settings;

/// Address families of the socket interface.
const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// The input of a FIB lookup.
pub struct Query<A> {
    /// Index of the device that the packet came in on.
    pub device: u32,
    pub source: A,
    pub destination: A,
    /// Length of IP header and payload; 0 for any length.
    pub length: u32,
}

/// Calls `bpf_fib_lookup` with these flags. The result is one of `BPF_FIB_LKUP_RET_*`.
#[inline(always)]
fn ask<A: Address>(
    context: *mut c_void,
    query: &Query<A>,
    flags: u32,
    parameters: &mut bpf_fib_lookup,
) -> u32 {
    parameters.family = if A::IS_IPV6 { AF_INET6 } else { AF_INET };
    parameters.ifindex = query.device;
    parameters.__bindgen_anon_1.tot_len = query.length as u16;
    parameters.__bindgen_anon_3.ipv6_src = query.source.words();
    parameters.__bindgen_anon_4.ipv6_dst = query.destination.words();
    let length = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the pointer and length are those of one value.
    unsafe { generated::bpf_fib_lookup(context, parameters, length, flags) as u32 }
}

/// Looks up the route of a packet.
///
/// Not inlined, so that packets that are not forwarded do not pay for its stack.
#[inline(never)]
pub fn look_up<A: Address>(context: *mut c_void, query: &Query<A>, hop: &mut Hop) -> Route {
    // SAFETY: all zeros are a valid value: numbers only.
    let mut parameters: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    let result = ask(context, query, 0, &mut parameters);
    hop.device = parameters.ifindex;
    match result {
        BPF_FIB_LKUP_RET_SUCCESS => {
            let [a, b, c, d, e, f] = parameters.dmac;
            let [g, h, i, j, k, l] = parameters.smac;
            hop.link = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
            Route::Ready
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => Route::Unresolved,
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            // SAFETY: any bytes are a number.
            hop.mtu = u32::from(unsafe { parameters.__bindgen_anon_1.mtu_result });
            Route::TooBig
        }
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED if is_of_node(&parameters) => Route::Local,
        _ => Route::None,
    }
}

/// Returns true if a destination without a route is an address of the node. The kernel returns "not
/// forwarded" for both, and "forwarding is disabled" for every address (`bpf_ipv4_fib_lookup`,
/// `bpf_ipv6_fib_lookup`, net/core/filter.c, Linux 6.18).
#[inline(always)]
fn is_of_node(parameters: &bpf_fib_lookup) -> bool {
    // SAFETY: any bytes are numbers. The kernel has not changed the address.
    maps::is_node_address(unsafe { &parameters.__bindgen_anon_4.ipv6_dst })
}

/// Returns true if the next hop of a route is the destination itself and not a router.
#[inline(always)]
fn next_hop_is<A: Address>(parameters: &bpf_fib_lookup, destination: A) -> bool {
    let [a, b, c, d] = destination.words();
    // Reads only what the kernel has written: a read that is wider than the last write stalls on
    // it.
    // SAFETY: any bytes are numbers.
    unsafe {
        if A::IS_IPV6 {
            let next = parameters.__bindgen_anon_4.ipv6_dst;
            (next[0] ^ a) | (next[1] ^ b) | (next[2] ^ c) | (next[3] ^ d) == 0
        } else {
            parameters.__bindgen_anon_4.ipv4_dst == a
        }
    }
}

/// A flow that is already gone is not an error.
#[inline(never)]
pub fn sender<A: Address>(context: *mut c_void, device: u32, source: A) -> Sender {
    let query = Query {
        device,
        source: A::default(),
        destination: source,
        length: 0,
    };
    // SAFETY: all zeros are a valid value: numbers only.
    let mut parameters: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    match ask(context, &query, settings().skip_neighbour, &mut parameters) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {}
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED if is_of_node(&parameters) => {
            return Sender::Node;
        }
        _ => return Sender::Here,
    }
    let device_of_route = parameters.ifindex;
    if device_of_route == device || device_of_route == maps::master_of(device) {
        return if next_hop_is(&parameters, source) {
            Sender::Here
        } else {
            Sender::Behind
        };
    }
    match maps::role_of(device_of_route) {
        device_role::POD => Sender::Pod,
        device_role::NETWORK => Sender::Network,
        _ => Sender::Here,
    }
}
