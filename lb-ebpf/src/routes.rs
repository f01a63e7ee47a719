//! FIB lookups.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
};
use aya_ebpf::cty::c_void;
use lb_common::address::Address;
use lb_common::layout::device_role;
use lb_common::packet::{Hop, Route, Sender};

use crate::helpers::FibLookup;
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

/// The lookup that a query describes.
#[inline(always)]
fn lookup<A: Address>(query: &Query<A>) -> FibLookup {
    let family = if A::IS_IPV6 { AF_INET6 } else { AF_INET };
    let (source, destination) = (query.source.words(), query.destination.words());
    FibLookup::new(family, query.device, query.length as u16, source, destination)
}

/// Looks up the route of a packet.
///
/// Not inlined, so that its stack is not added to that of packets that are not forwarded.
#[inline(never)]
pub fn look_up<A: Address>(context: *mut c_void, query: &Query<A>, hop: &mut Hop) -> Route {
    let mut lookup = lookup(query);
    let result = lookup.run(context, 0);
    hop.device = lookup.device();
    match result {
        BPF_FIB_LKUP_RET_SUCCESS => {
            let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = lookup.links();
            hop.link = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
            Route::Ready
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => Route::Unresolved,
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            hop.mtu = u32::from(lookup.mtu());
            Route::TooBig
        }
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED if is_of_node(&lookup) => Route::Local,
        _ => Route::None,
    }
}

/// Returns true if a destination without a route is an address of the node. The kernel returns "not
/// forwarded" for both, and "forwarding is disabled" for every address (`bpf_ipv4_fib_lookup`,
/// `bpf_ipv6_fib_lookup`, <https://github.com/torvalds/linux/blob/v6.18/net/core/filter.c>).
#[inline(always)]
fn is_of_node(lookup: &FibLookup) -> bool {
    // The kernel has not changed the address.
    maps::is_node_address(lookup.next_hop6())
}

/// Returns true if the next hop of a route is the destination itself and not a router.
#[inline(always)]
fn next_hop_is<A: Address>(lookup: &FibLookup, destination: A) -> bool {
    let [a, b, c, d] = destination.words();
    // Reads only what the kernel has written: a read that is wider than the last write stalls on
    // it.
    if A::IS_IPV6 {
        let next = lookup.next_hop6();
        (next[0] ^ a) | (next[1] ^ b) | (next[2] ^ c) | (next[3] ^ d) == 0
    } else {
        lookup.next_hop4() == a
    }
}

/// Where the sender of a packet that came in through a device is, according to the route to it.
#[inline(never)]
pub fn sender<A: Address>(context: *mut c_void, device: u32, source: A) -> Sender {
    let query = Query {
        device,
        source: A::default(),
        destination: source,
        length: 0,
    };
    let mut lookup = lookup(&query);
    match lookup.run(context, settings().skip_neighbour) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {}
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED if is_of_node(&lookup) => {
            return Sender::Node;
        }
        _ => return Sender::Here,
    }
    let device_of_route = lookup.device();
    if device_of_route == device || device_of_route == maps::master_of(device) {
        return if next_hop_is(&lookup, source) {
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
