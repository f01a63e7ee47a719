//! Symbolic links in the directory. Directory events do not report changes of their targets, so the
//! agent polls them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::directory::is_manifest;

/// The links, and the last known state of their targets.
#[derive(Default)]
pub(super) struct Links(BTreeMap<OsString, Link>);

struct Link {
    target: Option<Target>,
    /// When the target was last written in place, if it has not been read since.
    written: Option<Instant>,
}

/// What identifies the content of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Target {
    /// Device and inode.
    identity: (u64, u64),
    /// Seconds and nanoseconds of the last write.
    written: (i64, i64),
    size: u64,
}

impl Links {
    /// Lists the links that the directory currently contains.
    pub(super) fn list(&mut self, directory: &Path) {
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        let is_link = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let names = entries.flatten().filter(is_link).map(|entry| entry.file_name());
        let mut known = std::mem::take(&mut self.0);
        for name in names.filter(|name| is_manifest(name)) {
            let link = known.remove(&name).unwrap_or_else(|| Link {
                target: target(&directory.join(&name)),
                written: None,
            });
            self.0.insert(name, link);
        }
    }

    /// Checks the targets. Returns true if there is something new to read. A target that is written
    /// in place is new only after `quiet` without another write.
    pub(super) fn look(&mut self, directory: &Path, quiet: Duration) -> bool {
        let mut is_new = false;
        for (name, link) in &mut self.0 {
            let target = target(&directory.join(name));
            if target != link.target {
                let identity = |target: Option<Target>| target.map(|target| target.identity);
                let is_same_file = target.is_some() && identity(target) == identity(link.target);
                link.written = is_same_file.then(Instant::now);
                link.target = target;
                is_new |= !is_same_file;
            } else if link.written.is_some_and(|written| written.elapsed() >= quiet) {
                link.written = None;
                is_new = true;
            }
        }
        is_new
    }

    /// The links whose targets are being written to.
    pub(super) fn being_written(&self) -> impl Iterator<Item = &OsString> {
        let is_written = |(_, link): &(&OsString, &Link)| link.written.is_some();
        self.0.iter().filter(is_written).map(|(name, _)| name)
    }
}

fn target(path: &Path) -> Option<Target> {
    let metadata = fs::metadata(path).ok()?;
    Some(Target {
        identity: (metadata.dev(), metadata.ino()),
        written: (metadata.mtime(), metadata.mtime_nsec()),
        size: metadata.size(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const NEVER: Duration = Duration::MAX;

    #[test]
    fn a_target_written_in_place_is_read_after_the_last_write() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (directory.path(), directory.path().join("target"));
        fs::write(&target, "1").unwrap();
        fs::write(path.join("b.yaml"), "no link").unwrap();
        symlink(&target, path.join("a.yaml")).unwrap();
        symlink(&target, path.join("a.txt")).unwrap();
        let mut links = Links::default();
        links.list(path);
        let written = |links: &Links| links.being_written().cloned().collect::<Vec<_>>();
        assert!(!links.look(path, Duration::ZERO));
        // Each content has a different size, because the clock of a file system may be coarse.
        for content in ["12", "123"] {
            fs::write(&target, content).unwrap();
            assert!(!links.look(path, NEVER));
            links.list(path);
            assert_eq!(written(&links), ["a.yaml"]);
        }
        assert!(links.look(path, Duration::ZERO));
        assert_eq!(written(&links), [""; 0]);
        assert!(!links.look(path, Duration::ZERO));
        // A file that replaces another one is complete.
        for content in ["1", ""] {
            fs::write(path.join("new"), content).unwrap();
            fs::rename(path.join("new"), &target).unwrap();
            assert!(links.look(path, NEVER));
        }
        fs::remove_file(&target).unwrap();
        assert!(links.look(path, NEVER));
        fs::remove_file(path.join("a.yaml")).unwrap();
        links.list(path);
        fs::write(&target, "1").unwrap();
        assert!(!links.look(path, NEVER));
    }
}
