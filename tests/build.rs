//! Embeds the programs for tests and benchmarks that `cargo xtask build-ebpf` built.

use std::path::Path;
use std::{env, fs, process};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let object = Path::new(&manifest).join("../target/ebpf/bpfel-unknown-none/release/lb-ebpf-bench");
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, Path::new(&out).join("lb-ebpf-bench")) {
        println!("cargo::error=the kernel programs are not built ({error}): run `cargo xtask build-ebpf`");
        process::exit(1);
    }
}
