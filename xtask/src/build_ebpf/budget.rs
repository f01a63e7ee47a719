//! How many instructions each program may have: a change that makes a program much bigger is made knowingly.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::inspect::{Object, SUBPROGRAMS};
use crate::workspace;

/// Growth, in percent, that needs no decision.
const TOLERANCE: u64 = 10;

const HEADER: &str =
    "# Instructions of each program, and of the functions that they call in sum (which there are is the compiler's choice):
# more than a tenth above it fails `cargo xtask build-ebpf`.
# Written by `cargo xtask build-ebpf --update-budget`.
";

type Budget = BTreeMap<String, u64>;

/// Fails if a program is too big, or not in the budget, or in the budget only.
pub(crate) fn check(object: &Object) -> Result<()> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let budget = parse(&text).with_context(|| format!("in {}", path.display()))?;
    let complaints = compare(&budget, &counts(object));
    if !complaints.is_empty() {
        bail!(
            "{}\nif that is meant: `cargo xtask build-ebpf --update-budget`",
            complaints.join("\n")
        );
    }
    Ok(())
}

/// Takes the object as it is for the budget.
pub(crate) fn update(object: &Object) -> Result<()> {
    let path = path();
    fs::write(&path, render(&counts(object))).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

fn path() -> PathBuf {
    workspace::ebpf().join("budget.toml")
}

fn counts(object: &Object) -> Budget {
    let mut counts = Budget::new();
    for function in &object.functions {
        let name = match function.section.as_str() {
            SUBPROGRAMS => "functions",
            _ => function.name.as_str(),
        };
        *counts.entry(name.to_owned()).or_default() += function.instructions;
    }
    counts
}

fn compare(budget: &Budget, counts: &Budget) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, &count) in counts {
        match budget.get(name) {
            None => complaints.push(format!("{name}: {count} instructions, but not in the budget")),
            Some(&limit) if count * 100 > limit * (100 + TOLERANCE) => {
                complaints.push(format!("{name}: {count} instructions, the budget is {limit}"));
            }
            Some(_) => {}
        }
    }
    let gone = budget.keys().filter(|name| !counts.contains_key(*name));
    complaints.extend(gone.map(|name| format!("{name}: in the budget, but no longer in the object")));
    complaints
}

/// Reads lines `name = number`: the part of TOML that is needed.
fn parse(text: &str) -> Result<Budget> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, number) = line
                .split_once('=')
                .with_context(|| format!("no `=` in {line:?}"))?;
            let number = number
                .trim()
                .parse()
                .with_context(|| format!("no number in {line:?}"))?;
            Ok((name.trim().to_owned(), number))
        })
        .collect()
}

fn render(budget: &Budget) -> String {
    let mut text = HEADER.to_owned();
    for (name, number) in budget {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name} = {number}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(entries: &[(&str, u64)]) -> Budget {
        entries
            .iter()
            .map(|&(name, number)| (name.to_owned(), number))
            .collect()
    }

    #[test]
    fn a_tenth_more_is_tolerated() {
        assert!(compare(&budget(&[("xdp", 100)]), &budget(&[("xdp", 110)])).is_empty());
        assert!(compare(&budget(&[("xdp", 100)]), &budget(&[("xdp", 20)])).is_empty());
        assert_eq!(
            compare(&budget(&[("xdp", 100)]), &budget(&[("xdp", 111)])),
            ["xdp: 111 instructions, the budget is 100"]
        );
    }

    #[test]
    fn programs_and_budget_name_each_other() {
        assert_eq!(
            compare(&budget(&[("old", 1)]), &budget(&[("new", 2)])),
            [
                "new: 2 instructions, but not in the budget",
                "old: in the budget, but no longer in the object"
            ]
        );
    }

    #[test]
    fn what_is_written_is_read_again() {
        let programs = budget(&[("lb_xdp", 2000), ("memcpy", 11)]);
        assert_eq!(parse(&render(&programs)).expect("own writing"), programs);
        assert!(parse("lb_xdp 2000").is_err());
        assert!(parse("lb_xdp = many").is_err());
    }
}
