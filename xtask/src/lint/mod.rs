//! `cargo xtask lint`: everything that can be said about the code without running it.

mod document;
mod rooms;
mod sizes;
mod source;
mod tidy;

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{build_ebpf, command, setup, workspace};

/// One check: its heading, and what it does.
type Check = (&'static str, fn() -> Result<()>);

/// Clippy does not see the kernel programs: Debian's compiler for eBPF comes without it, and the
/// host's cannot compile their assembly. `lb-common`, where their decisions are made, it sees.
const CHECKS: [Check; 6] = [
    ("format", format),
    ("house rules", tidy::run),
    ("structure", structure),
    ("kernel programs, without warnings", ebpf_warnings),
    ("clippy", clippy),
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
    // Unlike `-Dwarnings` this leaves what was built before valid.
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
