//! A directory of ordinary YAML files as the source: `--manifests DIR`.
//!
//! Files `*.yaml`, `*.yml` and `*.json` contain Services, EndpointSlices, Nodes and Pods. An edit
//! takes effect immediately. The source sends only the objects that it changes. While a file is
//! broken, its last valid content stays in effect. While the directory is missing, the last content
//! of all files stays in effect. Services get what an API server would allocate for them
//! (`allocate`), so the users of this module need not treat them differently.

mod allocate;
mod decode;
mod directory;
mod document;
mod fault;
mod header;
mod links;
mod name;
mod strict;
mod typed;
mod watch;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, watch as watch_channel};

use self::allocate::Allocator;
pub use self::allocate::{AllocationOptions, ServiceCidrArguments, ServiceCidrs};
use self::directory::Directory;
use self::watch::DirectoryWatch;
use crate::object::Change;

/// The largest size of a file. A larger file is rejected as a mistake.
const SIZE_LIMIT: u64 = 64 << 20;

/// How soon to save the allocations again after a failure.
const SAVE_RETRY: Duration = Duration::from_secs(5);

/// Why the source cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// There is no such directory.
    #[error("directory of manifests {}: create it or name another one", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: std::io::Error,
    },
    /// The thread that reads the files died.
    #[error("reading the manifests")]
    Reader(#[from] tokio::task::JoinError),
}

/// A problem with the manifests.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Problem {
    /// The file, or the directory.
    pub file: PathBuf,
    /// The line, counted from 1; `None` if the problem is about the whole file.
    pub line: Option<usize>,
    /// What is wrong, and what the consequence is.
    pub reason: String,
}

impl Problem {
    fn new(file: &Path, line: Option<usize>, reason: String) -> Self {
        Self {
            file: file.to_owned(),
            line,
            reason,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            Some(line) => write!(formatter, "{file}:{line}: {}", self.reason),
            None => write!(formatter, "{file}: {}", self.reason),
        }
    }
}

/// A directory of manifests.
pub struct Manifests {
    directory: Directory,
    watch: DirectoryWatch,
    problems: watch_channel::Sender<Vec<Problem>>,
}

impl Manifests {
    /// Opens a directory. It must exist now. Later it may be removed and created again.
    pub fn open(path: &Path, options: AllocationOptions) -> Result<Self, ManifestsError> {
        Self::open_with_limit(path, options, SIZE_LIMIT)
    }

    fn open_with_limit(
        path: &Path,
        options: AllocationOptions,
        size_limit: u64,
    ) -> Result<Self, ManifestsError> {
        std::fs::read_dir(path).map_err(|source| ManifestsError::Directory {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            directory: Directory::new(path.to_owned(), size_limit, Allocator::new(options)),
            watch: DirectoryWatch::new(path.to_owned()),
            problems: watch_channel::Sender::default(),
        })
    }

    /// The current problems of the manifests.
    pub fn problems(&self) -> watch_channel::Receiver<Vec<Problem>> {
        self.problems.subscribe()
    }

    /// Sends the objects of the files and their changes until the receiver is closed.
    pub async fn run(self, changes: mpsc::Sender<Change>) -> Result<(), ManifestsError> {
        let Self {
            mut directory,
            mut watch,
            problems,
        } = self;
        loop {
            let being_written = watch.being_written();
            let read = move || {
                let changes = directory.refresh(&being_written);
                (directory, changes)
            };
            let batch;
            (directory, batch) = tokio::task::spawn_blocking(read).await?;
            report(&problems, directory.problems());
            for change in batch {
                if changes.send(change).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(SAVE_RETRY), if directory.is_unsaved() => {}
                () = changes.closed() => return Ok(()),
            }
        }
    }
}

/// Publishes the problems, and logs those that are new.
fn report(published: &watch_channel::Sender<Vec<Problem>>, problems: &[Problem]) {
    published.send_if_modified(|published| {
        for problem in problems.iter().filter(|problem| !published.contains(problem)) {
            tracing::warn!("{problem}");
        }
        if !published.is_empty() && problems.is_empty() {
            tracing::info!("all manifests are valid again");
        }
        let modified = published != problems;
        *published = problems.to_vec();
        modified
    });
}

#[cfg(test)]
mod tests;
