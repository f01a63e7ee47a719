//! `cargo xtask test`: runs all tests, stage by stage, and prints the counts at the end.

pub(crate) mod runner;
pub(crate) mod stage;
pub(crate) mod transcript;

use std::env;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use crate::{build_ebpf, command};
use runner::Outcome;
use stage::Stage;
use transcript::Counts;

const BPFFS: &str = "/sys/fs/bpf";

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run these stages only
    stages: Vec<Stage>,
    /// Treat a skipped test as a failure, as in CI
    #[arg(long)]
    no_skips: bool,
    /// Run only tests with this in their name
    #[arg(last = true)]
    test_name: Option<String>,
}

/// A row of the summary.
struct Row {
    name: &'static str,
    outcome: Outcome,
    time: Duration,
}

/// Runs the stages, even after one has failed. The last line of the output is
/// `N passed, N failed, N skipped`.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let mut rows = vec![row("build-ebpf", || {
        build_ebpf::run(&build_ebpf::Arguments::default())?;
        Ok(Outcome::default())
    })];
    // Without the kernel programs nothing else builds.
    if rows[0].outcome.counts.failed == 0 {
        let stages = stages(arguments);
        rows.extend(stages.map(|stage| row(stage.name(), || run_stage(stage, arguments))));
    }
    summarize(&rows, arguments)
}

/// The requested stages, each once and in order. Without root, [`Stage::PlainUser`] is omitted,
/// because the unit tests run without privileges anyway.
fn stages(arguments: &Arguments) -> impl Iterator<Item = Stage> {
    let is_root = command::is_root().unwrap_or_default();
    Stage::ALL.into_iter().filter(move |stage| {
        let asked = match arguments.stages.as_slice() {
            [] => *stage != Stage::Vm,
            stages => stages.contains(stage),
        };
        asked && (is_root || *stage != Stage::PlainUser)
    })
}

fn run_stage(stage: Stage, arguments: &Arguments) -> Result<Outcome> {
    if stage.needs_bpffs() && command::is_root()? {
        mount_bpffs()?;
    }
    runner::run(stage, &stage::targets()?, arguments.test_name.as_deref())
}

/// Runs a stage under its heading. An error that prevents it from running counts as one failure.
fn row(name: &'static str, stage: impl FnOnce() -> Result<Outcome>) -> Row {
    println!("=== {name}");
    let start = Instant::now();
    let outcome = stage().unwrap_or_else(|error| {
        let counts = Counts {
            failed: 1,
            ..Counts::default()
        };
        println!("error: {error:#}");
        Outcome {
            counts,
            remarks: vec![format!("{error:#}")],
        }
    });
    println!();
    Row {
        name,
        outcome,
        time: start.elapsed(),
    }
}

/// Mounts the BPF file system if needed. The agent pins its maps and programs there.
pub(crate) fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    if is_bpffs_mounted(&mounts) {
        return Ok(());
    }
    println!("mounting {BPFFS}");
    command::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
}

fn is_bpffs_mounted(mounts: &str) -> bool {
    mounts.lines().any(|mount| {
        let mut fields = mount.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    })
}

fn summarize(rows: &[Row], arguments: &Arguments) -> ExitCode {
    let mut sum = Counts::default();
    for row in rows {
        sum += row.outcome.counts;
        for remark in &row.outcome.remarks {
            println!("{}: {remark}", row.name);
        }
    }
    println!("{}\n", table(rows));
    let skips_fail = arguments.no_skips || env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    if skips_fail && sum.skipped > 0 {
        println!("skipped tests are failures in this run: all tests must be able to run here");
    }
    let nothing_ran = arguments.test_name.is_some() && sum == Counts::default();
    if nothing_ran {
        println!("no test name contains this text");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        sum.passed, sum.failed, sum.skipped
    );
    if sum.failed > 0 || nothing_ran || skips_fail && sum.skipped > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["stage", "passed", "failed", "skipped", "seconds"]);
    for row in rows {
        let Counts {
            passed,
            failed,
            skipped,
        } = row.outcome.counts;
        let counts = [passed, failed, skipped].map(|count| count.to_string());
        let [passed, failed, skipped] = counts;
        let seconds = format!("{:.1}", row.time.as_secs_f32());
        table.add_row([row.name.to_owned(), passed, failed, skipped, seconds]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpffs_at_the_right_place_counts() {
        assert!(is_bpffs_mounted(
            "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"
        ));
        assert!(!is_bpffs_mounted("bpf /run/bpf bpf rw 0 0\n"));
        assert!(!is_bpffs_mounted("tmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
    }
}
