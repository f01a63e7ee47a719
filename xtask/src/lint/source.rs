//! The product's source files, as text.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::workspace;

/// The crates that users run, and the tasks.
pub(super) const CRATES: [&str; 4] = ["lb-common", "lb-ebpf", "lb-agent", "xtask"];

/// A source file.
pub(super) struct File {
    /// Path relative to the checkout.
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// All files of a crate, except those that contain only tests.
pub(super) fn files(name: &str) -> Result<Vec<File>> {
    let mut files = Vec::new();
    collect(&Path::new(name).join("src"), &mut files)?;
    files.sort_by(|a: &File, b| a.path.cmp(&b.path));
    Ok(files)
}

fn collect(directory: &Path, files: &mut Vec<File>) -> Result<()> {
    let full = workspace::root().join(directory);
    let entries = fs::read_dir(&full).with_context(|| format!("list {}", full.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if is_test(&path) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(entry.path())?;
            files.push(File { path, text });
        }
    }
    Ok(())
}

fn is_test(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    matches!(stem, Some("tests" | "testing"))
}

/// The lines of a file up to its test module, which comes last.
pub(super) fn product(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |index: usize| {
        let mut rest = lines[index + 1..].iter();
        // Attributes may be in between.
        lines[index] == "#[cfg(test)]"
            && rest
                .find(|line| !line.starts_with('#') && !line.starts_with(' ') && **line != ")]")
                .is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    let end = (0..lines.len()).find(|index| is_tests(*index));
    lines[..end.unwrap_or(lines.len())].to_vec()
}

/// A line without the comment at its end.
pub(super) fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}
