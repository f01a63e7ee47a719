//! Where maps and links are pinned, so that they outlive the agent.
//!
//! ```text
//! PIN_PATH/v1/maps/FRONTENDS4 …                     one file for each map
//! PIN_PATH/v1/links/12-lb_tc_from_pod …             INDEX-PROGRAM for a device
//! PIN_PATH/v1/links/cgroup-lb_connect4 …            for the cgroup
//! ```
//! `v1` is the layout version. Other versions and `set-aside` were left by agents with other
//! layouts. The agent never touches entries with other names: it did not create them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_common::layout::LAYOUT_VERSION;

use super::links::Link;

/// The directory for maps that this agent cannot read. They stay there until no program uses them.
const SET_ASIDE: &str = "set-aside";

/// The directories under a pin path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Pins under this path, which must be in a bpf file system.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of this agent's layout version.
    fn version(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// The directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// The directory of the links.
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The file of a link.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Names of the links that are pinned.
    pub fn link_names(&self) -> io::Result<BTreeSet<String>> {
        let paths = entries(&self.links())?;
        let names = paths.iter().filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    /// Removes a link's file, which detaches its program. A missing file is not an error.
    pub(super) fn remove_link(&self, name: &str) -> io::Result<()> {
        remove(&self.link(name))
    }

    /// Names of the entries that agents with other layouts have left under the pin path.
    pub(super) fn others(&self) -> io::Result<Vec<String>> {
        let paths = self.other_paths()?;
        let names = paths.iter().filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    /// All files of other layouts, at any depth.
    pub(super) fn other_files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for path in self.other_paths()? {
            collect(&path, &mut files)?;
        }
        Ok(files)
    }

    /// Removes everything that agents with other layouts have left.
    pub(super) fn remove_others(&self) -> io::Result<()> {
        self.other_paths()?.iter().try_for_each(|path| remove(path))
    }

    /// Moves this layout's maps to the set-aside directory, where they count as another layout's.
    pub(super) fn set_maps_aside(&self) -> io::Result<()> {
        let aside = self.root.join(SET_ASIDE);
        remove(&aside)?;
        fs::rename(self.maps(), aside)
    }

    /// Removes everything that agents of any layout have pinned. Links are removed first, because
    /// no program runs without its maps. The directory itself stays if something else is in it.
    pub(crate) fn remove_all(&self) -> io::Result<Removed> {
        let own = self.agent_paths()?;
        let mut files = Vec::new();
        own.iter().try_for_each(|path| collect(path, &mut files))?;
        let (links, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| Link::open(path).is_ok());
        for path in links.iter().chain(&others).chain(&own) {
            remove(path)?;
        }
        let left = entries(&self.root)?;
        if left.is_empty() {
            remove(&self.root)?;
        }
        Ok(Removed {
            links: links.len(),
            left,
        })
    }

    /// The pin path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The message for maps that do not exist.
    pub(crate) fn no_agent_message(&self) -> String {
        format!("no agent has run with --pin-path {}", self.root.display())
    }

    fn other_paths(&self) -> io::Result<Vec<PathBuf>> {
        let own = self.version();
        let mut paths = self.agent_paths()?;
        paths.retain(|path| *path != own);
        Ok(paths)
    }

    /// The entries that agents of any layout create under the pin path.
    fn agent_paths(&self) -> io::Result<Vec<PathBuf>> {
        let mut paths = entries(&self.root)?;
        paths.retain(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(is_agents)
        });
        Ok(paths)
    }
}

/// The result of [`Pins::remove_all`].
#[derive(Debug)]
pub(crate) struct Removed {
    /// Number of links.
    pub(crate) links: usize,
    /// What other programs have put under the pin path.
    pub(crate) left: Vec<PathBuf>,
}

/// Returns true for the name of a directory that agents create under the pin path.
fn is_agents(name: &str) -> bool {
    let is_version = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    name == SET_ASIDE || name.strip_prefix('v').is_some_and(is_version)
}

/// The entries of a directory. Empty if the directory does not exist.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// Adds a file, or all files in a directory and its subdirectories.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => {
            entries(path)?.iter().try_for_each(|entry| collect(entry, files))
        }
        Ok(_) => {
            files.push(path.to_owned());
            Ok(())
        }
    }
}

/// Removes a file or a directory. A missing one is not an error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            entries(path)?.iter().try_for_each(|entry| remove(entry))?;
            fs::remove_dir(path)
        }
        Ok(_) => {
            // Keeps the link open while its file is removed. The kernel detaches a program
            // immediately when the last file descriptor of its link is closed. When the last pin is
            // removed, the kernel detaches later, and until then nothing else can be attached in
            // that place.
            let _link = Link::open(path);
            fs::remove_file(path)
        }
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates plain files instead of pins.
    fn pins(files: &[&str]) -> (tempfile::TempDir, Pins) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("pins");
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        (directory, Pins::new(root))
    }

    #[test]
    fn versions_under_the_pin_path_are_other_layouts_and_foreign_entries_stay() {
        let own = format!("v{LAYOUT_VERSION}");
        let (_directory, pins) = pins(&[
            &format!("{own}/maps/FLOWS4"),
            &format!("{own}/links/2-lb_xdp-native"),
            "v1/links/7-lb_tc_to_pod",
            "v1/maps/FLOWS4",
            "v99/some/where/deep",
            "globals/cilium_lb",
            "v1x",
            "v",
        ]);
        let others: BTreeSet<String> = pins.others().unwrap().into_iter().collect();
        assert_eq!(others, ["v1", "v99"].map(str::to_owned).into());
        assert_eq!(pins.other_files().unwrap().len(), 3);
        pins.remove_others().unwrap();
        assert_eq!(pins.others().unwrap(), [""; 0]);
        assert_eq!(pins.link_names().unwrap().len(), 1);
        assert!(pins.maps().join("FLOWS4").exists());
        // Removing again is not an error.
        pins.remove_others().unwrap();
        for _ in 0..2 {
            let left = pins.remove_all().unwrap().left;
            assert_eq!(left.len(), 3, "{left:?}");
        }
        assert!(pins.root().join("globals/cilium_lb").exists());
        assert!(!pins.maps().exists());
        ["globals", "v1x", "v"]
            .iter()
            .try_for_each(|name| remove(&pins.root().join(name)))
            .unwrap();
        for _ in 0..2 {
            assert_eq!(pins.remove_all().unwrap().left, [""; 0].map(PathBuf::from));
            assert!(!pins.root().exists());
        }
        assert_eq!(pins.others().unwrap(), [""; 0]);
    }

    #[test]
    fn maps_can_be_set_aside_repeatedly() {
        let (_directory, pins) = pins(&[]);
        for _ in 0..2 {
            fs::create_dir_all(pins.maps()).unwrap();
            fs::write(pins.maps().join("FLOWS4"), "").unwrap();
            pins.set_maps_aside().unwrap();
            assert!(!pins.maps().exists());
        }
        assert_eq!(pins.others().unwrap(), [SET_ASIDE]);
    }
}
