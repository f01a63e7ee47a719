//! Pin directories for tests that need no lab.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::id::LabId;
use super::{Lab, directory};

/// A directory in the bpf file system. Dropping it removes the directory and its pins. If the
/// process is killed, the next lab or the next such directory removes them.
#[derive(Debug)]
pub struct PinDirectory(PathBuf);

impl PinDirectory {
    /// Chooses a name for a directory; `purpose` is part of it. The directory is created by the
    /// first pin.
    ///
    /// # Errors
    ///
    /// If there is no bpf file system and none can be mounted.
    pub fn new(purpose: &str) -> Result<Self> {
        Lab::remove_leftovers()?;
        Ok(Self(
            directory::bpf_file_system()?.join(LabId::new().part(purpose)),
        ))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        // A pin that is already removed is not an error.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
