//! House rules that no compiler knows.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{command, workspace};

/// Directories of one machine, and hosts of one network, put together here so that this file does not break its own rule.
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

/// Where crates come from in a lock file.
const CRATES_IO: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

/// The only files of the kernel programs that may be unsafe.
const UNSAFE_FILES: [&str; 7] = [
    "packet.rs",
    "maps.rs",
    "node_sockets.rs",
    "routes.rs",
    "helpers.rs",
    "socket_address.rs",
    "bench.rs",
];

/// What is wrong with a line of a file, if anything.
type Rule = fn(path: &Path, line: &str) -> Option<&'static str>;

const RULES: [Rule; 4] = [foreign_path, registry, sleep, unsafe_code];

/// Checks every file that git knows or would take.
pub(crate) fn run() -> Result<()> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let files = command::output(git.current_dir(workspace::root()))?;
    let mut findings = Vec::new();
    for file in files.lines() {
        // Files that are deleted but still known, and files that are no text, have nothing to say.
        if let Ok(text) = fs::read_to_string(workspace::root().join(file)) {
            findings.extend(check(Path::new(file), &text));
        }
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
            "{}:1: does not start by saying what it is (`//!`)",
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

/// Whether a path after this character is an absolute one, not the rest of a longer one.
fn starts_a_path(before: char) -> bool {
    !before.is_alphanumeric() && !"_-.})>~*".contains(before)
}

fn registry(path: &Path, line: &str) -> Option<&'static str> {
    let is_lock = path.extension().is_some_and(|extension| extension == "lock");
    let elsewhere = is_lock && line.starts_with("source = ") && line != CRATES_IO;
    (elsewhere || REGISTRIES.into_iter().any(|name| line.contains(name)))
        .then_some("names where one machine fetches crates from")
}

fn sleep(path: &Path, line: &str) -> Option<&'static str> {
    let is_test = path.parent().is_some_and(|parent| {
        // `tests/` at the top is a crate, whose support code holds the one loop that waits for a condition.
        parent
            .components()
            .skip(1)
            .any(|part| part.as_os_str() == "tests")
    });
    (is_test && SLEEPS.into_iter().any(|name| code(line).contains(name)))
        .then_some("a test that sleeps is slow or unreliable: wait for what should happen")
}

fn unsafe_code(path: &Path, line: &str) -> Option<&'static str> {
    let allowed = path
        .file_name()
        .is_some_and(|name| UNSAFE_FILES.into_iter().any(|file| name == file));
    if !path.starts_with("lb-ebpf/src") || allowed {
        return None;
    }
    // The name of a static that the agent sets, and the license's section, cannot be chosen in any other way.
    let code = code(line).replace("#[unsafe(", "");
    let mut words = code.split(|character: char| !character.is_alphanumeric() && character != '_');
    words
        .any(|word| word == "unsafe")
        .then_some("unsafe outside of the files that fence it")
}

/// A line without the comment at its end.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules broken by a line in a file that begins as it should.
    fn broken(path: &str, line: &str) -> usize {
        check(Path::new(path), &format!("//! Example.\n{line}\n")).len()
    }

    #[test]
    fn paths_of_one_machine_are_found() {
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
    fn hosts_that_crates_are_fetched_from_are_found() {
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
    fn tests_do_not_sleep() {
        for sleep in SLEEPS {
            let line = format!("    {sleep}(SECOND);");
            assert_eq!(broken("tests/tests/lab_x.rs", &line), 1);
            assert_eq!(broken("lb-agent/tests/golden.rs", &line), 1);
            assert_eq!(broken("tests/src/wait.rs", &line), 0);
            assert_eq!(broken("lb-agent/src/run.rs", &line), 0);
        }
    }

    #[test]
    fn unsafe_has_its_places() {
        assert_eq!(broken("lb-ebpf/src/flow.rs", "    unsafe { *pointer }"), 1);
        assert_eq!(broken("lb-ebpf/src/flow.rs", "    // unsafe is elsewhere"), 0);
        assert_eq!(broken("lb-ebpf/src/maps.rs", "    unsafe { *pointer }"), 0);
        assert_eq!(broken("lb-ebpf/src/main.rs", "#[unsafe(no_mangle)]"), 0);
        assert_eq!(broken("lb-ebpf/src/main.rs", "unsafe fn license() {}"), 1);
        assert_eq!(
            broken("lb-common/src/lib.rs", "unsafe fn other() {}"),
            0,
            "the compiler's business"
        );
    }

    #[test]
    fn files_say_what_they_are() {
        assert_eq!(check(Path::new("a.rs"), "fn main() {}\n").len(), 1);
        assert_eq!(check(Path::new("a.sh"), "true\n").len(), 0);
    }
}
