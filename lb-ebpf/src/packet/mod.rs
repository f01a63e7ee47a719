//! Packets in XDP and TC programs.

mod store;
mod tc;
mod xdp;

pub use tc::{TcPacket, is_of_vlan};
pub use xdp::XdpPacket;

use lb_common::layout::LinkAddress;
use lb_common::packet::View;

/// All headers that are read are below this offset: Ethernet, the largest IP header, one that is
/// quoted behind it, TCP.
const OFFSET_MAX: u32 = 0x3ff;

const _: () = assert!((OFFSET_MAX + 1).is_power_of_two(), "it is also a mask");

/// The number of bytes between two packet pointers.
#[inline(always)]
fn distance(start: usize, end: usize) -> u32 {
    let mut distance = (end - start) as u64;
    // LLVM would subtract 32-bit halves, which the verifier rejects for pointers ("32-bit pointer
    // arithmetic prohibited", Linux 6.18). The assembly hides from LLVM that only the lower halves
    // are used. An empty text would give one instruction two source lines, which the kernel
    // rejects.
    // SAFETY: copies a register onto itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) distance, options(pure, nomem, nostack, preserves_flags))
    };
    distance as u32
}

/// The start of `length` bytes at `offset`, if they are between `data` and `data_end`.
#[inline(always)]
fn part(data: usize, data_end: usize, offset: u32, length: usize) -> Option<usize> {
    if offset > OFFSET_MAX {
        return None;
    }
    let mut start = u64::from(offset);
    // The verifier needs to see the bound of an offset before it is added, and the same sum must be
    // checked and used. LLVM checks a copy of the offset, or adds in another order ("invalid access
    // to packet", up to Linux 6.12).
    // SAFETY: changes only the register. The offset is within the mask.
    unsafe {
        core::arch::asm!(
            "{start} &= {mask}",
            "{start} += {data}",
            start = inout(reg) start,
            mask = const OFFSET_MAX,
            data = in(reg) data as u64,
            options(pure, nomem, nostack, preserves_flags)
        )
    };
    let start = start as usize;
    (start + length <= data_end).then_some(start)
}

/// The destination link-layer address of a frame.
#[inline(always)]
fn destination_link(frame: &View<'_, 6>) -> LinkAddress {
    let [e, f] = frame.u16::<4>().to_ne_bytes();
    LinkAddress {
        start: frame.u32::<0>(),
        end: u32::from_ne_bytes([e, f, 0, 0]),
    }
}
