//! What is in the maps, and what of them is in use. Memory follows the maps: it changes after a write succeeded.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use lb_common::cidr;
use lb_common::layout::{BackendId, Frontend, Region, ServiceId, Slot};

use super::ids::Ids;
use super::ranges::{RangeSets, SetId};
use super::slots::SlotAllocator;
use crate::maps::{
    Backend, BackendState, Capacity, FrontendKey, MapError, MapImage, MapOp, Maps, regions, service_cidrs,
};
use crate::network::{Family, Network};

/// How long something stays unused before it is used again: a packet that was being handled when it went out of use
/// has long been handled by then.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The maps to write to, and the time.
pub(super) struct Context<'a> {
    pub(super) maps: &'a mut dyn Maps,
    pub(super) now: Instant,
}

/// A part of the slots array that frontends name.
#[derive(Debug)]
struct RegionEntry {
    slots: Box<[Slot]>,
    /// Frontend rows, and ports that keep it for their next rows.
    users: u32,
    is_written: bool,
}

/// The rows of one family of backends.
#[derive(Debug)]
pub(super) struct BackendTable {
    /// What each row holds; those of free ids are gone or were never written.
    rows: Rows,
    ids: Ids,
}

/// Backend rows by their ids, of which the lowest are in use.
#[derive(Debug, Default)]
pub(super) struct Rows(Vec<Option<Backend>>);

impl Rows {
    /// A row that was ever written.
    pub(super) fn get(&self, id: BackendId) -> Option<&Backend> {
        self.0.get(id as usize)?.as_ref()
    }

    /// All rows that were ever written.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BackendId, &Backend)> {
        (0..)
            .zip(&self.0)
            .filter_map(|(id, row)| Some((id, row.as_ref()?)))
    }

    fn set(&mut self, id: BackendId, row: Backend) {
        let position = id as usize;
        if position >= self.0.len() {
            self.0.resize(position + 1, None);
        }
        self.0[position] = Some(row);
    }
}

/// Something that is free after [`GRACE`].
#[derive(Debug)]
enum Retired {
    Region(Region),
    Backend(Family, BackendId),
    Service(ServiceId),
    Ranges(SetId),
}

/// The mirror of the maps.
#[derive(Debug)]
pub(super) struct Tables {
    capacity: Capacity,
    frontends: HashMap<FrontendKey, Frontend>,
    /// Rows of each family.
    n_frontends: [usize; 2],
    regions: HashMap<u32, RegionEntry>,
    slots: SlotAllocator,
    backends: [BackendTable; 2],
    ranges: RangeSets,
    /// Service CIDRs in force.
    cidrs: BTreeSet<Network>,
    service_ids: Ids,
    /// What the ids stand for.
    names: BTreeMap<ServiceId, String>,
    retired: VecDeque<(Instant, Retired)>,
}

