//! Fields of a TC program's context, and the helpers that take it.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_pull_data,
    bpf_skb_store_bytes, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use lb_common::layout::Flow;

use super::ok;

/// Fields and helpers of `struct __sk_buff`
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>).
///
/// Helpers that change the packet take `&mut self`: no view of the packet may be alive.
pub trait Skb {
    /// For helpers of several program types.
    fn as_context(&self) -> *mut c_void;
    /// Index of the packet's device.
    fn device(&self) -> u32;
    /// The ethertype, in network byte order.
    fn ethertype(&self) -> u16;
    /// The VLAN tag that the kernel has moved out of the frame.
    fn vlan_tag(&self) -> Option<u32>;
    /// `PACKET_*` (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/if_packet.h>).
    fn packet_type(&self) -> u32;
    /// Length of the segments into which the packet is split, in bytes; 0 if it is not split.
    fn segment_size(&self) -> u32;
    /// The value that an earlier TC program has set for this packet; 0 if none has.
    fn tc_index(&self) -> u32;
    /// Sets the number that later programs read.
    fn set_tc_index(&mut self, index: u32);
    /// Moves the first `length` bytes into the linear part.
    fn pull(&mut self, length: u32);
    /// Removes the VLAN tag that the kernel has moved out of the frame.
    fn pop_vlan(&self);
    /// Writes a value.
    fn write<T>(&mut self, offset: u32, value: &T, flags: u32) -> Option<()>;
    /// Writes the first `length` bytes of a flow. The verifier checks the length.
    fn write_start<A>(&mut self, offset: u32, flow: &Flow<A>, length: u32) -> Option<()>;
    /// Patches a transport checksum. Returns 0 or a negative error number.
    fn patch_checksum(&mut self, offset: u32, difference: u32, flags: u32) -> i64;
    /// Adds bytes behind the link-layer header.
    fn grow_behind_link(&mut self, by: u32) -> Option<()>;
    /// Adds bytes in front of the packet.
    fn change_head(&mut self, by: u32) -> Option<()>;
    /// Sets the length of the packet.
    fn change_tail(&mut self, length: u32) -> Option<()>;
}

impl Skb for TcContext {
    #[inline(always)]
    fn as_context(&self) -> *mut c_void {
        self.skb.skb.cast()
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the kernel passes a valid context to the program.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).protocol as u16 }
    }

    #[inline(always)]
    fn vlan_tag(&self) -> Option<u32> {
        // SAFETY: as above.
        let skb = unsafe { &*self.skb.skb };
        (skb.vlan_present != 0).then(|| skb.vlan_tci)
    }

    #[inline(always)]
    fn packet_type(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).pkt_type }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).gso_size }
    }

    #[inline(always)]
    fn tc_index(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index }
    }

    #[inline(always)]
    fn set_tc_index(&mut self, index: u32) {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index = index };
    }

    #[inline(always)]
    fn pull(&mut self, length: u32) {
        // SAFETY: plain helper call.
        unsafe { bpf_skb_pull_data(self.skb.skb, length) };
    }

    #[inline(always)]
    fn pop_vlan(&self) {
        // SAFETY: plain helper call.
        unsafe { bpf_skb_vlan_pop(self.skb.skb) };
    }

    #[inline(always)]
    fn write<T>(&mut self, offset: u32, value: &T, flags: u32) -> Option<()> {
        let value: *const T = value;
        // SAFETY: the pointer and length are those of one readable value.
        ok(unsafe {
            bpf_skb_store_bytes(
                self.skb.skb,
                offset,
                value.cast(),
                size_of::<T>() as u32,
                flags.into(),
            )
        })
    }

    #[inline(always)]
    fn write_start<A>(&mut self, offset: u32, flow: &Flow<A>, length: u32) -> Option<()> {
        let flow: *const Flow<A> = flow;
        // SAFETY: the pointer is that of a readable value; the verifier checks the length.
        ok(unsafe { bpf_skb_store_bytes(self.skb.skb, offset, flow.cast(), length, 0) })
    }

    #[inline(always)]
    fn patch_checksum(&mut self, offset: u32, difference: u32, flags: u32) -> i64 {
        // SAFETY: plain helper call.
        unsafe { bpf_l4_csum_replace(self.skb.skb, offset, 0, difference.into(), flags.into()) }
    }

    #[inline(always)]
    fn grow_behind_link(&mut self, by: u32) -> Option<()> {
        // SAFETY: plain helper call.
        ok(unsafe { bpf_skb_adjust_room(self.skb.skb, by as i32, BPF_ADJ_ROOM_MAC, 0) })
    }

    #[inline(always)]
    fn change_head(&mut self, by: u32) -> Option<()> {
        // SAFETY: plain helper call.
        ok(unsafe { bpf_skb_change_head(self.skb.skb, by, 0) })
    }

    #[inline(always)]
    fn change_tail(&mut self, length: u32) -> Option<()> {
        // SAFETY: plain helper call.
        ok(unsafe { bpf_skb_change_tail(self.skb.skb, length, 0) })
    }
}
