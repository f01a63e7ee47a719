//! The packet generator of `cargo xtask bench packets`.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on one and the same packet, which translation changes: the
//! second run would find another packet. These programs write the addresses and ports of the next
//! flow into the packet and then go on as the program that is measured, which stays as it is. The
//! empty program is measured the same way, so what the generator costs is in both.
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
/// The measured program; programs of two types cannot share an array.
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Makes the next packet, then is the XDP program in `XDP_TARGET`.
#[xdp]
pub fn lb_bench_xdp(context: XdpContext) -> u32 {
    if prepare(context.data(), context.data_end()).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { XDP_TARGET.tail_call(&context, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Makes the next packet, then is the TC program in `TC_TARGET`.
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

/// Writes whole fields, not bytes: the measured program reads them at once, and would wait for
/// bytes to be joined.
#[inline(always)]
fn set(data: usize, data_end: usize, at: EndAt, end: End) -> Option<()> {
    field::<4>(data, data_end, at.address)?.set_u32::<0>(end.address.to_be());
    field::<2>(data, data_end, at.port)?.set_u16::<0>(end.port.to_be());
    Some(())
}

#[inline(always)]
fn field<const N: usize>(data: usize, data_end: usize, offset: u32) -> Option<ViewMut<'static, N>> {
    /// The fields of plain headers are before this offset; the verifier wants a bound.
    const OFFSET_MAX: u32 = 0x7f;
    let start = data + (offset & OFFSET_MAX) as usize;
    if start + N > data_end {
        return None;
    }
    // SAFETY: N bytes are there, as just checked; no helper is called that moves them.
    Some(unsafe { ViewMut::new(start as *mut u8) })
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// As that of the programs it becomes.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