/// Index of a family in arrays.
pub(super) fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl Tables {
    /// The tables as the maps have them. `service_ids` (ascending) are in use.
    pub(super) fn restore(
        image: &MapImage,
        capacity: Capacity,
        service_ids: impl Iterator<Item = ServiceId>,
    ) -> Self {
        let backends = Family::ALL.map(|family| {
            let found = image.backends(family);
            let live = found
                .iter()
                .filter(|(_, backend)| backend.state != BackendState::Gone)
                .map(|(id, _)| *id);
            let ids = Ids::new(capacity.backends, live);
            let mut rows = Rows::default();
            for (id, row) in found {
                rows.set(*id, *row);
            }
            BackendTable { ids, rows }
        });
        let mut tables = Self {
            capacity,
            frontends: HashMap::with_capacity(image.frontends.len()),
            n_frontends: [0; 2],
            regions: HashMap::new(),
            slots: SlotAllocator::new(capacity.slots),
            backends,
            ranges: RangeSets::restore(
                &image.source_ranges,
                image.frontends.values().map(|row| row.source_ranges),
                capacity,
            ),
            cidrs: service_cidrs(&image.source_ranges).collect(),
            service_ids: Ids::new(capacity.services, service_ids),
            names: image.names.clone(),
            retired: VecDeque::new(),
        };
        for (key, value) in &image.frontends {
            tables.restore_frontend(*key, *value, image);
        }
        tables
    }

    /// A row whose regions overlap another one's or the end of the array was damaged from outside: it counts as
    /// missing, so it is written again, or deleted by the next comparison.
    fn restore_frontend(&mut self, key: FrontendKey, value: Frontend, image: &MapImage) {
        for (position, region) in regions(&value).into_iter().enumerate() {
            if !self.restore_region(region, image) {
                for restored in &regions(&value)[..position] {
                    // Nobody reads it: no grace is needed, and there is no clock here.
                    self.drop_region(*restored);
                }
                return;
            }
        }
        self.ranges.acquire(value.source_ranges);
        self.n_frontends[index(Family::of(key.address()))] += 1;
        self.frontends.insert(key, value);
    }

    fn restore_region(&mut self, region: Region, image: &MapImage) -> bool {
        if region.length == 0 || self.acquire(region) {
            return true;
        }
        if !self.slots.take(region) {
            return false;
        }
        let slots = (region.base..region.base + region.length)
            .map(|index| image.slots.get(&index).copied().unwrap_or_default())
            .collect();
        self.regions.insert(
            region.base,
            RegionEntry {
                slots,
                users: 1,
                is_written: true,
            },
        );
        true
    }

    fn drop_region(&mut self, region: Region) {
        if self.remove_user(region).is_some() {
            self.slots.free(region);
        }
    }

    pub(super) fn capacity(&self) -> Capacity {
        self.capacity
    }

    // Frontends.

    pub(super) fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key)
    }

    pub(super) fn frontends(&self) -> &HashMap<FrontendKey, Frontend> {
        &self.frontends
    }

    pub(super) fn n_frontends(&self, family: Family) -> usize {
        self.n_frontends[index(family)]
    }

    pub(super) fn set_frontend(
        &mut self,
        context: &mut Context<'_>,
        key: FrontendKey,
        value: Frontend,
    ) -> Result<(), MapError> {
        if self.frontends.get(&key) == Some(&value) {
            return Ok(());
        }
        context.maps.apply(&MapOp::SetFrontend { key, value })?;
        for region in regions(&value) {
            self.acquire(region);
        }
        self.ranges.acquire(value.source_ranges);
        match self.frontends.insert(key, value) {
            Some(old) => self.release_frontend(old, context.now),
            None => self.n_frontends[index(Family::of(key.address()))] += 1,
        }
        Ok(())
    }

    pub(super) fn delete_frontend(
        &mut self,
        context: &mut Context<'_>,
        key: FrontendKey,
    ) -> Result<(), MapError> {
        let Some(old) = self.frontends.get(&key).copied() else {
            return Ok(());
        };
        context.maps.apply(&MapOp::DeleteFrontend { key })?;
        self.frontends.remove(&key);
        self.n_frontends[index(Family::of(key.address()))] -= 1;
        self.release_frontend(old, context.now);
        Ok(())
    }

    // Regions.

    /// Finds room for a region; its slots follow with [`Self::fill_region`].
    pub(super) fn allocate_region(&mut self, length: usize) -> Option<Region> {
        self.slots.allocate(u32::try_from(length).ok()?)
    }

    /// Gives back a region that was allocated and not filled.
    pub(super) fn free_region(&mut self, region: Region) {
        self.slots.free(region);
    }

    /// Says what a region shall hold, and makes the caller its first user.
    pub(super) fn fill_region(&mut self, region: Region, slots: Box<[Slot]>) {
        if region.length > 0 {
            self.regions.insert(
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
        match self.regions.get(&region.base) {
            Some(entry) if entry.slots.len() == region.length as usize => &entry.slots,
            _ => &[],
        }
    }

    /// Counts one more user of a region; false if it is not known (the empty region is not).
    pub(super) fn acquire(&mut self, region: Region) -> bool {
        match self.regions.get_mut(&region.base) {
            Some(entry) if entry.slots.len() == region.length as usize => {
                entry.users += 1;
                true
            }
            _ => false,
        }
    }

    /// Counts one user less of a region. Without a user it is free after a while.
    pub(super) fn release_region(&mut self, region: Region, now: Instant) {
        match self.remove_user(region) {
            Some(entry) if entry.is_written => {
                self.retired.push_back((now + GRACE, Retired::Region(region)));
            }
            Some(_) => self.slots.free(region),
            None => {}
        }
    }

    fn release_frontend(&mut self, row: Frontend, now: Instant) {
        for region in regions(&row) {
            self.release_region(region, now);
        }
        self.ranges.release(row.source_ranges);
    }

    /// The entry of a region that has lost its last user.
    fn remove_user(&mut self, region: Region) -> Option<RegionEntry> {
        let entry = self.regions.get_mut(&region.base)?;
        if entry.slots.len() != region.length as usize {
            return None;
        }
        entry.users -= 1;
        if entry.users > 0 {
            None
        } else {
            self.regions.remove(&region.base)
        }
    }

    /// Writes the slots of a region unless they are.
    pub(super) fn write_region(&mut self, context: &mut Context<'_>, region: Region) -> Result<(), MapError> {
        if let Some(entry) = self
            .regions
            .get_mut(&region.base)
            .filter(|entry| !entry.is_written)
        {
            context.maps.apply(&MapOp::SetSlots {
                base: region.base,
                slots: entry.slots.to_vec(),
            })?;
            entry.is_written = true;
        }
        Ok(())
    }

    /// All regions that are written.
    pub(super) fn written_regions(&self) -> impl Iterator<Item = (u32, &[Slot])> {
        let written = self.regions.iter().filter(|(_, entry)| entry.is_written);
        written.map(|(base, entry)| (*base, &*entry.slots))
    }

    // Backends.

    /// What a row holds, if an endpoint.
    pub(super) fn backend(&self, family: Family, id: BackendId) -> Option<&Backend> {
        let row = self.backends(family).get(id);
        row.filter(|backend| backend.state != BackendState::Gone)
    }

    /// All rows.
    pub(super) fn backends(&self, family: Family) -> &Rows {
        &self.backends[index(family)].rows
    }

    /// The generation of the endpoint that a row holds, or of the next one if it holds none.
    pub(super) fn generation(&self, family: Family, id: BackendId) -> u32 {
        match self.backends(family).get(id) {
            None => 1,
            Some(backend) if backend.state == BackendState::Gone => backend.generation.wrapping_add(1).max(1),
            Some(backend) => backend.generation,
        }
    }

    pub(super) fn available_backends(&self, family: Family) -> usize {
        self.backends[index(family)].ids.available()
    }

    pub(super) fn allocate_backend(&mut self, family: Family) -> Option<BackendId> {
        self.backends[index(family)].ids.allocate()
    }

    /// Gives back an id that was allocated and not written.
    pub(super) fn free_backend(&mut self, family: Family, id: BackendId) {
        self.backends[index(family)].ids.release(id);
    }

    /// Whether a row is not written yet.
    pub(super) fn is_news(&self, family: Family, id: BackendId, row: &Backend) -> bool {
        self.backends(family).get(id) != Some(row)
    }

    /// Writes rows.
    pub(super) fn set_backends(
        &mut self,
        context: &mut Context<'_>,
        family: Family,
        rows: Vec<(BackendId, Backend)>,
    ) -> Result<(), MapError> {
        let table = &mut self.backends[index(family)];
        let result = context.maps.set_backends(&rows);
        let written = result
            .as_ref()
            .map_or_else(|(written, _)| *written, |()| rows.len());
        for (id, row) in rows.into_iter().take(written) {
            table.rows.set(id, row);
        }
        result.map_err(|(_, error)| error)
    }

    /// Takes a row out of use.
    pub(super) fn remove_backend(
        &mut self,
        context: &mut Context<'_>,
        family: Family,
        id: BackendId,
    ) -> Result<(), MapError> {
        match self.backend(family, id).copied() {
            Some(backend) => {
                let gone = Backend {
                    state: BackendState::Gone,
                    ..backend
                };
                self.set_backends(context, family, vec![(id, gone)])?;
                self.retired
                    .push_back((context.now + GRACE, Retired::Backend(family, id)));
            }
            None => self.free_backend(family, id),
        }
        Ok(())
    }

    /// Takes note of a row that somebody else wrote, so that its next endpoint gets a new generation.
    pub(super) fn note_backend(&mut self, family: Family, id: BackendId, backend: Backend) {
        self.backends[index(family)].rows.set(id, backend);
    }

    // Source ranges.

    /// The sets of source ranges.
    pub(super) fn ranges(&self) -> &RangeSets {
        &self.ranges
    }

    /// See [`Self::ranges`].
    pub(super) fn ranges_mut(&mut self) -> &mut RangeSets {
        &mut self.ranges
    }

    /// Writes what a set shall hold and does not yet.
    pub(super) fn write_ranges(&mut self, context: &mut Context<'_>, id: SetId) -> Result<(), MapError> {
        let Some(set) = self.ranges.get_mut(id) else {
            return Ok(());
        };
        for network in set.networks.difference(&set.written.clone()) {
            let operation = MapOp::AddSourceRange {
                set: id,
                network: *network,
            };
            context.maps.apply(&operation)?;
            set.written.insert(*network);
        }
        Ok(())
    }

    /// Deletes the sets that nobody names any more.
    pub(super) fn delete_unused_ranges(&mut self, context: &mut Context<'_>) -> Result<(), MapError> {
        while let Some(id) = self.ranges.first_unused() {
            while let Some(network) = self
                .ranges
                .get_mut(id)
                .and_then(|set| set.written.first().copied())
            {
                context
                    .maps
                    .apply(&MapOp::DeleteSourceRange { set: id, network })?;
                if let Some(set) = self.ranges.get_mut(id) {
                    set.written.remove(&network);
                }
            }
            self.ranges.remove(id);
            self.retired.push_back((context.now + GRACE, Retired::Ranges(id)));
        }
        Ok(())
    }

    // Service CIDRs.

    /// Those in force.
    pub(super) fn cidrs(&self) -> &BTreeSet<Network> {
        &self.cidrs
    }

    pub(super) fn add_cidr(&mut self, context: &mut Context<'_>, network: Network) -> Result<(), MapError> {
        let set = cidr::SET;
        context.maps.apply(&MapOp::AddSourceRange { set, network })?;
        self.cidrs.insert(network);
        Ok(())
    }

    pub(super) fn delete_cidr(
        &mut self,
        context: &mut Context<'_>,
        network: Network,
    ) -> Result<(), MapError> {
        let set = cidr::SET;
        context.maps.apply(&MapOp::DeleteSourceRange { set, network })?;
        self.cidrs.remove(&network);
        Ok(())
    }

    /// All rows of source ranges that are written, the Service CIDRs included.
    pub(super) fn written_ranges(&self) -> impl Iterator<Item = (SetId, Network)> {
        let cidrs = self.cidrs.iter().map(|network| (cidr::SET, *network));
        self.ranges.written().chain(cidrs)
    }

    // Service ids.

    pub(super) fn allocate_service(&mut self) -> Option<ServiceId> {
        self.service_ids.allocate()
    }

    pub(super) fn retire_service(&mut self, id: ServiceId, now: Instant) {
        self.retired.push_back((now + GRACE, Retired::Service(id)));
    }

    /// Says what an id stands for, unless it is said.
    pub(super) fn set_name(
        &mut self,
        context: &mut Context<'_>,
        id: ServiceId,
        name: String,
    ) -> Result<(), MapError> {
        if self.names.get(&id) != Some(&name) {
            let operation = MapOp::SetName { service: id, name };
            context.maps.apply(&operation)?;
            if let MapOp::SetName { name, .. } = operation {
                self.names.insert(id, name);
            }
        }
        Ok(())
    }

    pub(super) fn delete_name(&mut self, context: &mut Context<'_>, id: ServiceId) -> Result<(), MapError> {
        if self.names.contains_key(&id) {
            context.maps.apply(&MapOp::DeleteName { service: id })?;
            self.names.remove(&id);
        }
        Ok(())
    }

    /// What all ids stand for.
    pub(super) fn names(&self) -> &BTreeMap<ServiceId, String> {
        &self.names
    }

    // Time.

    /// Makes available what went out of use long enough ago.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some((_, retired)) = self.retired.pop_front_if(|(due, _)| *due <= now) {
            match retired {
                Retired::Region(region) => self.slots.free(region),
                Retired::Backend(family, id) => self.free_backend(family, id),
                Retired::Service(id) => self.service_ids.release(id),
                Retired::Ranges(id) => self.ranges.free(id),
            }
        }
    }

    /// When something next becomes available.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.retired.front().map(|(due, _)| *due)
    }
}
