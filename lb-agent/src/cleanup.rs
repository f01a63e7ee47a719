//! `lb-agent cleanup`: removes every trace of the agent from the kernel.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::arguments::PinArguments;
use crate::datapath::attach::clsact;
use crate::datapath::pin_lock::{PinLock, PinLockError};
use crate::datapath::pins::Pins;
use crate::{mounts, privileges};

/// Arguments of `lb-agent cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArguments {
    /// Where the agent pins maps and links.
    #[command(flatten)]
    pins: PinArguments,
    /// Clean up even if an agent is running; it must be restarted afterwards
    #[arg(long)]
    force: bool,
}

/// Detaches all programs and removes all pins, including those of agents with other map layouts.
/// Services stop working on this node.
///
/// # Errors
/// If the pin path is not in a bpf file system, or if an agent is running and `--force` is not set.
pub fn run(arguments: &CleanupArguments) -> anyhow::Result<ExitCode> {
    privileges::require("cleanup", &privileges::DATAPATH)?;
    let pins = Pins::new(&arguments.pins.pin_path);
    let _lock = if pins.root().exists() {
        require_bpf_file_system(pins.root())?;
        lock(&pins, arguments.force)?
    } else {
        None
    };
    let removed = pins
        .remove_all()
        .with_context(|| format!("cannot remove {}", pins.root().display()))?;
    let filters = clsact::detach_all().context("cannot list the network devices")?;
    println!(
        "removed {} pinned links, {filters} clsact filters and {}",
        removed.links,
        pins.root().display()
    );
    for path in removed.left {
        println!("left {}, which lb-agent did not create", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// `None` if an agent holds the lock and `force` is set.
fn lock(pins: &Pins, force: bool) -> anyhow::Result<Option<PinLock>> {
    match PinLock::new(pins) {
        Err(PinLockError::Held { .. }) if force => Ok(None),
        Err(error @ PinLockError::Held { .. }) => bail!("{error}, or add --force"),
        lock => Ok(Some(lock?)),
    }
}

/// Keeps a mistyped path from losing files that are not pins.
fn require_bpf_file_system(path: &Path) -> anyhow::Result<()> {
    let real = fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mounts = mounts::mounts().context("cannot read the mounts")?;
    match mounts::mount_of(&mounts, &real) {
        Some(mount) if mount.kind == "bpf" => Ok(()),
        _ => bail!(
            "{} is not in a bpf file system, and nothing was removed: give the --pin-path of the agent",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_file_system_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = require_bpf_file_system(directory.path()).unwrap_err().to_string();
        assert!(error.contains("nothing was removed"), "{error}");
        assert!(directory.path().exists());
    }
}
