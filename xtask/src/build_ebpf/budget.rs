//! Budgets of instructions and stack for each program, so that nobody makes a program much bigger
//! by accident.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::inspect::{Object, SUBPROGRAMS};
use crate::workspace;

/// Allowed growth, in percent.
const TOLERANCE: u64 = 10;

const HEADER: &str = "# What each program may take: more than a tenth above it is an error.
# Instructions, those of the functions that they call in sum (which there are is the compiler's choice), and bytes of stack: checked by
# `cargo xtask build-ebpf`, written by `cargo xtask build-ebpf --update-budget`.
# Instructions that the verifiers of some kernels walk through: checked by `cargo xtask vm-test`, written with `--update-budget`.
";

/// The section of the programs' sizes.
pub(crate) const INSTRUCTIONS: &str = "instructions";
/// The section of the stack sizes of the programs with the functions that they call.
pub(crate) const STACK: &str = "stack";

/// Numbers by program.
pub(crate) type Counts = BTreeMap<String, u64>;

/// All sections by name.
type Budget = BTreeMap<String, Counts>;

/// Differences from the budget: numbers that are too big, not in the budget, or only in the budget.
pub(crate) fn complaints(section: &str, counts: &Counts) -> Result<Vec<String>> {
    let budget = read()?;
    let unknown = Counts::new();
    let complaints = compare(budget.get(section).unwrap_or(&unknown), counts);
    Ok(complaints
        .into_iter()
        .map(|complaint| format!("{section}: {complaint}"))
        .collect())
}

/// Writes numbers to the budget.
pub(crate) fn replace(section: &str, counts: Counts) -> Result<()> {
    let mut budget = read()?;
    budget.insert(section.to_owned(), counts);
    let path = path();
    fs::write(&path, render(&budget)).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {section} in {}", path.display());
    Ok(())
}

/// The programs' sizes.
pub(super) fn instructions(object: &Object) -> Counts {
    let mut counts = Counts::new();
    for function in &object.functions {
        let name = match function.section.as_str() {
            SUBPROGRAMS => "functions",
            _ => function.name.as_str(),
        };
        *counts.entry(name.to_owned()).or_default() += function.instructions;
    }
    counts
}

/// The programs' stack sizes.
pub(super) fn stack(object: &Object) -> Counts {
    let programs = object.functions.iter();
    programs
        .filter(|function| function.section != SUBPROGRAMS)
        .map(|function| (function.name.clone(), function.stack))
        .collect()
}

fn read() -> Result<Budget> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn path() -> PathBuf {
    workspace::ebpf().join("budget.toml")
}

fn compare(budget: &Counts, counts: &Counts) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, &count) in counts {
        match budget.get(name) {
            None => complaints.push(format!("{name}: {count}, but not in the budget")),
            Some(&limit) if count * 100 > limit * (100 + TOLERANCE) => {
                complaints.push(format!("{name}: {count}, the budget is {limit}"));
            }
            Some(_) => {}
        }
    }
    let gone = budget.keys().filter(|name| !counts.contains_key(*name));
    complaints.extend(gone.map(|name| format!("{name}: in the budget, but no longer in the object")));
    complaints
}

/// Reads lines `[section]` and `name = number`: the subset of TOML that is needed.
fn parse(text: &str) -> Result<Budget> {
    let mut budget = Budget::new();
    let mut section = None;
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = Some(budget.entry(name.to_owned()).or_default());
            continue;
        }
        let (name, number) = line
            .split_once('=')
            .with_context(|| format!("no `=` in {line:?}"))?;
        let number = number
            .trim()
            .parse()
            .with_context(|| format!("no number in {line:?}"))?;
        let section = section
            .as_mut()
            .with_context(|| format!("{line:?} is in no section"))?;
        section.insert(name.trim().to_owned(), number);
    }
    Ok(budget)
}

fn render(budget: &Budget) -> String {
    let mut text = HEADER.to_owned();
    for (section, counts) in budget {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n[{section}]");
        for (name, number) in counts {
            let _ = writeln!(text, "{name} = {number}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(entries: &[(&str, u64)]) -> Counts {
        entries
            .iter()
            .map(|&(name, number)| (name.to_owned(), number))
            .collect()
    }

    #[test]
    fn growth_of_ten_percent_is_allowed() {
        assert!(compare(&budget(&[("xdp", 100)]), &budget(&[("xdp", 110)])).is_empty());
        assert!(compare(&budget(&[("xdp", 100)]), &budget(&[("xdp", 20)])).is_empty());
        assert_eq!(
            compare(&budget(&[("xdp", 100)]), &budget(&[("xdp", 111)])),
            ["xdp: 111, the budget is 100"]
        );
    }

    #[test]
    fn programs_and_budget_must_have_the_same_names() {
        assert_eq!(
            compare(&budget(&[("old", 1)]), &budget(&[("new", 2)])),
            [
                "new: 2, but not in the budget",
                "old: in the budget, but no longer in the object"
            ]
        );
    }

    #[test]
    fn a_written_budget_can_be_read() {
        let counts = budget(&[("lb_xdp", 2000), ("memcpy", 11)]);
        let whole = Budget::from([
            ("stack".to_owned(), counts.clone()),
            ("verified.\"6.1\"".to_owned(), counts),
        ]);
        assert_eq!(parse(&render(&whole)).expect("the rendered text is valid"), whole);
        assert!(parse("lb_xdp = 2000").is_err());
        assert!(parse("[stack]\nlb_xdp 2000").is_err());
        assert!(parse("[stack]\nlb_xdp = many").is_err());
    }
}
