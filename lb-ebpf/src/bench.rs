//! The packet generator of `cargo xtask bench packets`.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on the same packet. Translation changes the packet, so the
//! second run would see another one. These programs write the addresses and ports of the next flow
//! into the packet and then tail-call the measured program, which stays unchanged. The empty
//! program is measured in the same way, so both results contain the cost of the generator.
#![no_std]
#![no_main]

mod plan;

use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::packet::ViewMut;

use crate::plan::{End, EndAt, Plan};

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);
/// The measured program. Programs of two types cannot share an array.
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Writes the next packet, then tail-calls the XDP program in `XDP_TARGET`.
#[xdp]
pub fn lb_bench_xdp(context: XdpContext) -> u32 {
    if prepare(context.data(), context.data_end()).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { XDP_TARGET.tail_call(&context, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Writes the next packet, then tail-calls the TC program in `TC_TARGET`.
#[classifier]
pub fn lb_bench_tc(context: TcContext) -> i32 {
    if prepare(context.data(), context.data_end()).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { TC_TARGET.tail_call(&context, 0) };
    }
    TC_ACT_SHOT
}

#[inline(always)]
fn prepare(data: usize, data_end: usize) -> Option<()> {
    // SAFETY: one measurement runs at a time, on one CPU.
    let plan = unsafe { &mut *PLAN.get_ptr_mut(0)? };
    plan.advance();
    field::<2>(data, data_end, plan.hops_at)?.set_u16::<0>(plan.hops);
    set(data, data_end, plan.client_at, plan.client())?;
    set(data, data_end, plan.service_at, plan.service())
}

/// Writes whole fields, not bytes: the measured program reads them immediately, and would stall
/// until the bytes are joined.
#[inline(always)]
fn set(data: usize, data_end: usize, at: EndAt, end: End) -> Option<()> {
    field::<4>(data, data_end, at.address)?.set_u32::<0>(end.address.to_be());
    field::<2>(data, data_end, at.port)?.set_u16::<0>(end.port.to_be());
    Some(())
}

#[inline(always)]
fn field<const N: usize>(data: usize, data_end: usize, offset: u32) -> Option<ViewMut<'static, N>> {
    /// The fields of plain headers are before this offset. The verifier needs a bound.
    const OFFSET_MAX: u32 = 0x7f;
    let start = data + (offset & OFFSET_MAX) as usize;
    if start + N > data_end {
        return None;
    }
    // SAFETY: N bytes are available, as just checked. No helper that moves them is called.
    Some(unsafe { ViewMut::new(start as *mut u8) })
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The license of the programs that it calls.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
