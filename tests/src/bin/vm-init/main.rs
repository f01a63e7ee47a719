//! The first process of a virtual machine of `cargo xtask vm-test`: makes the machine usable, runs
//! the programs that it is told to, and switches it off.
//!
//! What programs write goes to the second serial port, between lines that say which program it is
//! and how it ended; the first one is the kernel's. `xtask/src/vm_test/results.rs` reads them.

mod machine;
mod run;

use std::convert::Infallible;
use std::fs;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};

/// The programs to run, one a line: seconds that it may take, directory, program and arguments,
/// separated by spaces.
const PROGRAMS: &str = "/vm/programs";

fn main() -> Result<Infallible> {
    let ran = machine::prepare().and_then(|()| run_programs());
    if let Err(error) = &ran {
        // The kernel's console has it, whatever became of the second port.
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
