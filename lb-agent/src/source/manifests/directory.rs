//! The files of a directory and the objects that are in effect.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Problem;
use super::allocate::{Allocator, Objects};
use super::decode::Syntax;
use super::document::{self, Entry, Parsed};
use super::fault::Fault;
use crate::object::{Change, Object, ObjectKind, ObjectReference};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("{size} bytes are more than the limit of {limit}: split the file")]
    TooLarge { size: u64, limit: u64 },
    #[error("not a regular file")]
    NotRegular,
    #[error("byte {0} is not UTF-8")]
    NotUtf8(usize),
}

/// One file.
#[derive(Default)]
struct File {
    /// Hash of the content that was parsed last; `None` if it could not be read.
    digest: Option<u64>,
    /// The objects in effect.
    entries: Vec<Entry>,
    /// Whether they come from a file without errors.
    sound: bool,
    problems: Vec<Problem>,
}

/// All files of a directory, and the objects that were reported.
pub(super) struct Directory {
    path: PathBuf,
    size_limit: u64,
    allocator: Allocator,
    files: BTreeMap<OsString, File>,
    problems: Vec<Problem>,
    /// `None` before the first report.
    reported: Option<Objects>,
}

impl Directory {
    /// A directory whose files are not read yet.
    pub(super) fn new(path: PathBuf, size_limit: u64, allocator: Allocator) -> Self {
        Self {
            path,
            size_limit,
            allocator,
            files: BTreeMap::new(),
            problems: Vec::new(),
            reported: None,
        }
    }

    /// The current problems.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Reads the files that changed, except those in `being_written`. Returns the difference to the
    /// objects that the previous call returned. While the directory cannot be read, nothing
    /// changes.
    pub(super) fn refresh(&mut self, being_written: &BTreeSet<OsString>) -> Vec<Change> {
        let names = match list(&self.path) {
            Ok(names) => names,
            Err(error) => {
                let reason = format!("cannot be read, so its previous content stays in effect: {error}");
                self.problems = vec![Problem::new(&self.path, None, reason)];
                return Vec::new();
            }
        };
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            if !being_written.contains(&name) {
                let path = self.path.join(&name);
                self.files
                    .entry(name)
                    .or_default()
                    .refresh(&path, self.size_limit);
            }
        }
        let mut objects = self.merge();
        self.allocate(&mut objects);
        self.report(objects)
    }

    /// Whether the allocations still need to be saved.
    pub(super) fn is_unsaved(&self) -> bool {
        self.allocator.unsaved().is_some()
    }

    /// Allocates the values that manifests leave to the API server.
    fn allocate(&mut self, objects: &mut Objects) {
        for (reference, reason) in self.allocator.fill(objects) {
            let (file, line) = self.place(&reference);
            let reason = format!("{reference}: {reason}");
            self.problems.push(Problem::new(&file, line, reason));
        }
        if let Some((path, reason)) = self.allocator.unsaved() {
            let problem = Problem::new(&path, None, reason.to_owned());
            self.problems.push(problem);
        }
    }

    /// The file and line of an object.
    fn place(&self, reference: &ObjectReference) -> (PathBuf, Option<usize>) {
        let entries = self
            .files
            .iter()
            .flat_map(|(name, file)| file.entries.iter().map(move |entry| (name, entry)));
        let found = entries
            .into_iter()
            .find(|(_, entry)| entry.reference == *reference);
        found.map_or((self.path.clone(), None), |(name, entry)| {
            (self.path.join(name), Some(entry.line))
        })
    }

    /// Merges the objects of all files. If an object occurs more than once, the first by file name
    /// wins.
    fn merge(&mut self) -> Objects {
        let mut objects = BTreeMap::new();
        let mut places: BTreeMap<&ObjectReference, (&OsStr, usize)> = BTreeMap::new();
        self.problems.clear();
        for (name, file) in &self.files {
            self.problems.extend(file.problems.iter().cloned());
            for entry in &file.entries {
                match places.entry(&entry.reference) {
                    MapEntry::Vacant(vacant) => {
                        vacant.insert((name, entry.line));
                        objects.insert(entry.reference.clone(), entry.object.clone());
                    }
                    MapEntry::Occupied(first) => {
                        let (file, line) = first.get();
                        let first = format!("{}:{line}", file.display());
                        let reason = format!("{} is ignored: it is already in {first}", entry.reference);
                        self.problems
                            .push(Problem::new(&self.path.join(name), Some(entry.line), reason));
                    }
                }
            }
        }
        objects
    }

    fn report(&mut self, objects: Objects) -> Vec<Change> {
        let changes = match &self.reported {
            None => replace_all(&objects),
            Some(reported) => difference(reported, &objects),
        };
        self.reported = Some(objects);
        changes
    }
}

