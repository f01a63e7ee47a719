//! What is told at the end, and the page about kernels.

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use super::Run;
use crate::test::transcript::Counts;

/// Prints the tables, writes them down if these were all tests, and says whether all is well.
pub(super) fn summarize(runs: Vec<Run>, _is_whole: bool) -> Result<ExitCode> {
    println!();
    for run in &runs {
        println!("Linux {}\n{}\n", run.release, programs(run));
    }
    let mut sum = Counts::default();
    let mut tests = table(&["kernel", "passed", "failed", "skipped", "seconds"], 1);
    for run in runs {
        let name = run.kernel.name;
        for finding in &run.results.programs {
            if let Some(log) = &finding.log {
                println!("{name}: {} is refused: {log}\n", finding.program);
            }
        }
        let outcome = run.results.outcome();
        for remark in &outcome.remarks {
            println!("{name}: {remark}");
        }
        let Counts {
            passed,
            failed,
            skipped,
        } = outcome.counts;
        sum += outcome.counts;
        let seconds = run.time.as_secs();
        tests.add_row([
            name,
            passed.to_string(),
            failed.to_string(),
            skipped.to_string(),
            seconds.to_string(),
        ]);
    }
    println!("{tests}\n");
    let Counts {
        passed,
        failed,
        skipped,
    } = sum;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn programs(run: &Run) -> Table {
    let mut table = table(&["program", "loads", "instructions", "milliseconds"], 2);
    for finding in &run.results.programs {
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        table.add_row([
            finding.program.clone(),
            if finding.loads { "yes" } else { "no" }.to_owned(),
            number(finding.instructions),
            number(finding.microseconds.map(|time| time / 1000)),
        ]);
    }
    table
}

/// A table whose columns from the given one on hold numbers.
fn table(header: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(numbers_from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
