//! Checks the length of files and functions.

use std::path::Path;

use super::source::{self, File};

/// Maximum lines of a file, without its tests.
const FILE: usize = 400;
/// Maximum lines of a function, from its first to its last.
const FUNCTION: usize = 80;

/// Files and functions of the product that are too long.
pub(super) fn check(files: &[File]) -> Vec<String> {
    files.iter().flat_map(check_file).collect()
}

fn check_file(file: &File) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = source::product(&file.text);
    if lines.len() > FILE {
        findings.push(format!(
            "{}: {} lines without tests; at most {FILE}: split it by what it does",
            file.path.display(),
            lines.len()
        ));
    }
    findings.extend(long_functions(&file.path, &lines));
    findings
}

/// Relies on the indentation of rustfmt: the last line of a function is a brace with the
/// indentation of its first line.
fn long_functions(path: &Path, lines: &[&str]) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indentation = &line[..line.len() - line.trim_start().len()];
        let last = format!("{indentation}}}");
        let length = lines[index..]
            .iter()
            .position(|line| **line == last || is_declaration(line, indentation))
            .map_or(0, |end| end + 1);
        if length > FUNCTION {
            findings.push(format!(
                "{}:{}: {name} has {length} lines; at most {FUNCTION}",
                path.display(),
                index + 1
            ));
        }
    }
    findings
}

/// Whether a line ends a function without a body, as in a trait.
fn is_declaration(line: &str, indentation: &str) -> bool {
    line.strip_prefix(indentation)
        .is_some_and(|rest| !rest.starts_with(' ') && rest.ends_with(';'))
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split(' ').peekable();
    while words
        .next_if(|word| {
            word.starts_with("pub") || matches!(*word, "const" | "async" | "unsafe" | "extern" | "\"C\"")
        })
        .is_some()
    {}
    (words.next()? == "fn").then_some(())?;
    words.next()?.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn file(text: String) -> File {
        File {
            path: PathBuf::from("lb-agent/src/a.rs"),
            text,
        }
    }

    fn function(indentation: &str, lines: usize) -> String {
        let body = format!("{indentation}    work();\n").repeat(lines - 2);
        format!("{indentation}pub(crate) async fn long<T>(it: T) {{\n{body}{indentation}}}\n")
    }

    #[test]
    fn a_function_of_81_lines_is_too_long() {
        for indentation in ["", "    "] {
            assert_eq!(check(&[file(function(indentation, 80))]), [""; 0]);
            let findings = check(&[file(function(indentation, 81))]);
            assert_eq!(findings, ["lb-agent/src/a.rs:1: long has 81 lines; at most 80"]);
        }
    }

    #[test]
    fn a_function_without_body_ends_on_its_line() {
        let text = format!("    fn declared(&self);\n{}", "    work();\n".repeat(90));
        assert_eq!(check(&[file(text)]), [""; 0]);
    }

    #[test]
    fn a_file_of_401_lines_without_tests_is_too_long() {
        let lines = |number| "use it;\n".repeat(number);
        assert_eq!(check(&[file(lines(401))]).len(), 1);
        let tested = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(400), lines(100));
        assert_eq!(check(&[file(tested)]), [""; 0]);
    }
}
