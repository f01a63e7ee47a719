//! What the verifier must not know. It walks through code once more for each state that differs in what it knows of a
//! number, if a later branch depends on that number.

/// `value`, of which the verifier knows nothing any more. `unknown` is any number of which it knows nothing.
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
