//! Determines when to read the directory again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::directory::is_manifest;
use super::links::Links;

/// A burst of changes ends after this time without an event. It covers tools that delete a file
/// before they replace it, and it is not noticeable as a delay.
const QUIET: Duration = Duration::from_millis(10);

/// The maximum length of a burst, in multiples of [`QUIET`].
const MAX_BURST: u32 = 25;

/// A file that was written but not closed is read after this time without another write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to check whether the directory was replaced, whether targets of symbolic links
/// changed, and whether files are still being written.
const TICK: Duration = Duration::from_secs(1);

/// Watches a directory, even while it does not exist.
pub(super) struct DirectoryWatch {
    path: PathBuf,
    /// `None` while it cannot be watched. The directory is then read at every tick.
    watcher: Option<Watching>,
    events: Arc<Events>,
    links: Links,
}

struct Watching {
    /// Device and inode of the directory.
    identity: (u64, u64),
    _watcher: RecommendedWatcher,
}

/// The events since the last read.
#[derive(Default)]
struct Events {
    changed: Notify,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The directory itself was removed or renamed.
    directory_moved: bool,
    /// Open files and their last write.
    writing: BTreeMap<OsString, Instant>,
}

impl DirectoryWatch {
    /// Starts watching if the directory can be watched.
    pub(super) fn new(path: PathBuf) -> Self {
        let mut watch = Self {
            path,
            watcher: None,
            events: Arc::default(),
            links: Links::default(),
        };
        watch.renew_or_poll();
        watch
    }

    /// Waits until there may be something new to read.
    pub(super) async fn changed(&mut self) {
        loop {
            if timeout(TICK, self.events.changed.notified()).await.is_ok() {
                self.wait_until_quiet().await;
                break;
            }
            let is_new = self.links.look(&self.path, WRITE_TIMEOUT);
            if is_new || self.watcher.is_none() || self.is_moved() || self.is_being_written() {
                break;
            }
        }
        if self.watcher.is_none() || self.is_moved() {
            self.renew_or_poll();
        }
    }

    /// Returns the files that are being written. They may be incomplete, so they are not read. All
    /// others are read next.
    pub(super) fn being_written(&mut self) -> BTreeSet<OsString> {
        self.links.list(&self.path);
        self.links.look(&self.path, WRITE_TIMEOUT);
        let mut seen = self.events.lock();
        seen.writing
            .retain(|_, last_write| last_write.elapsed() < WRITE_TIMEOUT);
        let written = seen.writing.keys().chain(self.links.being_written());
        written.cloned().collect()
    }

    fn is_being_written(&self) -> bool {
        !self.events.lock().writing.is_empty()
    }

    async fn wait_until_quiet(&self) {
        for _ in 0..MAX_BURST {
            if timeout(QUIET, self.events.changed.notified()).await.is_err() {
                break;
            }
        }
    }

    fn is_moved(&self) -> bool {
        let watched = self.watcher.as_ref().map(|watcher| watcher.identity);
        self.events.lock().directory_moved || identity(&self.path) != watched
    }

    fn renew_or_poll(&mut self) {
        let was_polling = self.watcher.take().is_none();
        *self.events.lock() = Seen::default();
        // If the directory is missing, the code that reads it reports the problem.
        let Some(identity) = identity(&self.path) else {
            return;
        };
        match self.watch(identity) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) if was_polling => {
                tracing::debug!(directory = %self.path.display(), %error, "still cannot watch the manifests");
            }
            Err(error) => tracing::warn!(
                directory = %self.path.display(),
                %error,
                "cannot watch the manifests, reading them every second: is fs.inotify.max_user_instances too low?"
            ),
        }
    }

    fn watch(&self, identity: (u64, u64)) -> notify::Result<Watching> {
        let (events, directory) = (self.events.clone(), self.path.clone());
        let mut watcher = notify::recommended_watcher(move |event| events.add(&directory, event))?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
        Ok(Watching {
            identity,
            _watcher: watcher,
        })
    }
}

impl Events {
    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, directory: &Path, event: notify::Result<notify::Event>) {
        // An error means that events are lost. Reading the directory recovers from that.
        let read = event.map_or(true, |event| self.note(directory, &event));
        if read {
            self.changed.notify_one();
        }
    }

    /// Records an event. Returns true if the directory needs to be read now.
    fn note(&self, directory: &Path, event: &notify::Event) -> bool {
        let mut seen = self.lock();
        let names = event
            .paths
            .iter()
            .filter(|path| *path != directory)
            .filter_map(|path| path.file_name());
        match event.kind {
            // This event occurs at every write. The file is read after it is closed.
            EventKind::Modify(ModifyKind::Data(_)) => {
                let now = Instant::now();
                seen.writing.extend(
                    names
                        .filter(|name| is_manifest(name))
                        .map(|name| (name.to_owned(), now)),
                );
                return false;
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
            // Reading the files causes events, too.
            EventKind::Access(_) => return false,
            EventKind::Modify(ModifyKind::Metadata(_)) => return true,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                seen.directory_moved |= event.paths.iter().any(|path| path == directory);
            }
            _ => {}
        }
        for name in names {
            seen.writing.remove(name);
        }
        true
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}
