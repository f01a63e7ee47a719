//! Kernel helpers that are safe to call with any arguments of their types.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated;

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

/// Not zero if the kernel has `bpf_set_retval` (Linux 5.18). Set by the agent. A program may
/// contain calls of helpers that the kernel does not have, if the verifier can see that they never
/// run.
#[unsafe(no_mangle)]
static SETS_ERRORS: Global<u32> = Global::new(1);

/// Sets the error with which the system call of a cgroup program fails. The default is EPERM.
#[inline(always)]
pub fn set_error(error: i32) {
    if SETS_ERRORS.load() != 0 {
        // SAFETY: the kernel checks the number.
        unsafe { generated::bpf_set_retval(-error) };
    }
}

/// An element of an array that the agent has set. The index is taken modulo the length, which is a
/// power of two.
#[inline(always)]
pub fn element<const N: usize>(table: &Global<[u32; N]>, index: usize) -> u32 {
    const { assert!(N.is_power_of_two() && size_of::<u32>() == 1 << 2) };
    let mut place = index as u64;
    // The verifier needs to see the bound of an index right before the index is used. LLVM computes
    // it in parts ("math between map_value pointer and register with unbounded min value", up to
    // Linux 6.1).
    // SAFETY: changes only the register. The index is within the mask.
    unsafe {
        core::arch::asm!(
            "{place} &= {mask}",
            "{place} <<= 2",
            "{place} += {table}",
            place = inout(reg) place,
            mask = const N - 1,
            table = in(reg) core::ptr::from_ref(table),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: points to an element. The read is volatile, like all reads of what the agent sets.
    unsafe { (place as *const u32).read_volatile() }
}
