//! Sets of source ranges. A set that rows name never changes, so a Service gets a new set when its
//! ranges change.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::map::FamilySpecs as _;
use lb_common::net::{Address4, Address6};

use super::ids::Ids;
use crate::maps::{Capacity, MapError, MapOp, Maps};
use crate::network::{Cidr, Family};

/// The number of a set. 0 means no set.
pub(super) type SetId = u32;

/// A set of networks that frontend rows name.
#[derive(Debug)]
struct RangeSet {
    /// The networks that it should contain.
    networks: BTreeSet<Cidr>,
    /// The networks that it contains.
    written: BTreeSet<Cidr>,
    /// Number of users: frontend rows, and Services that keep the set for their next rows.
    users: u32,
}

/// All sets.
#[derive(Debug)]
pub(super) struct RangeSets {
    sets: BTreeMap<SetId, RangeSet>,
    ids: Ids,
    /// Sets without users, to be removed.
    unused: BTreeSet<SetId>,
    /// The capacity of the maps, in networks of each family.
    capacity: u32,
}

impl RangeSets {
    /// Restores the sets from the maps: `rows`, and the sets `named` by frontends.
    pub(super) fn restore(
        rows: &BTreeSet<(SetId, Cidr)>,
        named: impl Iterator<Item = SetId>,
        capacity: Capacity,
    ) -> Self {
        let mut written: BTreeMap<SetId, BTreeSet<Cidr>> = BTreeMap::new();
        for id in named.filter(|id| *id != 0) {
            // A set that allows no client has no rows.
            written.entry(id).or_default();
        }
        for (id, network) in rows.iter().filter(|(id, _)| *id != 0) {
            written.entry(*id).or_default().insert(*network);
        }
        // A Service may have two sets while its rows change from one to the other.
        let ids = Ids::new(capacity.services.saturating_mul(2), written.keys().copied());
        let set = |(id, networks): (SetId, BTreeSet<Cidr>)| {
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

    /// The networks that a set should contain. `None` if there is no such set.
    pub(super) fn networks(&self, id: SetId) -> Option<&BTreeSet<Cidr>> {
        self.sets.get(&id).map(|set| &set.networks)
    }

    /// Whether the maps contain the set completely.
    pub(super) fn is_written(&self, id: SetId) -> bool {
        self.sets.get(&id).is_some_and(|set| set.networks == set.written)
    }

    /// Allocates a set. The caller becomes its first user.
    pub(super) fn allocate(&mut self, networks: BTreeSet<Cidr>) -> Result<SetId, MapError> {
        for family in Family::ALL {
            let of_family = |networks: &BTreeSet<Cidr>| {
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
                Family::V4 => Address4::SOURCE_RANGES.name,
                Family::V6 => Address6::SOURCE_RANGES.name,
            },
            capacity: self.capacity,
            flag: "--max-source-ranges",
        }
    }

    /// Adds a user of a set.
    pub(super) fn acquire(&mut self, id: SetId) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users += 1;
            self.unused.remove(&id);
        }
    }

    /// Removes a user of a set.
    pub(super) fn release(&mut self, id: SetId) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users -= 1;
            if set.users == 0 {
                self.unused.insert(id);
            }
        }
    }

    /// Writes the networks of a set that are not written yet.
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

    /// Deletes a set without users and returns its id, which stays allocated. `None` if there is no
    /// such set.
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

    /// Frees the id of a deleted set.
    pub(super) fn free(&mut self, id: SetId) {
        self.ids.release(id);
    }

    /// All written rows.
    pub(super) fn written(&self) -> impl Iterator<Item = (SetId, Cidr)> {
        let sets = self.sets.iter();
        sets.flat_map(|(id, set)| set.written.iter().map(|network| (*id, *network)))
    }
}
