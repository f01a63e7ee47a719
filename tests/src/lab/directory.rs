//! Directories of a lab: pins in the BPF file system, and manifests and logs.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// The mount point of the BPF file system. Mounts it if it is not mounted yet.
pub(super) fn bpf_file_system() -> Result<&'static Path> {
    let path = Path::new(BPF_FILE_SYSTEM);
    // A second mount would hide the pins of the first one, so the check and the mount are under a
    // lock.
    let lock = temporary();
    let lock = File::open(&lock).with_context(|| format!("open {}", lock.display()))?;
    lock.lock().context("lock the mount of the BPF file system")?;
    if !is_bpf_file_system(path)? {
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount the BPF file system at {BPF_FILE_SYSTEM}"))?;
    }
    Ok(path)
}

fn is_bpf_file_system(path: &Path) -> Result<bool> {
    let status = statfs(path).with_context(|| format!("statfs {}", path.display()))?;
    Ok(status.filesystem_type() == BPF_FS_MAGIC)
}

/// The directory with the manifests and logs of labs.
pub(super) fn temporary() -> PathBuf {
    env::temp_dir()
}

/// Removes the directories whose names are `unwanted`. Removing the last pin of an object detaches
/// and frees it.
pub(super) fn remove(unwanted: impl Fn(&str) -> bool) -> Result<()> {
    for parent in [Path::new(BPF_FILE_SYSTEM), &temporary()] {
        for entry in fs::read_dir(parent)
            .with_context(|| format!("list {}", parent.display()))?
            .flatten()
        {
            if !entry.file_name().to_str().is_some_and(&unwanted) {
                continue;
            }
            match fs::remove_dir_all(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", entry.path().display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
