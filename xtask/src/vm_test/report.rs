//! The summary at the end, and the page about kernels.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::Run;
use super::results::Finding;
use crate::build_ebpf::budget;
use crate::test::runner::Outcome;
use crate::test::transcript::Counts;
use crate::workspace;

/// The line of the page after which the results of the tests are written.
const TESTS: &str = "<!-- tests: written by `cargo xtask vm-test` -->\n";
/// The line of the page after which the verifiers' results are written, up to the end.
const PROGRAMS: &str = "<!-- programs: written by `cargo xtask vm-test`, also with `--probe` -->\n";

/// The results of one kernel.
struct Column {
    name: String,
    release: String,
    programs: Vec<Finding>,
    outcome: Outcome,
    seconds: u64,
}

/// The use of the results.
#[derive(Clone, Copy)]
pub(super) struct Use {
    /// Write the verifiers' results to the page, because all kernels were run.
    pub(super) programs: bool,
    /// Write the results of the tests to the page, because the default tests were run.
    pub(super) tests: bool,
    /// Write the verifiers' numbers to the budget.
    pub(super) update_budget: bool,
}

/// Prints the tables and compares the results with the budget. Returns the exit code.
pub(super) fn summarize(runs: Vec<Run>, wanted: Use) -> Result<ExitCode> {
    let mut columns: Vec<_> = runs.into_iter().map(column).collect();
    for column in &mut columns {
        let section = format!("verified.\"{}\"", column.name);
        let counts = verified(&column.programs);
        if wanted.update_budget {
            budget::replace(&section, counts)?;
        } else {
            for complaint in budget::complaints(&section, &counts)? {
                column.outcome.counts.failed += 1;
                column.outcome.remarks.push(complaint);
            }
        }
    }
    println!("\n{}", programs(&columns));
    let mut sum = Counts::default();
    for column in &columns {
        sum += column.outcome.counts;
        for finding in &column.programs {
            if let Some(log) = &finding.log {
                println!("\n{}: {} is rejected: {log}", column.name, finding.program);
            }
        }
        for remark in &column.outcome.remarks {
            println!("{}: {remark}", column.name);
        }
    }
    println!("\n{}\n", tests(&columns));
    if wanted.programs {
        write_page(&columns, wanted.tests)?;
    }
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

fn column(run: Run) -> Column {
    Column {
        name: run.kernel.name,
        release: run.release,
        programs: run.results.programs.clone(),
        outcome: run.results.outcome(),
        seconds: run.time.as_secs(),
    }
}

/// The numbers of verified instructions, in the form of the budget.
fn verified(findings: &[Finding]) -> budget::Counts {
    let counted = findings
        .iter()
        .filter_map(|finding| Some((finding.program.clone(), finding.instructions?)));
    counted.collect()
}

/// A table with the verifier's result for each program and kernel.
fn programs(columns: &[Column]) -> Table {
    let mut header = vec!["instructions verified, milliseconds".to_owned()];
    header.extend(columns.iter().map(|column| column.name.clone()));
    let mut table = table(&header);
    let names: BTreeSet<&str> = columns
        .iter()
        .flat_map(|column| column.programs.iter().map(|finding| finding.program.as_str()))
        .collect();
    for name in names {
        let mut row = vec![name.to_owned()];
        row.extend(columns.iter().map(|column| {
            let mut findings = column.programs.iter();
            let finding = findings.find(|finding| finding.program == name);
            finding.map_or_else(|| "-".to_owned(), cell)
        }));
        table.add_row(row);
    }
    table
}

fn cell(finding: &Finding) -> String {
    if !finding.loads {
        return "refused".to_owned();
    }
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    format!(
        "{}, {}",
        number(finding.instructions),
        number(finding.microseconds.map(|time| time / 1000))
    )
}

fn tests(columns: &[Column]) -> Table {
    let header = ["kernel", "release", "passed", "failed", "skipped", "seconds"];
    let mut table = table(&header.map(str::to_owned));
    for column in columns {
        let Counts {
            passed,
            failed,
            skipped,
        } = column.outcome.counts;
        table.add_row([
            column.name.clone(),
            column.release.clone(),
            passed.to_string(),
            failed.to_string(),
            skipped.to_string(),
            column.seconds.to_string(),
        ]);
    }
    table
}

fn write_page(columns: &[Column], with_tests: bool) -> Result<()> {
    let path = workspace::root().join("docs/kernels.md");
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = with_tables(
        &page,
        with_tests.then(|| test_section(columns)),
        &markdown(programs(columns)),
    )
    .with_context(|| format!("{} lacks a line: {TESTS} or {PROGRAMS}", path.display()))?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// Replaces the tables of the page. Without `tests`, the table of the tests stays.
fn with_tables(page: &str, tests: Option<String>, programs: &str) -> Option<String> {
    let (text, _) = page.split_once(PROGRAMS)?;
    let text = match tests {
        Some(tests) => format!("{}{TESTS}\n{tests}\n", text.split_once(TESTS)?.0),
        None => text.to_owned(),
    };
    Some(format!("{text}{PROGRAMS}\n{programs}"))
}

fn test_section(columns: &[Column]) -> String {
    let mut section = markdown(tests(columns));
    let remarks: Vec<_> = columns
        .iter()
        .flat_map(|column| column.outcome.remarks.iter().map(|remark| (&column.name, remark)))
        .collect();
    if !remarks.is_empty() {
        section += "\n";
    }
    for (name, remark) in remarks {
        // Writing to a string cannot fail.
        let _ = writeln!(section, "- {name}: {remark}");
    }
    section
}

fn markdown(mut table: Table) -> String {
    table.load_preset(presets::ASCII_MARKDOWN);
    format!("{table}\n")
}

/// A table with numbers in all columns but the first.
fn table(header: &[String]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_keeps_the_table_of_the_tests() {
        let page = format!("text\n{TESTS}\nold tests\n\n{PROGRAMS}\nold programs\n");
        let probed = with_tables(&page, None, "new programs\n").unwrap();
        assert_eq!(
            probed,
            format!("text\n{TESTS}\nold tests\n\n{PROGRAMS}\nnew programs\n")
        );
        let tested = with_tables(&page, Some("new tests\n".to_owned()), "new programs\n").unwrap();
        assert_eq!(
            tested,
            format!("text\n{TESTS}\nnew tests\n\n{PROGRAMS}\nnew programs\n")
        );
        assert_eq!(with_tables("no lines\n", None, ""), None);
    }
}
