//! The file of the allocations. It is replaced atomically, by one agent at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::directory::{FileError, read};
use super::state::AllocationState;

/// The version of the file's format.
const VERSION: u32 = 1;
/// The largest size of the file. A larger file is rejected as garbage.
const SIZE_LIMIT: u64 = 64 << 20;
const FILE: &str = "allocations.json";
/// The agent that holds the lock of this file may write.
const LOCK: &str = "allocations.lock";

/// The file's content. It is JSON so that operators can read it.
#[derive(Serialize)]
struct Content<'a> {
    version: u32,
    state: &'a AllocationState,
}

/// The same for reading.
#[derive(Deserialize)]
struct OwnedContent {
    state: AllocationState,
}

/// The part that all versions of the file have.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("its content is invalid: {0}")]
    Garbage(#[from] serde_json::Error),
    #[error("it has version {0}, but this agent supports version {VERSION}")]
    Version(u32),
}

/// Why the file cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error(
        "cannot be written, so Services may get other addresses or NodePorts when the agent starts again: \
         {0}; make the directory writable, or name another one (--state-directory)"
    )]
    Io(#[from] io::Error),
    #[error(
        "is not written, since another agent writes it, so Services may get other addresses or NodePorts \
         when this agent starts again: stop the other agent, or name another directory (--state-directory)"
    )]
    Locked,
}

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    /// Held from the first write on.
    lock: Option<File>,
    /// The file's content; `None` if it is not known.
    saved: Option<AllocationState>,
    /// Whether there is a file that the agent cannot read.
    is_unusable: bool,
}

impl Store {
    /// Reads the saved allocations.
    pub(super) fn open(directory: &Path) -> (Self, AllocationState) {
        let mut store = Self {
            directory: directory.to_owned(),
            lock: None,
            saved: None,
            is_unusable: false,
        };
        match load(&store.path()) {
            Ok(state) => {
                store.saved = Some(state.clone());
                return (store, state);
            }
            Err(error) => {
                store.is_unusable = true;
                tracing::warn!(
                    "{}: {error}; it is moved aside, and Services may get other addresses and NodePorts than before",
                    store.path().display()
                );
            }
        }
        (store, AllocationState::default())
    }

    /// The path of the file.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Writes the state, unless the file already contains it.
    pub(super) fn save(&mut self, state: &AllocationState) -> Result<(), SaveError> {
        if self.saved.as_ref() == Some(state) {
            return Ok(());
        }
        self.saved = None;
        fs::create_dir_all(&self.directory)?;
        self.lock()?;
        self.put_aside()?;
        replace(&self.directory, &encode(state)?)?;
        self.saved = Some(state.clone());
        Ok(())
    }

    /// Renames a file that the agent cannot read, so that an operator can examine it.
    fn put_aside(&mut self) -> io::Result<()> {
        if self.is_unusable {
            match fs::rename(self.path(), self.directory.join(format!("{FILE}.unusable"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.is_unusable = false,
            }
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<(), SaveError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = self.directory.join(LOCK);
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        match file.try_lock() {
            Ok(()) => self.lock = Some(file),
            Err(TryLockError::WouldBlock) => return Err(SaveError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(())
    }
}

fn load(path: &Path) -> Result<AllocationState, LoadError> {
    let text = match read(path, SIZE_LIMIT) {
        Err(FileError::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(AllocationState::default());
        }
        text => text?,
    };
    let Header { version } = serde_json::from_str(&text)?;
    if version != VERSION {
        return Err(LoadError::Version(version));
    }
    let OwnedContent { state } = serde_json::from_str(&text)?;
    Ok(state)
}

fn encode(state: &AllocationState) -> io::Result<Vec<u8>> {
    let content = Content {
        version: VERSION,
        state,
    };
    let mut text = serde_json::to_vec_pretty(&content)?;
    text.push(b'\n');
    Ok(text)
}

/// Replaces the file atomically: readers see either the old or the new content, also after a crash.
fn replace(directory: &Path, content: &[u8]) -> io::Result<()> {
    let new = directory.join(format!("{FILE}.new"));
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(new, directory.join(FILE))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
