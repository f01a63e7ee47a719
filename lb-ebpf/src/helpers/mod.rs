//! Kernel helpers that are safe to call with any arguments of their types.

mod fib;
mod skb;
mod xdp;

pub use fib::FibLookup;
pub use skb::Skb;
pub use xdp::Xdp;

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated;

use crate::settings::settings;

/// The clock of the kernel's timers.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { generated::bpf_jiffies64() }
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no arguments.
    unsafe { generated::bpf_get_prandom_u32() }
}

/// Returns `Some` if a helper succeeded.
#[inline(always)]
pub fn ok(result: i64) -> Option<()> {
    (result == 0).then_some(())
}

/// Sends the packet out of a device. Returns the action of the program.
#[inline(always)]
pub fn redirect(device: u32) -> i64 {
    // SAFETY: the kernel checks the index.
    unsafe { generated::bpf_redirect(device, 0) }
}

/// Sends the packet out of a device, to the neighbour that the route names. If the kernel does not
/// know the neighbour's link-layer address, it resolves it and keeps the packet meanwhile. Returns
/// the action of the program.
#[inline(always)]
pub fn redirect_to_neighbour(device: u32) -> i64 {
    // SAFETY: without parameters the kernel looks up the neighbour itself. It checks the index.
    unsafe { generated::bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) }
}

/// Sends the packet into the network namespace of a device's peer. Returns the action of the
/// program.
#[inline(always)]
pub fn redirect_to_peer(device: u32) -> i64 {
    // SAFETY: the kernel checks the index.
    unsafe { generated::bpf_redirect_peer(device, 0) }
}

/// The action of a TC program that sends the packet out of a device.
#[inline(always)]
pub fn send_out_of(device: u32) -> i32 {
    redirect(device) as i32
}

/// The action of a TC program that makes the packet come in through a device.
#[inline(always)]
pub fn receive_at(device: u32) -> i32 {
    // SAFETY: the kernel checks the index.
    unsafe { generated::bpf_redirect(device, BPF_F_INGRESS.into()) as i32 }
}

/// Sets the error with which the system call of a cgroup program fails. The default is EPERM.
#[inline(always)]
pub fn set_error(error: i32) {
    if settings().sets_errors != 0 {
        // SAFETY: the kernel checks the number.
        unsafe { generated::bpf_set_retval(-error) };
    }
}
