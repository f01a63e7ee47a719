//! Fields of an XDP program's context, and the helpers that take it.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;

use super::ok;

/// Fields and helpers of `struct xdp_md`
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>).
///
/// Helpers that change the packet take `&mut self`: no view of the packet may be alive.
pub trait Xdp {
    /// For helpers of several program types.
    fn as_context(&self) -> *mut c_void;
    /// Index of the device on which the packet came in.
    fn device(&self) -> u32;
    /// Adds bytes in front of the packet.
    fn grow_head(&mut self, by: u32) -> Option<()>;
    /// Adds bytes to the end of the packet, or removes them.
    fn adjust_tail(&mut self, by: i32) -> Option<()>;
}

impl Xdp for XdpContext {
    #[inline(always)]
    fn as_context(&self) -> *mut c_void {
        self.ctx.cast()
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the kernel hands the program a valid context.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn grow_head(&mut self, by: u32) -> Option<()> {
        // SAFETY: plain helper call.
        ok(unsafe { bpf_xdp_adjust_head(self.ctx, -(by as i32)) }.into())
    }

    #[inline(always)]
    fn adjust_tail(&mut self, by: i32) -> Option<()> {
        // SAFETY: plain helper call.
        ok(unsafe { bpf_xdp_adjust_tail(self.ctx, by) }.into())
    }
}
