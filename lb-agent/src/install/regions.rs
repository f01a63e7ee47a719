//! Regions: parts of the slots array that frontends name, what they hold and who uses them.

use std::collections::HashMap;

use lb_common::layout::{Region, Slot};

use super::slots::SlotAllocator;
use crate::maps::{MapError, MapImage, MapOp, Maps};

/// What a region holds, and who uses it.
#[derive(Debug)]
struct RegionEntry {
    slots: Box<[Slot]>,
    /// Frontend rows, and ports that keep it for their next rows.
    users: u32,
    is_written: bool,
}

/// All regions that are not empty.
#[derive(Debug)]
pub(super) struct Regions {
    /// By their first slot.
    entries: HashMap<u32, RegionEntry>,
    slots: SlotAllocator,
}

impl Regions {
    /// None yet, in an array of so many slots.
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            entries: HashMap::new(),
            slots: SlotAllocator::new(capacity),
        }
    }

    /// Counts one more user of a region that was found in the maps; false if it overlaps another
    /// one's or the end of the array.
    pub(super) fn restore(&mut self, region: Region, image: &MapImage) -> bool {
        if region.length == 0 || self.acquire(region) {
            return true;
        }
        if !self.slots.take(region) {
            return false;
        }
        let slots = (region.base..region.base + region.length)
            .map(|index| image.slots.get(&index).copied().unwrap_or_default())
            .collect();
        self.entries.insert(
            region.base,
            RegionEntry {
                slots,
                users: 1,
                is_written: true,
            },
        );
        true
    }

    /// Takes back what [`Self::restore`] has done. Nobody reads the region: no grace is needed, and
    /// there is no clock.
    pub(super) fn forget(&mut self, region: Region) {
        if self.remove_user(region).is_some() {
            self.slots.free(region);
        }
    }

    /// Finds room for a region; its slots follow with [`Self::fill`].
    pub(super) fn allocate(&mut self, length: usize) -> Option<Region> {
        self.slots.allocate(u32::try_from(length).ok()?)
    }

    /// Gives back a region that was allocated and not filled, or that nobody reads any more.
    pub(super) fn free(&mut self, region: Region) {
        self.slots.free(region);
    }

    /// Says what a region shall hold, and makes the caller its first user.
    pub(super) fn fill(&mut self, region: Region, slots: Box<[Slot]>) {
        if region.length > 0 {
            self.entries.insert(
                region.base,
                RegionEntry {
                    slots,
                    users: 1,
                    is_written: false,
                },
            );
        }
    }

    /// What a region holds. Unknown regions (never restored) seem empty.
    pub(super) fn slots(&self, region: Region) -> &[Slot] {
        match self.entries.get(&region.base) {
            Some(entry) if entry.slots.len() == region.length as usize => &entry.slots,
            _ => &[],
        }
    }

    /// Counts one more user of a region; false if it is not known (the empty region is not).
    pub(super) fn acquire(&mut self, region: Region) -> bool {
        match self.entries.get_mut(&region.base) {
            Some(entry) if entry.slots.len() == region.length as usize => {
                entry.users += 1;
                true
            }
            _ => false,
        }
    }

    /// Counts one user less of a region. Tells whether packets may still read it, though it has no
    /// user left: its room is to be freed after a while ([`Self::free`]).
    pub(super) fn release(&mut self, region: Region) -> bool {
        match self.remove_user(region) {
            Some(entry) if entry.is_written => true,
            Some(_) => {
                self.slots.free(region);
                false
            }
            None => false,
        }
    }

    /// The entry of a region that has lost its last user.
    fn remove_user(&mut self, region: Region) -> Option<RegionEntry> {
        let entry = self.entries.get_mut(&region.base)?;
        if entry.slots.len() != region.length as usize {
            return None;
        }
        entry.users -= 1;
        if entry.users > 0 {
            None
        } else {
            self.entries.remove(&region.base)
        }
    }

    /// Writes the slots of a region unless they are.
    pub(super) fn write(&mut self, maps: &mut dyn Maps, region: Region) -> Result<(), MapError> {
        if let Some(entry) = self
            .entries
            .get_mut(&region.base)
            .filter(|entry| !entry.is_written)
        {
            maps.apply(&MapOp::SetSlots {
                base: region.base,
                slots: entry.slots.to_vec(),
            })?;
            entry.is_written = true;
        }
        Ok(())
    }

    /// All regions that are written.
    pub(super) fn written(&self) -> impl Iterator<Item = (u32, &[Slot])> {
        let written = self.entries.iter().filter(|(_, entry)| entry.is_written);
        written.map(|(base, entry)| (*base, &*entry.slots))
    }
}
