//! House rules that the compiler does not check.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{document, source};
use crate::{command, workspace};

/// Directories of one machine, and hosts of one network. They are concatenated so that this file
/// does not break its own rule.
const FOREIGN_PATHS: [&str; 4] = [
    concat!("/", "home/"),
    concat!("/", "root/"),
    concat!("/", "work/"),
    concat!("/", "Users/"),
];
const REGISTRIES: [&str; 4] = [
    concat!("sparse", "+http"),
    concat!("static.", "crates.io"),
    concat!("index.", "crates.io"),
    concat!("replace", "-with"),
];
const SLEEPS: [&str; 2] = [concat!("thread::", "sleep"), concat!("time::", "sleep")];

/// Maximum columns of a comment. `max_width` in rustfmt.toml is for code.
const COMMENT_WIDTH: usize = 100;
/// The source of crates in a lock file.
const CRATES_IO: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

/// A rule returns the problem of a line, if any.
type Rule = fn(path: &Path, line: &str) -> Option<&'static str>;

const RULES: [Rule; 4] = [foreign_path, registry, sleep, wide_comment];

/// Checks every file that git tracks or would add.
pub(crate) fn run() -> Result<()> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let files = command::output(git.current_dir(workspace::root()))?;
    // Files that are deleted but still tracked, and files that are not text, are skipped.
    let files: Vec<(&Path, String)> = files
        .lines()
        .filter_map(|file| {
            Some((
                Path::new(file),
                fs::read_to_string(workspace::root().join(file)).ok()?,
            ))
        })
        .collect();
    let mut findings = Vec::new();
    for (path, text) in &files {
        findings.extend(check(path, text));
        if path.extension().is_some_and(|extension| extension == "md") {
            findings.extend(document::missing(path, text, |file| {
                workspace::root().join(file).exists()
            }));
        }
    }
    if let Some((_, architecture)) = files
        .iter()
        .find(|(path, _)| *path == Path::new("ARCHITECTURE.md"))
    {
        let code = files
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "rs"));
        findings.extend(document::unsafe_code(
            architecture,
            code.map(|(path, text)| (*path, text.as_str())),
        ));
    }
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    Ok(())
}

fn check(path: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    if is_rust && !text.starts_with("//!") {
        findings.push(format!(
            "{}:1: does not start with a module comment (`//!`)",
            path.display()
        ));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let broken = RULES.iter().filter_map(|rule| rule(path, line));
        findings.extend(broken.map(|problem| format!("{}:{number}: {problem}", path.display())));
    }
    findings
}

fn foreign_path(_path: &Path, line: &str) -> Option<&'static str> {
    let is_foreign = |prefix: &str| {
        line.match_indices(prefix)
            .any(|(at, _)| line[..at].chars().next_back().is_none_or(starts_a_path))
    };
    FOREIGN_PATHS
        .into_iter()
        .any(is_foreign)
        .then_some("a path that exists on one machine only")
}

/// Whether a path after this character is absolute, and not the rest of a longer path.
fn starts_a_path(before: char) -> bool {
    !before.is_alphanumeric() && !"_-.})>~*".contains(before)
}

fn registry(path: &Path, line: &str) -> Option<&'static str> {
    let is_lock = path.extension().is_some_and(|extension| extension == "lock");
    let elsewhere = is_lock && line.starts_with("source = ") && line != CRATES_IO;
    (elsewhere || REGISTRIES.into_iter().any(|name| line.contains(name)))
        .then_some("names a crate source of one machine")
}

fn sleep(path: &Path, line: &str) -> Option<&'static str> {
    let is_test = path.parent().is_some_and(|parent| {
        // `tests/` at the top is a crate. Its support code contains the only loop that waits for a
        // condition.
        parent
            .components()
            .skip(1)
            .any(|part| part.as_os_str() == "tests")
    });
    (is_test && SLEEPS.into_iter().any(|name| source::code(line).contains(name)))
        .then_some("a test that sleeps is slow or unreliable: wait for what should happen")
}

fn wide_comment(path: &Path, line: &str) -> Option<&'static str> {
    let is_comment =
        path.extension().is_some_and(|extension| extension == "rs") && line.trim_start().starts_with("//");
    // A URL cannot be wrapped.
    let is_wide = line.chars().count() > COMMENT_WIDTH && !line.contains("https://");
    (is_comment && is_wide).then_some("a comment that is wider than 100 columns")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of rules that a line breaks.
    fn broken(path: &str, line: &str) -> usize {
        check(Path::new(path), &format!("//! Example.\n{line}\n")).len()
    }

    #[test]
    fn paths_of_one_machine_are_rejected() {
        for prefix in FOREIGN_PATHS {
            assert_eq!(broken("README.md", &format!("cd {prefix}lb-agent")), 1);
            assert_eq!(broken("a.toml", &format!("path = \"{prefix}lb-agent\"")), 1);
            assert_eq!(broken("a.md", &format!("{prefix}lb-agent")), 1);
            assert_eq!(
                broken("a.sh", &format!("cd $DIRECTORY/checkout{prefix}lb-agent")),
                0
            );
        }
    }

    #[test]
    fn crate_sources_are_rejected() {
        for name in REGISTRIES {
            assert_eq!(broken("a.toml", name), 1);
        }
        assert_eq!(broken("Cargo.lock", CRATES_IO), 0);
        assert_eq!(
            broken("Cargo.lock", "source = \"registry+https://example.net/index\""),
            1
        );
    }

    #[test]
    fn sleeping_tests_are_rejected() {
        for sleep in SLEEPS {
            let line = format!("    {sleep}(SECOND);");
            assert_eq!(broken("tests/tests/lab_x.rs", &line), 1);
            assert_eq!(broken("lb-agent/tests/golden.rs", &line), 1);
            assert_eq!(broken("tests/src/wait.rs", &line), 0);
            assert_eq!(broken("lb-agent/src/run.rs", &line), 0);
        }
    }

    #[test]
    fn rust_files_need_a_module_comment() {
        assert_eq!(check(Path::new("a.rs"), "fn main() {}\n").len(), 1);
        assert_eq!(check(Path::new("a.sh"), "true\n").len(), 0);
    }
    #[test]
    fn wide_comments_are_rejected() {
        let comment = |columns: usize| format!("    // {}", "a".repeat(columns - "    // ".len()));
        assert_eq!(broken("src/lib.rs", &comment(100)), 0);
        assert_eq!(broken("src/lib.rs", &comment(101)), 1);
        assert_eq!(
            broken("src/lib.rs", &format!("{} https://kernel.org/", comment(101))),
            0
        );
        assert_eq!(broken("README.md", &comment(101)), 0);
        assert_eq!(
            broken("src/lib.rs", &format!("{};", comment(100).replace("//", "  "))),
            0
        );
    }
}
