//! The kernel side: loads the programs, owns the maps, attaches and pins. The only module that names aya.

pub mod attach;
pub mod maps;
pub mod object;
pub mod pins;
pub mod probe;

/// Whether the kernel has TCX links (Linux 6.6).
fn has_tcx() -> bool {
    probe::kernel_at_least(6, 6)
}
