//! `cargo xtask lint`: checks of the code that do not run it.

mod document;
mod rooms;
mod sizes;
mod source;
mod tidy;

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{build_ebpf, command, setup, workspace};

/// One check: its heading and its function.
type Check = (&'static str, fn() -> Result<()>);

/// Clippy does not check the kernel programs: Debian's compiler for eBPF has no clippy, and the
/// host's compiler cannot compile their assembly. It does check `lb-common`, which contains their
/// decisions.
const CHECKS: [Check; 6] = [
    ("format", format),
    ("house rules", tidy::run),
    ("structure", structure),
    ("kernel programs, without warnings", ebpf_warnings),
    ("clippy", clippy),
    ("documentation", documentation),
];

/// Runs all checks, even after a failure, so that one run reports all problems.
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

/// Sizes of files and functions, and which rooms use which.
fn structure() -> Result<()> {
    let mut findings = rooms::check()?;
    for name in source::CRATES {
        findings.extend(sizes::check(&source::files(name)?));
    }
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    Ok(())
}

fn ebpf_warnings() -> Result<()> {
    // Unlike `-Dwarnings`, this does not invalidate previous builds.
    build_ebpf::compile(
        &setup::require()?,
        &["-Zwarnings", "--config=build.warnings='deny'"],
    )
}

fn clippy() -> Result<()> {
    command::run(workspace::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"]))
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
