//! Checks the dependencies between parts of a crate: a room may use only rooms above it in
//! ARCHITECTURE.md.
//!
//! A room is a module at the top of a crate. In ARCHITECTURE.md a heading ``### `CRATE` `` has a
//! table whose first column names the rooms: those of one row do not use each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::source::{self, File};
use crate::workspace;

/// The crates whose rooms are in the table.
const CRATES: [&str; 3] = ["lb-common", "lb-ebpf", "lb-agent"];

/// Files that join all rooms.
const ROOTS: [&str; 3] = ["lib", "main", "bench"];

/// By room: the rooms that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// By room: the number of its row.
type Rows = BTreeMap<String, usize>;

/// Differences between the crates' rooms and the document.
pub(super) fn check() -> Result<Vec<String>> {
    let path = workspace::root().join("ARCHITECTURE.md");
    let document = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut findings = Vec::new();
    for name in CRATES {
        let uses = uses(&source::files(name)?);
        findings.extend(compare(name, &rows(&document, name), &uses));
    }
    Ok(findings)
}

fn compare(name: &str, rows: &Rows, uses: &Uses) -> Vec<String> {
    let mut findings = Vec::new();
    for room in rows.keys().filter(|room| !uses.contains_key(*room)) {
        findings.push(format!("ARCHITECTURE.md: {name} has no room `{room}`"));
    }
    for (room, used) in uses {
        let Some(row) = rows.get(room) else {
            findings.push(format!(
                "ARCHITECTURE.md: the room `{room}` of {name} is not in the table"
            ));
            continue;
        };
        let is_above = |other: &&String| rows.get(*other).is_none_or(|above| above < row);
        for other in used.iter().filter(|other| !is_above(other)) {
            findings.push(format!(
                "{name}: `{room}` uses `{other}`, which is not above it in ARCHITECTURE.md"
            ));
        }
    }
    findings
}

fn uses(files: &[File]) -> Uses {
    let mut uses = Uses::new();
    for file in files {
        let Some(room) = room(&file.path) else {
            continue;
        };
        let used = uses.entry(room.clone()).or_default();
        for line in source::product(&file.text) {
            used.extend(rooms_in(line).filter(|other| *other != room).map(str::to_owned));
        }
    }
    let known: BTreeSet<String> = uses.keys().cloned().collect();
    for used in uses.values_mut() {
        // Items in the root of a crate are not rooms.
        used.retain(|other| known.contains(other));
    }
    uses
}

/// The room that a file belongs to.
fn room(path: &Path) -> Option<String> {
    let part = path.components().nth(2)?;
    let name = Path::new(part.as_os_str()).file_stem()?.to_str()?;
    (!ROOTS.contains(&name)).then(|| name.to_owned())
}

/// The rooms that a line of code names.
fn rooms_in(line: &str) -> impl Iterator<Item = &str> {
    let parts = source::code(line).split("crate::").skip(1);
    parts.filter_map(|rest| {
        let end = rest.find(|character: char| !character.is_alphanumeric() && character != '_');
        let name = &rest[..end.unwrap_or(rest.len())];
        (!name.is_empty()).then_some(name)
    })
}

/// The rows of a crate's table.
fn rows(document: &str, name: &str) -> Rows {
    let heading = format!("### `{name}`");
    let lines = document.lines().skip_while(|line| *line != heading).skip(1);
    let rows = lines
        .take_while(|line| !line.starts_with('#'))
        .filter_map(|line| line.strip_prefix('|')?.split('|').next());
    (0..)
        .zip(rows)
        .flat_map(|(row, cell)| names(cell).map(move |room| (room.to_owned(), row)))
        .collect()
}

/// The texts between backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const DOCUMENT: &str = "### `lb-agent`\n\n| rooms | what |\n|---|---|\n| `maps` | rows; see `other` |\n\
        | `install`, `model` | writes |\n\n### `lb-ebpf`\n\n| `maps` | |\n";

    fn file(path: &str, text: &str) -> File {
        File {
            path: PathBuf::from(path),
            text: text.to_owned(),
        }
    }

    fn findings(files: &[File]) -> Vec<String> {
        compare("lb-agent", &rows(DOCUMENT, "lb-agent"), &uses(files))
    }

    #[test]
    fn rooms_may_use_rooms_above_them() {
        let files = [
            file(
                "lb-agent/src/lib.rs",
                "pub mod maps;\npub use crate::install::X;\n",
            ),
            file(
                "lb-agent/src/maps/mod.rs",
                "use crate::describe;\n// crate::install\n",
            ),
            file(
                "lb-agent/src/install/port.rs",
                "use crate::maps::{A, B};\nuse crate::install::C;\n",
            ),
            file("lb-agent/src/model.rs", ""),
        ];
        assert_eq!(findings(&files), [""; 0]);
    }

    #[test]
    fn tests_may_use_all_rooms() {
        let text = "#[cfg(test)]\nmod tests {\n    use crate::install::B;\n}\n";
        let files = [
            file("lb-agent/src/maps.rs", text),
            file("lb-agent/src/install.rs", ""),
            file("lb-agent/src/model.rs", ""),
        ];
        assert_eq!(findings(&files), [""; 0]);
    }

    #[test]
    fn rooms_may_not_use_rooms_below_or_in_their_row() {
        let files = [
            file("lb-agent/src/maps.rs", "fn f() {\n    crate::install::g();\n}\n"),
            file("lb-agent/src/install.rs", "use crate::model::A;\n"),
            file("lb-agent/src/model.rs", ""),
        ];
        let findings = findings(&files);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("`install` uses `model`"), "{findings:?}");
        assert!(findings[1].contains("`maps` uses `install`"), "{findings:?}");
    }

    #[test]
    fn missing_rooms_and_rows_are_found() {
        let files = [
            file("lb-agent/src/install.rs", ""),
            file("lb-agent/src/model.rs", ""),
            file("lb-agent/src/new.rs", ""),
        ];
        let findings = findings(&files);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("no room `maps`"), "{findings:?}");
        assert!(findings[1].contains("`new`"), "{findings:?}");
    }
}