impl File {
    fn refresh(&mut self, path: &Path, size_limit: u64) {
        let text = match read(path, size_limit) {
            Ok(text) => text,
            Err(error) => {
                self.digest = None;
                self.problems = vec![Problem::new(path, None, self.stale(error.to_string()))];
                return;
            }
        };
        let digest = Some(digest(&text));
        if self.digest == digest {
            return;
        }
        self.digest = digest;
        let Parsed {
            entries,
            broken,
            harmless,
        } = document::parse(&text, syntax(path));
        let problem = |fault: Fault| (fault.line, fault.reason.to_string());
        let mut faults: Vec<_> = harmless.into_iter().map(problem).collect();
        let sound = broken.is_empty();
        faults.extend(
            broken
                .into_iter()
                .map(problem)
                .map(|(line, reason)| (line, self.stale(reason))),
        );
        faults.sort_by_key(|(line, _)| *line);
        let problem = |(line, reason)| Problem::new(path, Some(line), reason);
        self.problems = faults.into_iter().map(problem).collect();
        // If the file was never valid, use the documents that are valid. After a restart of the
        // agent, one broken document must not remove the Services of the others.
        if sound || !self.sound {
            self.entries = entries;
        }
        self.sound |= sound;
    }

    /// Appends to a reason what it means for the objects of the file.
    fn stale(&self, reason: String) -> String {
        match self.sound {
            true => format!("{reason} (the file's last valid content stays in effect)"),
            false => reason,
        }
    }
}

/// Whether a file of this name is a manifest. Hidden files belong to editors and ConfigMap volumes.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    matches!(extension, Some("yaml" | "yml" | "json")) && !name.as_encoded_bytes().starts_with(b".")
}

fn syntax(path: &Path) -> Syntax {
    match path.extension().and_then(OsStr::to_str) {
        Some("json") => Syntax::Json,
        _ => Syntax::Yaml,
    }
}

fn list(path: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        names.insert(entry?.file_name());
    }
    names.retain(|name| is_manifest(name));
    Ok(names)
}

/// Returns the text of a regular file that is not too large.
pub(super) fn read(path: &Path, limit: u64) -> Result<String, FileError> {
    // Check before opening the file: opening a FIFO blocks until it has a writer.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    let size = metadata.len();
    if size > limit {
        return Err(FileError::TooLarge { size, limit });
    }
    String::from_utf8(fs::read(path)?).map_err(|error| FileError::NotUtf8(error.utf8_error().valid_up_to()))
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn replace_all(objects: &Objects) -> Vec<Change> {
    let replace = |kind| Change::Replace {
        kind,
        objects: objects
            .iter()
            .filter(|(reference, _)| reference.kind == kind)
            .map(|(_, object)| Object::clone(object))
            .collect(),
    };
    ObjectKind::ALL.map(replace).into()
}

fn difference(old: &Objects, new: &Objects) -> Vec<Change> {
    // Unchanged files keep their objects, so most comparisons only compare pointers.
    let is_new = |reference: &ObjectReference, object: &Arc<Object>| {
        old.get(reference)
            .is_none_or(|old| !Arc::ptr_eq(old, object) && old != object)
    };
    let applied = new
        .iter()
        .filter(|(reference, object)| is_new(reference, object))
        .map(|(_, object)| Change::Apply(Object::clone(object)));
    let gone = old.keys().filter(|reference| !new.contains_key(reference));
    applied.chain(gone.cloned().map(Change::Delete)).collect()
}
