//! Packets as XDP and TC programs see them.

mod store;
mod tc;
mod xdp;

pub use tc::{TcPacket, is_of_vlan};
pub use xdp::XdpPacket;

use lb_common::layout::LinkAddress;
use lb_common::packet::View;

/// No header that is read lies behind this offset: Ethernet, the largest IP header, one that is
/// quoted behind it, TCP.
const OFFSET_MAX: u32 = 0x3ff;

const _: () = assert!((OFFSET_MAX + 1).is_power_of_two(), "it is a mask too");

/// The number of bytes between two packet pointers.
#[inline(always)]
fn distance(start: usize, end: usize) -> u32 {
    let mut distance = (end - start) as u64;
    // LLVM would subtract 32-bit halves, which the verifier prohibits for pointers ("32-bit pointer
    // arithmetic prohibited", Linux 6.18): it must not see that only those are used. An empty text
    // would give two source lines to one instruction, which the kernel refuses. SAFETY: copies a
    // register onto itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) distance, options(pure, nomem, nostack, preserves_flags))
    };
    distance as u32
}

/// The start of `length` bytes at `offset`, if they lie between `data` and `data_end`.
#[inline(always)]
fn part(data: usize, data_end: usize, offset: u32, length: usize) -> Option<usize> {
    if offset > OFFSET_MAX {
        return None;
    }
    let mut start = u64::from(offset);
    // The verifier wants to see the bound of an offset before it is added, and the same sum both
    // checked and used: LLVM checks a copy of the offset, or adds up in another order ("invalid
    // access to packet", up to Linux 6.12). SAFETY: changes no more than the register: the offset
    // is within the mask.
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

/// Whether a helper succeeded.
#[inline(always)]
fn ok(result: i64) -> Option<()> {
    (result == 0).then_some(())
}

/// The link-layer address that a frame is for.
#[inline(always)]
fn destination_link(frame: &View<'_, 6>) -> LinkAddress {
    let [e, f] = frame.u16::<4>().to_ne_bytes();
    LinkAddress {
        start: frame.u32::<0>(),
        end: u32::from_ne_bytes([e, f, 0, 0]),
    }
}
