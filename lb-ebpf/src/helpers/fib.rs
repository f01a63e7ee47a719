//! `bpf_fib_lookup`.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated;

/// A lookup in the FIB: first its input, then its output.
pub struct FibLookup(bpf_fib_lookup);

impl FibLookup {
    /// A lookup for a packet that came in on a device. The family is `AF_INET` or `AF_INET6`, the
    /// addresses are words in network byte order, and the length is that of the IP packet; 0 for
    /// any length.
    #[inline(always)]
    pub fn new(family: u8, device: u32, length: u16, source: [u32; 4], destination: [u32; 4]) -> Self {
        // SAFETY: all zeros are a valid value: numbers only.
        let mut parameters: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        parameters.family = family;
        parameters.ifindex = device;
        parameters.__bindgen_anon_1.tot_len = length;
        parameters.__bindgen_anon_3.ipv6_src = source;
        parameters.__bindgen_anon_4.ipv6_dst = destination;
        Self(parameters)
    }

    /// Does the lookup. `context` is that of an XDP or TC program. Returns one of
    /// `BPF_FIB_LKUP_RET_*`.
    #[inline(always)]
    pub fn run(&mut self, context: *mut c_void, flags: u32) -> u32 {
        let length = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the pointer and length are those of one value.
        unsafe { generated::bpf_fib_lookup(context, &raw mut self.0, length, flags) as u32 }
    }

    /// The device of the route.
    #[inline(always)]
    pub fn device(&self) -> u32 {
        self.0.ifindex
    }

    /// The link-layer addresses of the next hop and of the route's device.
    #[inline(always)]
    pub fn links(&self) -> ([u8; 6], [u8; 6]) {
        (self.0.dmac, self.0.smac)
    }

    /// The MTU of the route, after `BPF_FIB_LKUP_RET_FRAG_NEEDED`.
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        // SAFETY: any bytes are a number.
        unsafe { self.0.__bindgen_anon_1.mtu_result }
    }

    /// The IPv4 next hop if there is a route, else the destination.
    #[inline(always)]
    pub fn next_hop4(&self) -> u32 {
        // SAFETY: any bytes are a number.
        unsafe { self.0.__bindgen_anon_4.ipv4_dst }
    }

    /// The IPv6 next hop if there is a route, else the destination's words.
    #[inline(always)]
    pub fn next_hop6(&self) -> &[u32; 4] {
        // SAFETY: any bytes are numbers.
        unsafe { &self.0.__bindgen_anon_4.ipv6_dst }
    }
}
