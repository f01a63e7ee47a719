//! `cargo xtask lint`: everything that can be said about the code without running it.

mod tidy;

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{build_ebpf, command, setup, workspace};

/// One check: its heading, and what it does.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 6] = [
    ("format", format),
    ("house rules", tidy::run),
    ("kernel programs, without warnings", ebpf_warnings),
    ("clippy: workspace", clippy),
    ("clippy: kernel programs", ebpf_clippy),
    ("documentation", documentation),
];

/// Runs all checks, also after one has failed, so that one run tells everything.
pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        println!("=== {name}");
        let start = Instant::now();
        match check() {
            Ok(()) => println!("fine ({:.1} s)\n", start.elapsed().as_secs_f32()),
            Err(error) => {
                println!("{error:#}\n");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join("; "));
    }
    Ok(())
}

fn format() -> Result<()> {
    command::run(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    command::run(ebpf_cargo().args(["fmt", "--check"]))
}

fn ebpf_warnings() -> Result<()> {
    // Unlike `-Dwarnings` this leaves what was built before valid.
    build_ebpf::compile(
        &setup::require()?,
        &["-Zwarnings", "--config=build.warnings='deny'"],
    )
}

fn clippy() -> Result<()> {
    command::run(workspace::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"]))
}

/// The compiler for eBPF may come without clippy. The kernel programs also compile for the host, whose clippy sees all
/// of them but inline assembly; the release profile is the one that needs no unwinding.
fn ebpf_clippy() -> Result<()> {
    let mut cargo = ebpf_cargo();
    cargo
        .env(
            "RUSTFLAGS",
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        )
        .args(["clippy", "--release", "--locked", "--target-dir"])
        .arg(workspace::root().join("target/ebpf-clippy"))
        .args(["--", "-Dwarnings"]);
    command::run(&mut cargo)
}

fn documentation() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.env("RUSTDOCFLAGS", "-Dwarnings").args([
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    command::run(&mut cargo)
}

/// The host's cargo in the workspace of the kernel programs.
fn ebpf_cargo() -> Command {
    let mut command = workspace::cargo();
    command.current_dir(workspace::ebpf());
    command
}
