//! Where maps and links are pinned, so that they outlive the agent.
//!
//! ```text
//! PIN_PATH/v1/maps/FRONTENDS4 …                     one file for each map
//! PIN_PATH/v1/links/12-lb_tc_from_pod …             INDEX-PROGRAM for a device
//! PIN_PATH/v1/links/cgroup-lb_connect4 …            for the cgroup
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::PinnedLink;
use lb_common::layout::LAYOUT_VERSION;

/// The directories under a pin path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Under this path, which lies in a bpf file system.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Everything of this agent's layout version.
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
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Names of the links that are pinned.
    pub fn link_names(&self) -> io::Result<BTreeSet<String>> {
        let entries = match std::fs::read_dir(self.links()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries?,
        };
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Removes a link's file, which detaches its program. One that is gone already is success.
    pub fn remove_link(&self, name: &str) -> io::Result<()> {
        let path = self.link(name);
        // Open meanwhile: the kernel detaches at once when a link's last file is closed, but some time after its last
        // pin was removed, and until then nothing else can be attached there.
        let _link = PinnedLink::from_pin(&path);
        remove(|| std::fs::remove_file(path))
    }

    /// Removes everything, links first: no program runs without its maps. Other layout versions go too.
    pub fn remove_all(&self) -> io::Result<()> {
        for name in self.link_names()? {
            self.remove_link(&name)?;
        }
        remove(|| std::fs::remove_dir_all(&self.root))
    }

    /// The path that was given.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn remove(remove: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match remove() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
