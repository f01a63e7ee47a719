//! Iterates over the network namespaces of this node.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// Directories where container runtimes and `ip netns` keep namespaces, even without a process.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// The namespace of a thread, to return to after visits.
#[derive(Debug)]
pub(super) struct Namespaces {
    own: File,
    /// The device number of the namespace file system.
    device: u64,
    inode: u64,
}

/// The result of a visit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Visit {
    /// The number of visited namespaces.
    pub(super) visited: usize,
    /// Whether some could not be visited for a reason that may be temporary.
    pub(super) failed: bool,
}

impl Namespaces {
    /// The namespace of the calling thread.
    pub(super) fn of_this_thread() -> io::Result<Self> {
        let own = File::open(OWN)?;
        let metadata = own.metadata()?;
        Ok(Self {
            own,
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// The thread's own namespace.
    pub(super) fn own(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }

    /// Calls `action` in every namespace of the node until it breaks. The own namespace comes
    /// first. Fails only if the thread cannot return to its own namespace.
    pub(super) fn visit(&self, mut action: impl FnMut() -> io::Result<ControlFlow<()>>) -> io::Result<Visit> {
        let mut visit = Visit::default();
        let mut seen = HashSet::from([self.inode]);
        let mut flow = visit.count(OWN.as_ref(), action());
        for path in candidates() {
            if flow.is_break() {
                break;
            }
            if self.is_new(&path, &mut visit, &mut seen) {
                let entered = File::open(&path).and_then(enter);
                flow = visit.count(&path, entered.and_then(|()| action()));
            }
        }
        if seen.len() > 1 {
            // Otherwise this thread would keep a Pod's namespace alive.
            enter(&self.own)?;
        }
        Ok(visit)
    }

    /// Whether a path is a namespace that was not visited yet.
    fn is_new(&self, path: &Path, visit: &mut Visit, seen: &mut HashSet<u64>) -> bool {
        match fs::metadata(path) {
            Ok(found) => found.dev() == self.device && seen.insert(found.ino()),
            Err(error) => {
                visit.note(path, &error);
                false
            }
        }
    }
}

impl Visit {
    /// A visit of only the thread's namespace, with this result.
    pub(super) fn of_one(result: io::Result<ControlFlow<()>>) -> Self {
        let mut visit = Self::default();
        let _ = visit.count(OWN.as_ref(), result);
        visit
    }

    fn count(&mut self, path: &Path, result: io::Result<ControlFlow<()>>) -> ControlFlow<()> {
        match result {
            Ok(flow) => {
                self.visited += 1;
                flow
            }
            Err(error) => {
                self.note(path, &error);
                ControlFlow::Continue(())
            }
        }
    }

    /// Records an error. Namespaces that were deleted, or that more than capabilities protect, are
    /// not worth a retry.
    fn note(&mut self, path: &Path, error: &io::Error) {
        tracing::debug!(namespace = %path.display(), %error, "not visited");
        let kinds = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
        let is_gone = error.raw_os_error() == Some(Errno::ESRCH as i32);
        self.failed |= !is_gone && !kinds.contains(&error.kind());
    }
}

fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Files that may be network namespaces: named ones first, then those of processes.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = NAMED.into_iter().flat_map(entries);
    named.chain(processes().map(|path| path.join("ns/net")))
}

/// The directories of the node's processes.
pub(super) fn processes() -> impl Iterator<Item = PathBuf> {
    entries("/proc").filter(|path| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    })
}

fn entries(directory: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_contain_processes_but_not_other_files_of_proc() {
        let own = PathBuf::from(format!("/proc/{}/ns/net", std::process::id()));
        let candidates: Vec<PathBuf> = candidates().collect();
        assert!(candidates.contains(&own));
        assert!(!candidates.contains(&PathBuf::from("/proc/self/ns/net")));
    }

    #[test]
    fn is_new_accepts_each_namespace_once_and_no_other_files() {
        let namespaces = Namespaces::of_this_thread().unwrap();
        let mut visit = Visit::default();
        let mut seen = HashSet::new();
        let mut is_new = |path: &str| namespaces.is_new(path.as_ref(), &mut visit, &mut seen);
        assert!(is_new(OWN));
        assert!(!is_new("/proc/self/ns/net"));
        assert!(!is_new("/proc/self/status"));
        assert!(!is_new("/proc/self/ns/none"));
        assert!(!visit.failed);
    }

    #[test]
    fn the_own_namespace_comes_first() {
        let namespaces = Namespaces::of_this_thread().unwrap();
        let mut calls = 0;
        let visit = namespaces.visit(|| {
            calls += 1;
            let here = fs::metadata(OWN)?;
            assert_eq!(here.ino(), namespaces.inode);
            Ok(ControlFlow::Break(()))
        });
        assert_eq!(calls, 1);
        let expected = Visit {
            visited: 1,
            failed: false,
        };
        assert_eq!(visit.unwrap(), expected);
    }
}
