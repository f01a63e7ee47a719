//! Programs for tests and benchmarks; the agent does not contain them.
//!
//! `lb_empty_*` do nothing or almost nothing: `cargo xtask bench packets` measures the agent's
//! programs against them, and the lab attaches them as programs of others. The rest is the packet
//! generator.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on the same packet. Translation changes the packet, so the
//! second run would see another one. These programs write the addresses and ports of the next flow
//! into the packet and then tail-call the measured program, which stays unchanged. The empty
//! program is measured in the same way, so both results contain the cost of the generator.
#![no_std]
#![no_main]

mod plan;

use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup, xdp_action};
use aya_ebpf::helpers::generated;
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

/// Passes every packet: the baseline for XDP programs.
#[xdp]
pub fn lb_empty_xdp(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Looks up the route of a packet and passes it: the baseline for XDP programs that forward.
#[xdp]
pub fn lb_empty_route_xdp(context: XdpContext) -> u32 {
    match look_up_route(&context) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Passes every packet on to the next program: the baseline for TC programs.
#[classifier]
pub fn lb_empty_tc(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Passes every packet and ends the chain of programs.
#[classifier]
pub fn lb_empty_tc_pass(_context: TcContext) -> i32 {
    TC_ACT_OK
}

/// Drops every packet.
#[classifier]
pub fn lb_empty_tc_drop(_context: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// `None` if the packet is neither IPv4 nor IPv6.
#[inline(always)]
fn look_up_route(context: &XdpContext) -> Option<()> {
    const ETHERNET: u32 = 14;
    let (data, data_end) = (context.data(), context.data_end());
    let word = |offset| {
        Some(
            field::<4>(data, data_end, ETHERNET + offset)?
                .as_view()
                .u32::<0>(),
        )
    };
    // SAFETY: all zeros are a valid value: numbers only.
    let mut parameters: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    parameters.ifindex = context.ingress_ifindex() as u32;
    match u16::from_be(field::<2>(data, data_end, 12)?.as_view().u16::<0>()) {
        0x0800 => {
            parameters.family = 2;
            parameters.__bindgen_anon_3.ipv6_src = [word(12)?, 0, 0, 0];
            parameters.__bindgen_anon_4.ipv6_dst = [word(16)?, 0, 0, 0];
        }
        0x86dd => {
            parameters.family = 10;
            parameters.__bindgen_anon_3.ipv6_src = [word(8)?, word(12)?, word(16)?, word(20)?];
            parameters.__bindgen_anon_4.ipv6_dst = [word(24)?, word(28)?, word(32)?, word(36)?];
        }
        _ => return None,
    }
    let length = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the pointer and length are those of one value.
    unsafe { generated::bpf_fib_lookup(context.ctx.cast(), &raw mut parameters, length, 0) };
    Some(())
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
