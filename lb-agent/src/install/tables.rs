//! A mirror of the maps, and what of it is in use. The mirror changes only after a write succeeded.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use lb_common::cidr;
use lb_common::layout::{BackendId, Frontend, Region, ServiceId};

use super::backends::BackendTable;
use super::ids::Ids;
use super::ranges::{RangeSets, SetId};
use super::regions::Regions;
use crate::maps::{
    Backend, BackendState, Capacity, FrontendKey, MapError, MapImage, MapOp, Maps, regions, service_cidrs,
};
use crate::network::{Cidr, Family};

/// How long an id or region stays unused before it is reused. Packets that were in processing when
/// it was released are finished by then.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The maps to write to, and the current time.
pub(super) struct Context<'a> {
    pub(super) maps: &'a mut dyn Maps,
    pub(super) now: Instant,
}

/// Something that can be reused after [`GRACE`].
#[derive(Debug)]
enum Retired {
    Region(Region),
    Backend(Family, BackendId),
    Service(ServiceId),
    Ranges(SetId),
}

/// The mirror of the maps.
#[derive(Debug)]
pub(super) struct MapMirror {
    capacity: Capacity,
    frontends: HashMap<FrontendKey, Frontend>,
    /// Number of rows of each family.
    n_frontends: [usize; 2],
    regions: Regions,
    backends: [BackendTable; 2],
    ranges: RangeSets,
    /// Service CIDRs in effect.
    cidrs: BTreeSet<Cidr>,
    service_ids: Ids,
    /// The names of service ids.
    names: BTreeMap<ServiceId, String>,
    retired: VecDeque<(Instant, Retired)>,
}

/// The index of a family in arrays.
pub(super) fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl MapMirror {
    /// Restores the tables from the maps. `service_ids` (ascending) are in use.
    pub(super) fn restore(
        image: &MapImage,
        capacity: Capacity,
        service_ids: impl Iterator<Item = ServiceId>,
    ) -> Self {
        let backends =
            Family::ALL.map(|family| BackendTable::restore(image.backends(family), capacity.backends));
        let mut tables = Self {
            capacity,
            frontends: HashMap::with_capacity(image.frontends.len()),
            n_frontends: [0; 2],
            regions: Regions::new(capacity.slots),
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

    /// Restores a row. If its regions overlap others or exceed the array, another program has
    /// corrupted it. Such a row counts as missing. It is rewritten, or deleted by the next
    /// comparison.
    fn restore_frontend(&mut self, key: FrontendKey, value: Frontend, image: &MapImage) {
        for (position, region) in regions(&value).into_iter().enumerate() {
            if !self.regions.restore(region, image) {
                for restored in &regions(&value)[..position] {
                    self.regions.forget(*restored);
                }
                return;
            }
        }
        self.ranges.acquire(value.source_ranges);
        self.n_frontends[index(Family::of(key.address()))] += 1;
        self.frontends.insert(key, value);
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
            self.regions.acquire(region);
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

    /// The regions.
    pub(super) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// See [`Self::regions`].
    pub(super) fn regions_mut(&mut self) -> &mut Regions {
        &mut self.regions
    }

    /// Removes a user of a region. Without users, the region is freed after a while.
    pub(super) fn release_region(&mut self, region: Region, now: Instant) {
        if self.regions.release(region) {
            self.retired.push_back((now + GRACE, Retired::Region(region)));
        }
    }

    fn release_frontend(&mut self, row: Frontend, now: Instant) {
        for region in regions(&row) {
            self.release_region(region, now);
        }
        self.ranges.release(row.source_ranges);
    }

    // Backends.

    /// The backend rows of a family.
    pub(super) fn backends(&self, family: Family) -> &BackendTable {
        &self.backends[index(family)]
    }

    /// See [`Self::backends`].
    pub(super) fn backends_mut(&mut self, family: Family) -> &mut BackendTable {
        &mut self.backends[index(family)]
    }

    /// Removes the endpoint of a row.
    pub(super) fn remove_backend(
        &mut self,
        context: &mut Context<'_>,
        family: Family,
        id: BackendId,
    ) -> Result<(), MapError> {
        match self.backends(family).endpoint(id).copied() {
            Some(backend) => {
                let gone = Backend {
                    state: BackendState::Gone,
                    ..backend
                };
                self.backends_mut(family).write(context.maps, vec![(id, gone)])?;
                self.retired
                    .push_back((context.now + GRACE, Retired::Backend(family, id)));
            }
            None => self.backends_mut(family).free(id),
        }
        Ok(())
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

    /// Deletes the sets that no row names any more.
    pub(super) fn delete_unused_ranges(&mut self, context: &mut Context<'_>) -> Result<(), MapError> {
        while let Some(id) = self.ranges.delete_unused(context.maps)? {
            self.retired.push_back((context.now + GRACE, Retired::Ranges(id)));
        }
        Ok(())
    }

    // Service CIDRs.

    /// The Service CIDRs in effect.
    pub(super) fn cidrs(&self) -> &BTreeSet<Cidr> {
        &self.cidrs
    }

    pub(super) fn add_cidr(&mut self, context: &mut Context<'_>, network: Cidr) -> Result<(), MapError> {
        let set = cidr::SET;
        context.maps.apply(&MapOp::AddSourceRange { set, network })?;
        self.cidrs.insert(network);
        Ok(())
    }

    pub(super) fn delete_cidr(&mut self, context: &mut Context<'_>, network: Cidr) -> Result<(), MapError> {
        let set = cidr::SET;
        context.maps.apply(&MapOp::DeleteSourceRange { set, network })?;
        self.cidrs.remove(&network);
        Ok(())
    }

    /// All written rows of source ranges, including Service CIDRs.
    pub(super) fn written_ranges(&self) -> impl Iterator<Item = (SetId, Cidr)> {
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

    /// Writes the name of an id, unless it is written already.
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

    /// The names of all ids.
    pub(super) fn names(&self) -> &BTreeMap<ServiceId, String> {
        &self.names
    }

    // Time.

    /// Frees what has been out of use for long enough.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some((_, retired)) = self.retired.pop_front_if(|(due, _)| *due <= now) {
            match retired {
                Retired::Region(region) => self.regions.free(region),
                Retired::Backend(family, id) => self.backends_mut(family).free(id),
                Retired::Service(id) => self.service_ids.release(id),
                Retired::Ranges(id) => self.ranges.free(id),
            }
        }
    }

    /// When the next item is freed.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.retired.front().map(|(due, _)| *due)
    }
}
