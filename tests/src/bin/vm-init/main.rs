//! The first process of a virtual machine of `cargo xtask vm-test`. It sets up the machine, runs
//! the listed programs, and powers the machine off.
//!
//! The output of programs goes to the second serial port, between lines with the program's name and
//! its exit status. `xtask/src/vm_test/results.rs` reads them. The first serial port is the
//! kernel's console.

mod machine;
mod run;

use std::convert::Infallible;
use std::fs;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};

/// The programs to run, one per line: time limit in seconds, directory, program and arguments,
/// separated by spaces.
const PROGRAMS: &str = "/vm/programs";

fn main() -> Result<Infallible> {
    let ran = machine::prepare().and_then(|()| run_programs());
    if let Err(error) = &ran {
        // Written to the kernel's console, because the second port may not work.
        eprintln!("vm-init: {error:#}");
    }
    reboot(RebootMode::RB_POWER_OFF).context("switch the machine off")
}

fn run_programs() -> Result<()> {
    let report = run::Report::open()?;
    let programs = fs::read_to_string(PROGRAMS).with_context(|| format!("read {PROGRAMS}"))?;
    for line in programs.lines() {
        run::run(&report, line)?;
    }
    report.line("=== complete")
}
