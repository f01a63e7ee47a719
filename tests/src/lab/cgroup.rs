//! Control groups: one per node, with one below it for the node's own processes and one for each
//! Pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::wait_for;

/// The mount point of cgroup v2, which differs between machines.
///
/// # Errors
///
/// If it is not mounted.
pub(super) fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find_map(|fields| match fields[..] {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        })
        .context("no cgroup v2 in /proc/mounts")
}

/// Creates a group and returns its path.
pub(super) fn create(parent: &Path, name: &str) -> Result<PathBuf> {
    let path = parent.join(name);
    fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// Moves the calling process into a group.
///
/// # Errors
///
/// If there is no such group or no privilege.
pub fn join(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    // 0 means the writing process.
    fs::write(&path, "0").with_context(|| format!("write {}", path.display()))
}

/// Removes the groups whose names are `unwanted`, after it ends the processes in them.
pub(super) fn remove(unwanted: impl Fn(&str) -> bool) -> Result<()> {
    let root = root()?;
    for entry in fs::read_dir(&root).with_context(|| format!("list {}", root.display()))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&unwanted) {
            end_processes(&entry.path())?;
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Kills every process in a group and those below it, and waits until they have ended.
fn end_processes(group: &Path) -> Result<()> {
    kill_processes(group).with_context(|| format!("end the processes of {}", group.display()))?;
    let events = group.join("cgroup.events");
    wait_for(
        &format!("end of the processes of {}", group.display()),
        Duration::from_secs(10),
        || {
            // No file: another process removed the same leftover.
            let events = fs::read_to_string(&events).unwrap_or_default();
            (!events.contains("populated 1")).then_some(())
        },
    )
}

fn kill_processes(group: &Path) -> io::Result<()> {
    let all = group.join("cgroup.kill");
    if all.exists() {
        return ignore_missing(fs::write(all, "1"));
    }
    // Linux before 5.14, or the group is already removed.
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for process in processes.lines().filter_map(|number| number.parse().ok()) {
        // The process may have ended by itself.
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
    groups_below(group)
        .iter()
        .try_for_each(|group| kill_processes(group))
}

fn groups_below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(group: &Path) -> Result<()> {
    for below in groups_below(group) {
        remove_tree(&below)?;
    }
    ignore_missing(fs::remove_dir(group)).with_context(|| format!("remove {}", group.display()))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV) =>
        {
            Ok(())
        }
        other => other,
    }
}
