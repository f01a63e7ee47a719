//! Checks of statements in documents: named files exist, and the list of unsafe code is complete.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::source;

/// The crates whose unsafe code ARCHITECTURE.md lists.
const CRATES: [&str; 4] = ["lb-common", "lb-ebpf", "lb-agent", "tests"];
/// The heading above that list.
const UNSAFE_HEADING: &str = "## Where unsafe code is";
/// Directories at the top of the checkout.
const TOP: [&str; 8] = [
    "lb-common/",
    "lb-ebpf/",
    "lb-agent/",
    "tests/",
    "xtask/",
    "docs/",
    "deploy/",
    "vagrant/",
];

/// Files that a document names but that do not exist.
pub(super) fn missing(document: &Path, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let missing = named_files(line).filter(|path| !exists(path));
        findings.extend(missing.map(|path| {
            format!(
                "{}:{number}: {} does not exist",
                document.display(),
                path.display()
            )
        }));
    }
    findings
}

/// Compares the files with unsafe code with those that ARCHITECTURE.md lists.
pub(super) fn unsafe_code<'a>(
    architecture: &str,
    files: impl IntoIterator<Item = (&'a Path, &'a str)>,
) -> Vec<String> {
    let section = architecture.lines().skip_while(|line| *line != UNSAFE_HEADING);
    let section = section.skip(1).take_while(|line| !line.starts_with('#'));
    let listed: Vec<PathBuf> = section.flat_map(named_files).collect();
    let mut found = BTreeSet::new();
    let mut findings = Vec::new();
    for (path, text) in files {
        if !CRATES.into_iter().any(|name| path.starts_with(name)) || !has_unsafe(text) {
            continue;
        }
        match listed.iter().find(|entry| path.starts_with(entry)) {
            Some(entry) => drop(found.insert(entry)),
            None => findings.push(format!(
                "{}: unsafe code outside the files that ARCHITECTURE.md lists",
                path.display()
            )),
        }
    }
    let idle = listed.iter().filter(|entry| !found.contains(entry));
    findings.extend(idle.map(|entry| format!("ARCHITECTURE.md: {} has no unsafe code", entry.display())));
    findings
}

fn has_unsafe(text: &str) -> bool {
    source::product(text).into_iter().any(|line| {
        // This attribute is the only way to set the name of a static that the agent changes, and
        // the section of the license.
        let code = source::code(line).replace("#[unsafe(", "");
        let mut words = code.split(|character: char| !character.is_alphanumeric() && character != '_');
        words.any(|word| word == "unsafe")
    })
}

/// Paths between backticks, with `{a,b}` expanded.
fn named_files(line: &str) -> impl Iterator<Item = PathBuf> {
    let quoted = line.split('`').skip(1).step_by(2);
    let paths = quoted.filter(|text| TOP.into_iter().any(|top| text.starts_with(top)));
    // Text with a blank or a variable part is a command or a pattern.
    let paths = paths.filter(|text| !text.contains([' ', '*', '…', '<', ':', '$']));
    paths.flat_map(expand)
}

fn expand(text: &str) -> Vec<PathBuf> {
    let Some((before, rest)) = text.split_once('{') else {
        return vec![PathBuf::from(text)];
    };
    let Some((choices, after)) = rest.split_once('}') else {
        return vec![PathBuf::from(text)];
    };
    choices
        .split(',')
        .flat_map(|choice| expand(&format!("{before}{choice}{after}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_files_are_found() {
        let text = "See `lb-agent/src/{a,b}.rs`, `lb-agent/src/x.rs --all` and `maps/mod.rs`.";
        let findings = missing(Path::new("A.md"), text, |path| path.ends_with("a.rs"));
        assert_eq!(findings, ["A.md:1: lb-agent/src/b.rs does not exist"]);
    }

    fn unsafe_findings(files: &[(&str, &str)]) -> Vec<String> {
        let text =
            format!("# A\n`lb-agent/src/z.rs`\n{UNSAFE_HEADING}\n\n`lb-ebpf/src/{{maps,packet}}/`\n\n# B\n");
        unsafe_code(&text, files.iter().map(|(path, text)| (Path::new(*path), *text)))
    }

    #[test]
    fn unsafe_code_must_match_the_list() {
        let block = "    unsafe { *pointer }\n";
        let maps = ("lb-ebpf/src/maps/mod.rs", block);
        let packet = ("lb-ebpf/src/packet/tc.rs", block);
        assert_eq!(unsafe_findings(&[maps, packet]), [""; 0]);
        assert_eq!(
            unsafe_findings(&[maps]),
            ["ARCHITECTURE.md: lb-ebpf/src/packet/ has no unsafe code"]
        );
        let other = ("lb-agent/src/z.rs", block);
        assert_eq!(unsafe_findings(&[maps, packet, other]).len(), 1);
        for fine in ["// unsafe is elsewhere\n", "#[unsafe(no_mangle)]\n"] {
            assert_eq!(
                unsafe_findings(&[maps, packet, ("lb-ebpf/src/a.rs", fine)]),
                [""; 0]
            );
        }
    }
}
