//! The lock on a pin path: one process at a time writes the maps and attaches the programs there.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::pins::Pins;

/// How often [`PinLock::wait`] tries again.
const INTERVAL: Duration = Duration::from_millis(100);

/// The lock. The kernel releases it when the process ends, however that happens. It is on the
/// directory itself, so processes in other containers see it if they see the pins.
#[derive(Debug)]
pub struct PinLock {
    _directory: Flock<File>,
}

/// Why a pin path was not locked.
#[derive(Debug, thiserror::Error)]
pub enum PinLockError {
    /// Another process holds the lock.
    #[error("another process uses the pins at {path}: stop that agent first, or choose another --pin-path")]
    Held {
        /// The pin path.
        path: String,
    },
    /// The directory cannot be created, opened or locked.
    #[error("cannot lock {path}: is a bpf file system mounted there? (`mount -t bpf bpf /sys/fs/bpf`)")]
    Failed {
        /// The pin path.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl PinLock {
    /// Locks a pin path, which is created if it does not exist.
    ///
    /// # Errors
    /// If another process holds the lock, or if the directory cannot be locked.
    pub fn new(pins: &Pins) -> Result<Self, PinLockError> {
        let path = || pins.root().display().to_string();
        match lock(pins) {
            Ok(Some(directory)) => Ok(Self {
                _directory: directory,
            }),
            Ok(None) => Err(PinLockError::Held { path: path() }),
            Err(source) => Err(PinLockError::Failed { path: path(), source }),
        }
    }

    /// Like [`Self::new`], but waits until the other process releases the lock: in a rolling update
    /// the previous agent may still be running. Calls `waiting` once if it has to wait.
    ///
    /// # Errors
    /// If the other process still holds the lock after `limit`, or if the directory cannot be
    /// locked.
    pub fn wait(pins: &Pins, limit: Duration, waiting: impl FnOnce()) -> Result<Self, PinLockError> {
        let deadline = Instant::now() + limit;
        let mut waiting = Some(waiting);
        loop {
            match Self::new(pins) {
                Err(PinLockError::Held { .. }) if Instant::now() < deadline => {}
                result => return result,
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            std::thread::sleep(INTERVAL);
        }
    }
}

/// `None` if another process holds the lock.
fn lock(pins: &Pins) -> io::Result<Option<Flock<File>>> {
    loop {
        fs::create_dir_all(pins.root())?;
        let directory = File::open(pins.root())?;
        let directory = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => directory,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error.into()),
        };
        // `cleanup` may have removed the directory before it was locked. A lock on a removed
        // directory keeps nobody out.
        let is_same = |current: &Metadata| -> io::Result<bool> {
            let locked = directory.metadata()?;
            Ok((locked.dev(), locked.ino()) == (current.dev(), current.ino()))
        };
        match fs::metadata(pins.root()) {
            Ok(current) if is_same(&current)? => return Ok(Some(directory)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_path_is_locked_once_and_again_after_its_release() {
        let directory = tempfile::tempdir().unwrap();
        let pins = Pins::new(directory.path().join("pins"));
        let lock = PinLock::new(&pins).unwrap();
        let error = PinLock::new(&pins).unwrap_err().to_string();
        assert!(error.contains("another process uses the pins at"), "{error}");
        let mut waited = 0;
        let error = PinLock::wait(&pins, Duration::from_millis(1), || waited += 1).unwrap_err();
        assert!(matches!(error, PinLockError::Held { .. }), "{error}");
        drop(lock);
        PinLock::wait(&pins, Duration::ZERO, || waited += 10).unwrap();
        assert!(waited <= 1, "{waited}");
    }

    #[test]
    fn a_removed_directory_keeps_nobody_out() {
        let directory = tempfile::tempdir().unwrap();
        let pins = Pins::new(directory.path().join("pins"));
        let _old = PinLock::new(&pins).unwrap();
        fs::remove_dir(pins.root()).unwrap();
        let _new = PinLock::new(&pins).unwrap();
        assert!(PinLock::new(&pins).is_err());
    }

    #[test]
    fn a_path_that_cannot_be_created_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = PinLock::new(&Pins::new(file.join("pins")))
            .unwrap_err()
            .to_string();
        assert!(error.contains("file/pins"), "{error}");
    }
}
