//! Hides facts from the verifier. If a later branch depends on a number, the verifier walks through
//! the code once more for each state in which it knows something different about that number.

use core::mem::{MaybeUninit, size_of};
use core::ptr;

/// A value on the stack that occupies whole words.
#[repr(align(8))]
pub(crate) struct Slot<T>(MaybeUninit<T>);

impl<T> Slot<T> {
    /// Uninitialised memory.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// The value's memory.
    #[inline(always)]
    pub(crate) fn get(&mut self) -> &mut MaybeUninit<T> {
        &mut self.0
    }

    /// Overwrites the value, so that states that differ only in earlier writes become one. Writes
    /// of single fields do not have this effect: the verifier treats only a whole word as
    /// overwritten.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the loop must not become a call of memset")]
    pub(crate) fn clear(&mut self) {
        let words = ptr::from_mut(self).cast::<u64>();
        for index in 0..size_of::<Self>() / size_of::<u64>() {
            // SAFETY: `Self` is aligned to words and consists of that many. Any bytes are a valid
            // `MaybeUninit`.
            unsafe { words.add(index).write_volatile(0) };
        }
    }
}

/// Returns `value`, about which the verifier then knows nothing. `unknown` is any number about
/// which it knows nothing.
#[inline(always)]
pub(crate) fn hide(value: u32, unknown: u32) -> u32 {
    value | zero(unknown)
}

/// Returns 0. The verifier does not see that a number exclusive-or itself is zero.
#[cfg(target_arch = "bpf")]
#[inline(always)]
#[expect(unsafe_code, reason = "without assembly LLVM would see it")]
fn zero(unknown: u32) -> u32 {
    let unknown = u64::from(unknown);
    let mut zero = unknown;
    // SAFETY: changes only the register.
    unsafe {
        core::arch::asm!(
            "{zero} ^= {unknown}",
            zero = inout(reg) zero,
            unknown = in(reg) unknown,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    zero as u32
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn zero(_unknown: u32) -> u32 {
    0
}

/// An element of a table, by its index modulo the length, which is a power of two.
///
/// On Linux up to 6.1 the verifier needs the bound of an index right before the access, and LLVM
/// computes the address in parts ("math between map_value pointer and register with unbounded min
/// value").
#[cfg(target_arch = "bpf")]
#[inline(always)]
#[expect(unsafe_code, reason = "LLVM must not move the mask")]
pub(crate) fn element<const N: usize>(table: &[u32; N], index: usize) -> u32 {
    const { assert!(N.is_power_of_two() && size_of::<u32>() == 1 << 2) };
    let mut place = index as u64;
    // SAFETY: changes no more than the register: the index is within the mask.
    unsafe {
        core::arch::asm!(
            "{place} &= {mask}",
            "{place} <<= 2",
            "{place} += {table}",
            place = inout(reg) place,
            mask = const N - 1,
            table = in(reg) ptr::from_ref(table),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // SAFETY: an element.
    unsafe { (place as *const u32).read() }
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn element<const N: usize>(table: &[u32; N], index: usize) -> u32 {
    table[index % N]
}
