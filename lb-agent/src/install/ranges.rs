//! Sets of source ranges: what rows name does not change, so a Service whose ranges change gets a
//! new set.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::map;

use super::ids::Ids;
use crate::maps::{Capacity, MapError, MapOp, Maps};
use crate::network::{Family, Network};

/// Number of a set; 0 is none.
pub(super) type SetId = u32;

/// A set of networks that frontend rows name.
#[derive(Debug)]
struct RangeSet {
    /// What it shall hold.
    networks: BTreeSet<Network>,
    /// What it holds.
    written: BTreeSet<Network>,
    /// Frontend rows, and Services that keep it for their next rows.
    users: u32,
}

/// All sets.
#[derive(Debug)]
pub(super) struct RangeSets {
    sets: BTreeMap<SetId, RangeSet>,
    ids: Ids,
    /// Those without a user, to be removed.
    unused: BTreeSet<SetId>,
    /// Networks of each family that the maps hold.
    capacity: u32,
}

impl RangeSets {
    /// The sets as the maps have them: `rows`, and `named` by frontends.
    pub(super) fn restore(
        rows: &BTreeSet<(SetId, Network)>,
        named: impl Iterator<Item = SetId>,
        capacity: Capacity,
    ) -> Self {
        let mut written: BTreeMap<SetId, BTreeSet<Network>> = BTreeMap::new();
        for id in named.filter(|id| *id != 0) {
            // One that lets nobody in has no rows.
            written.entry(id).or_default();
        }
        for (id, network) in rows.iter().filter(|(id, _)| *id != 0) {
            written.entry(*id).or_default().insert(*network);
        }
        // A Service may have two while its rows change from one to the other.
        let ids = Ids::new(capacity.services.saturating_mul(2), written.keys().copied());
        let set = |(id, networks): (SetId, BTreeSet<Network>)| {
            let set = RangeSet {
                written: networks.clone(),
                networks,
                users: 0,
            };
            (id, set)
        };
        Self {
            unused: written.keys().copied().collect(),
            sets: written.into_iter().map(set).collect(),
            ids,
            capacity: capacity.source_ranges,
        }
    }

    /// What a set shall hold; `None` if there is no such set.
    pub(super) fn networks(&self, id: SetId) -> Option<&BTreeSet<Network>> {
        self.sets.get(&id).map(|set| &set.networks)
    }

    /// Whether the maps hold a set as it shall be.
    pub(super) fn is_written(&self, id: SetId) -> bool {
        self.sets.get(&id).is_some_and(|set| set.networks == set.written)
    }

    /// Makes room for a set; the caller is its first user.
    pub(super) fn allocate(&mut self, networks: BTreeSet<Network>) -> Result<SetId, MapError> {
        for family in Family::ALL {
            let of_family = |networks: &BTreeSet<Network>| {
                let networks = networks.iter();
                networks.filter(|network| network.family() == family).count()
            };
            let held: usize = self.sets.values().map(|set| of_family(&set.networks)).sum();
            let added = of_family(&networks);
            if added > 0 && held + added > self.capacity as usize {
                return Err(self.full(family));
            }
        }
        let id = self.ids.allocate().ok_or_else(|| self.full(Family::V4))?;
        let set = RangeSet {
            networks,
            written: BTreeSet::new(),
            users: 1,
        };
        self.sets.insert(id, set);
        Ok(id)
    }

    fn full(&self, family: Family) -> MapError {
        MapError::Full {
            map: match family {
                Family::V4 => map::SOURCE_RANGES4,
                Family::V6 => map::SOURCE_RANGES6,
            },
            capacity: self.capacity,
            flag: "--max-source-ranges",
        }
    }

    /// Counts one more user of a set.
    pub(super) fn acquire(&mut self, id: SetId) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users += 1;
            self.unused.remove(&id);
        }
    }

    /// Counts one user less of a set.
    pub(super) fn release(&mut self, id: SetId) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users -= 1;
            if set.users == 0 {
                self.unused.insert(id);
            }
        }
    }

    /// Writes what a set shall hold and does not yet.
    pub(super) fn write(&mut self, maps: &mut dyn Maps, id: SetId) -> Result<(), MapError> {
        let Some(set) = self.sets.get_mut(&id) else {
            return Ok(());
        };
        for network in set.networks.difference(&set.written.clone()) {
            let operation = MapOp::AddSourceRange {
                set: id,
                network: *network,
            };
            maps.apply(&operation)?;
            set.written.insert(*network);
        }
        Ok(())
    }

    /// Deletes a set without a user, and says which; `None` if there is none. Its id is still
    /// taken.
    pub(super) fn delete_unused(&mut self, maps: &mut dyn Maps) -> Result<Option<SetId>, MapError> {
        let Some(id) = self.unused.first().copied() else {
            return Ok(None);
        };
        if let Some(set) = self.sets.get_mut(&id) {
            while let Some(network) = set.written.first().copied() {
                maps.apply(&MapOp::DeleteSourceRange { set: id, network })?;
                set.written.remove(&network);
            }
        }
        self.unused.remove(&id);
        self.sets.remove(&id);
        Ok(Some(id))
    }

    /// Gives the id of a deleted set back.
    pub(super) fn free(&mut self, id: SetId) {
        self.ids.release(id);
    }

    /// All rows that are written.
    pub(super) fn written(&self) -> impl Iterator<Item = (SetId, Network)> {
        let sets = self.sets.iter();
        sets.flat_map(|(id, set)| set.written.iter().map(|network| (*id, *network)))
    }
}
