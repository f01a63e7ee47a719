//! What the agent loads the programs with.

use lb_common::settings::LoadedSettings;

/// The only global of the programs: the agent replaces it before it loads them.
#[unsafe(no_mangle)]
static LOADED_SETTINGS: LoadedSettings = LoadedSettings::DEFAULT;

/// What the agent loaded the programs with.
#[inline(always)]
pub fn settings() -> &'static LoadedSettings {
    let mut settings = &raw const LOADED_SETTINGS;
    // LLVM must not compile in the values above. The verifier still knows the address, and so the
    // values there.
    // SAFETY: changes nothing; the address stays that of the global.
    unsafe {
        core::arch::asm!(
            "/* {settings} */",
            settings = inout(reg) settings,
            options(pure, nomem, nostack, preserves_flags)
        );
        &*settings
    }
}
