//! Regions: the parts of the slots array that frontends name, their contents and their users.

use std::collections::HashMap;

use lb_common::layout::{Region, Slot};

use super::slots::SlotAllocator;
use crate::maps::{MapError, MapImage, MapOp, Maps};

/// The contents and users of a region.
#[derive(Debug)]
struct RegionEntry {
    slots: Box<[Slot]>,
    /// Number of users: frontend rows, and ports that keep the region for their next rows.
    users: u32,
    is_written: bool,
}

/// All regions that are not empty.
#[derive(Debug)]
pub(super) struct Regions {
    /// The regions, by their first slot.
    entries: HashMap<u32, RegionEntry>,
    slots: SlotAllocator,
}

impl Regions {
    /// No regions, in an array with this number of slots.
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            entries: HashMap::new(),
            slots: SlotAllocator::new(capacity),
        }
    }

    /// Adds a user of a region that was found in the maps. Returns false if the region overlaps
    /// another one or exceeds the array.
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

    /// Undoes [`Self::restore`]. No packet reads the region, so it is freed immediately.
    pub(super) fn forget(&mut self, region: Region) {
        if self.remove_user(region).is_some() {
            self.slots.free(region);
        }
    }

    /// Allocates a region. [`Self::fill`] sets its slots.
    pub(super) fn allocate(&mut self, length: usize) -> Option<Region> {
        self.slots.allocate(u32::try_from(length).ok()?)
    }

    /// Frees a region that was never filled, or that no packet reads any more.
    pub(super) fn free(&mut self, region: Region) {
        self.slots.free(region);
    }

    /// Sets the slots of a region. The caller becomes its first user.
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

    /// The slots of a region. Empty for regions that were never restored.
    pub(super) fn slots(&self, region: Region) -> &[Slot] {
        match self.entries.get(&region.base) {
            Some(entry) if entry.slots.len() == region.length as usize => &entry.slots,
            _ => &[],
        }
    }

    /// Adds a user of a region. Returns false for unknown regions and for the empty region.
    pub(super) fn acquire(&mut self, region: Region) -> bool {
        match self.entries.get_mut(&region.base) {
            Some(entry) if entry.slots.len() == region.length as usize => {
                entry.users += 1;
                true
            }
            _ => false,
        }
    }

    /// Removes a user of a region. Returns true if it was the last one and packets may still read
    /// the region. The caller must free it after a while ([`Self::free`]).
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

    /// Removes a user of a region. Returns the region's entry if this was the last user.
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

    /// Writes the slots of a region, unless they are written already.
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

    /// All written regions.
    pub(super) fn written(&self) -> impl Iterator<Item = (u32, &[Slot])> {
        let written = self.entries.iter().filter(|(_, entry)| entry.is_written);
        written.map(|(base, entry)| (*base, &*entry.slots))
    }
}
