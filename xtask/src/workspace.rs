//! Paths of this checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout's top directory.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The workspace of the kernel programs.
pub(crate) fn ebpf() -> PathBuf {
    root().join("lb-ebpf")
}

/// The object file with the kernel programs, which `lb-agent/build.rs` reads.
pub(crate) fn ebpf_object() -> PathBuf {
    ebpf_release().join("lb-ebpf")
}

/// The object file with the benchmark's packet generator.
pub(crate) fn ebpf_bench_object() -> PathBuf {
    ebpf_release().join("lb-ebpf-bench")
}

fn ebpf_release() -> PathBuf {
    root().join("target/ebpf/bpfel-unknown-none/release")
}

/// Cargo for the host's workspace, started in its directory.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_this_program) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether cargo has set this variable for the program that it started. Build scripts that depend
/// on it would run again whenever a task follows a plain cargo command.
fn is_of_this_program(name: &str) -> bool {
    name == "CARGO"
        || ["CARGO_MANIFEST_", "CARGO_PKG_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}
