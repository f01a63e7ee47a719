//! Directories for pins of programs that need no lab.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::id::LabId;
use super::{Lab, directory};

/// A directory in the bpf file system. Dropping it removes it and what is pinned there; if the
/// process is killed, the next lab or the next such directory does.
#[derive(Debug)]
pub struct PinDirectory(PathBuf);

impl PinDirectory {
    /// A name for a directory; `purpose` is part of it. It is made by whoever pins.
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        // Nothing to do about a pin that is gone already.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
