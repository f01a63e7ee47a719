//! Kernel helpers that are safe to call with any arguments of their types.

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

/// The action of a TC program that sends the packet out of a device.
#[inline(always)]
pub fn send_out_of(device: u32) -> i32 {
    // SAFETY: the kernel checks the index.
    unsafe { generated::bpf_redirect(device, 0) as i32 }
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
