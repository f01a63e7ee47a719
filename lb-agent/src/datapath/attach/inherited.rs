//! Links that agents with other layouts have pinned and that this agent has not yet replaced.

use std::io;
use std::path::{Path, PathBuf};

use super::error::Failure;
use super::steps::pinned;
use crate::datapath::links::{Link, Place};
use crate::datapath::pins::{self, Pins};

/// Their pins, and the places where they are attached.
#[derive(Debug)]
pub(super) struct Inherited(Vec<(PathBuf, Place)>);

impl Inherited {
    /// Finds all such links.
    pub(super) fn find(pins: &Pins) -> io::Result<Self> {
        let mut found = Vec::new();
        for path in pins.other_files()? {
            if let Ok(link) = Link::open(&path) {
                found.push((path, link.info()?.place));
            }
        }
        Ok(Self(found))
    }

    /// Whether all of them are replaced or detached.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the link at this place. It is pinned at `path`, or by an agent with another layout.
    /// In that case its pin moves to `path`.
    pub(super) fn link_at(&mut self, path: &Path, place: Place) -> Result<Option<Link>, Failure> {
        let own = pinned(path)?;
        if let Some(link) = own
            && link.info()?.place == place
        {
            return Ok(Some(link));
        }
        let Some(found) = self.0.iter().position(|(_, other)| *other == place) else {
            return Ok(None);
        };
        let (other, _) = self.0.swap_remove(found);
        std::fs::rename(other, path)?;
        pinned(path)
    }

    /// Detaches the links at the places for which `is_done` returns true.
    pub(super) fn detach_at(&mut self, is_done: impl Fn(&Place) -> bool) -> io::Result<()> {
        let (done, others) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(_, place)| is_done(place));
        self.0 = others;
        for (path, _) in done {
            pins::remove(&path)?;
        }
        Ok(())
    }
}
