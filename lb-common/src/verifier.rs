//! What the verifier must not know. It walks through code once more for each state that differs in
//! what it knows of a number, if a later branch depends on that number.

use core::mem::{MaybeUninit, size_of};
use core::ptr;

/// A value on the stack, in whole words of it.
#[repr(align(8))]
pub(crate) struct Slot<T>(MaybeUninit<T>);

impl<T> Slot<T> {
    /// Memory that nothing has been written to.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// The value's memory.
    #[inline(always)]
    pub(crate) fn get(&mut self) -> &mut MaybeUninit<T> {
        &mut self.0
    }

    /// Makes states one that differ in what was written before. Fields that are written one by one
    /// do not: the verifier takes only a whole word for overwritten.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a call of memset is what it must not become")]
    pub(crate) fn clear(&mut self) {
        let words = ptr::from_mut(self).cast::<u64>();
        for index in 0..size_of::<Self>() / size_of::<u64>() {
            // SAFETY: aligned to words and as long as that many of them. Any bytes are a
            // `MaybeUninit`.
            unsafe { words.add(index).write_volatile(0) };
        }
    }
}

/// `value`, of which the verifier knows nothing any more. `unknown` is any number of which it knows
/// nothing.
#[inline(always)]
pub(crate) fn hide(value: u32, unknown: u32) -> u32 {
    value | zero(unknown)
}

/// The verifier does not see that a number exclusive-or itself is zero.
#[cfg(target_arch = "bpf")]
#[inline(always)]
#[expect(unsafe_code, reason = "LLVM would see it")]
fn zero(unknown: u32) -> u32 {
    let unknown = u64::from(unknown);
    let mut zero = unknown;
    // SAFETY: changes no more than the register.
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
