//! Kernel helpers that need no more care than their arguments' types ask for.

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

/// The action of a TC program that lets the packet come in by a device.
#[inline(always)]
pub fn receive_at(device: u32) -> i32 {
    // SAFETY: the kernel checks the index.
    unsafe { generated::bpf_redirect(device, BPF_F_INGRESS.into()) as i32 }
}

/// Not zero if the kernel has `bpf_set_retval` (Linux 5.18); set by the agent. Calls of helpers
/// that a kernel does not have are fine where it can see that they are never made.
#[unsafe(no_mangle)]
static SETS_ERRORS: Global<u32> = Global::new(1);

/// Sets the error that the system call of a cgroup program fails with: else it is EPERM.
#[inline(always)]
pub fn set_error(error: i32) {
    if SETS_ERRORS.load() != 0 {
        // SAFETY: the kernel checks the number.
        unsafe { generated::bpf_set_retval(-error) };
    }
}

/// An element of what the agent has set, by its index modulo the length, which is a power of two.
#[inline(always)]
pub fn element<const N: usize>(table: &Global<[u32; N]>, index: usize) -> u32 {
    const { assert!(N.is_power_of_two() && size_of::<u32>() == 1 << 2) };
    let mut place = index as u64;
    // The verifier wants to see the bound of an index right before it is used: LLVM computes it in
    // parts ("math between map_value pointer and register with unbounded min value", up to Linux
    // 6.1). SAFETY: changes no more than the register: the index is within the mask.
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
    // SAFETY: an element. Volatile, as all reads of what the agent sets are.
    unsafe { (place as *const u32).read_volatile() }
}
