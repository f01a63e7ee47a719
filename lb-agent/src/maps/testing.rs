//! Maps for tests: maps in memory, and maps whose writes fail.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::cidr;
use lb_common::layout::{Region, Slot, frontend_flags};
use lb_common::map::{self, FamilySpecs as _};
use lb_common::net::{Address4, Address6};

use super::{Backend, Capacity, MapError, MapImage, MapOp, Maps, regions};
use crate::network::Family;

/// Maps in memory.
#[derive(Clone, Debug)]
pub struct FakeMaps {
    capacity: Capacity,
    /// Everything that was written, including slots that no frontend names.
    written: MapImage,
    /// Every operation that succeeded, in order.
    pub log: Vec<MapOp>,
    /// The first write that changed something in use by a row.
    fault: Option<String>,
}

impl FakeMaps {
    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            written: MapImage::default(),
            log: Vec::new(),
            fault: None,
        }
    }

    /// The contents of the maps, for tests that corrupt them.
    pub fn rows_mut(&mut self) -> &mut MapImage {
        &mut self.written
    }

    /// Returns the first state that could break a packet: a change of source ranges in use, a
    /// frontend that names a slot that was never written, or a slot that names a backend that was
    /// never written.
    pub fn inconsistency(&self) -> Option<String> {
        self.fault.clone().or_else(|| self.wrong_region())
    }

    fn wrong_region(&self) -> Option<String> {
        self.written.frontends.iter().find_map(|(key, frontend)| {
            let backends = self.written.backends(Family::of(key.address()));
            let in_cluster: fn(&Backend) -> bool = |backend| backend.in_cluster;
            let in_local: fn(&Backend) -> bool = |backend| backend.in_local;
            let in_maglev = match frontend.flags & frontend_flags::OUTSIDE_LOCAL {
                0 => in_cluster,
                _ => in_local,
            };
            regions(frontend)
                .into_iter()
                .zip([in_cluster, in_local, in_maglev])
                .flat_map(|(region, is_named)| indices(region).map(move |index| (index, is_named)))
                .find_map(|(index, is_named)| {
                    let Some(slot) = self.written.slots.get(&index) else {
                        return Some(format!("{key} names slot {index}, which was never written"));
                    };
                    match backends.get(&slot.backend) {
                        None => Some(format!(
                            "{key} names backend {}, which was never written",
                            slot.backend
                        )),
                        // A row that was reused for another endpoint has a greater generation. A
                        // removed one has a state.
                        Some(backend) if backend.generation < slot.generation => Some(format!(
                            "{key} names backend {} before it was written",
                            slot.backend
                        )),
                        Some(backend)
                            if backend.generation == slot.generation
                                && backend.service != frontend.service =>
                        {
                            Some(format!("{key} names backend {} of another service", slot.backend))
                        }
                        Some(backend) if backend.generation == slot.generation && !is_named(backend) => Some(
                            format!("{key} names backend {}, whose flag is unset", slot.backend),
                        ),
                        Some(_) => None,
                    }
                })
        })
    }

    /// Sets that rows name must never change, so that packets see either the old or the new ranges.
    fn note_range_change(&mut self, set: u32) {
        // Service CIDRs may change at any time. No row names the set with this number.
        if set == cidr::SET {
            return;
        }
        let mut rows = self.written.frontends.iter();
        let named_by = rows.find(|(_, row)| row.source_ranges == set);
        let fault = named_by.map(|(key, _)| format!("{key} names source ranges {set}, which change"));
        self.fault = self.fault.take().or(fault);
    }

    fn full(&self, operation: &MapOp) -> Option<MapError> {
        match operation {
            MapOp::SetFrontend { key, .. } if !self.written.frontends.contains_key(key) => {
                let family = Family::of(key.address());
                let capacity = self.capacity.frontends;
                // Counting is slow, and not needed while both families together are below the
                // limit.
                let rows = match self.written.frontends.len() < capacity as usize {
                    true => 0,
                    false => self
                        .written
                        .frontends
                        .keys()
                        .filter(|other| Family::of(other.address()) == family)
                        .count(),
                };
                let map = match family {
                    Family::V4 => Address4::FRONTENDS.name,
                    Family::V6 => Address6::FRONTENDS.name,
                };
                (rows >= capacity as usize).then_some(MapError::Full {
                    map,
                    capacity,
                    flag: "--max-frontends",
                })
            }
            MapOp::SetBackend { id, .. } if *id == 0 || *id >= self.capacity.backends => {
                Some(MapError::Full {
                    map: Address4::BACKENDS.name,
                    capacity: self.capacity.backends,
                    flag: "--max-backends",
                })
            }
            MapOp::AddSourceRange { network, .. } => {
                let ranges = self.written.source_ranges.iter();
                let rows = ranges.filter(|(_, other)| other.family() == network.family());
                let capacity = self.capacity.source_ranges;
                (rows.count() >= capacity as usize).then_some(MapError::Full {
                    map: match network.family() {
                        Family::V4 => Address4::SOURCE_RANGES.name,
                        Family::V6 => Address6::SOURCE_RANGES.name,
                    },
                    capacity,
                    flag: "--max-source-ranges",
                })
            }
            MapOp::SetSlots { base, slots }
                if u64::from(*base) + slots.len() as u64 > u64::from(self.capacity.slots) =>
            {
                Some(MapError::Full {
                    map: map::SLOTS.name,
                    capacity: self.capacity.slots,
                    flag: "--max-slots",
                })
            }
            _ => None,
        }
    }
}

fn indices(region: Region) -> impl Iterator<Item = u32> {
    region.base..region.base.saturating_add(region.length)
}

fn set_slots(all: &mut BTreeMap<u32, Slot>, base: u32, slots: &[Slot]) {
    all.extend((base..).zip(slots.iter().copied()));
}

impl Maps for FakeMaps {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn apply(&mut self, operation: &MapOp) -> Result<(), MapError> {
        if let Some(error) = self.full(operation) {
            return Err(error);
        }
        match operation {
            MapOp::SetBackend { id, backend } => {
                let rows = match Family::of(backend.address) {
                    Family::V4 => &mut self.written.backends4,
                    Family::V6 => &mut self.written.backends6,
                };
                rows.insert(*id, *backend);
            }
            MapOp::SetSlots { base, slots } => set_slots(&mut self.written.slots, *base, slots),
            MapOp::SetFrontend { key, value } => {
                self.written.frontends.insert(*key, *value);
            }
            MapOp::AddSourceRange { set, network } => {
                self.note_range_change(*set);
                self.written.source_ranges.insert((*set, *network));
            }
            MapOp::DeleteSourceRange { set, network } => {
                self.note_range_change(*set);
                self.written.source_ranges.remove(&(*set, *network));
            }
            MapOp::DeleteFrontend { key } => {
                self.written.frontends.remove(key);
            }
            MapOp::SetName { service, name } => {
                self.written.names.insert(*service, name.clone());
            }
            MapOp::DeleteName { service } => {
                self.written.names.remove(service);
            }
        }
        self.log.push(operation.clone());
        Ok(())
    }

    fn image(&self) -> Result<MapImage, MapError> {
        let regions: BTreeSet<Region> = self.written.frontends.values().flat_map(regions).collect();
        let slots = regions
            .into_iter()
            .flat_map(indices)
            .filter_map(|index| Some((index, *self.written.slots.get(&index)?)));
        Ok(MapImage {
            slots: slots.collect(),
            ..self.written.clone()
        })
    }
}

/// Maps of which a percentage of the writes fails. The same seed makes the same writes fail.
#[derive(Clone, Debug)]
pub struct FaultyMaps<M> {
    /// The wrapped maps.
    pub inner: M,
    percent: u64,
    random: u64,
}

impl<M> FaultyMaps<M> {
    /// Makes `percent` of the writes to `inner` fail.
    pub fn new(inner: M, percent: u64, seed: u64) -> Self {
        Self {
            inner,
            percent,
            random: seed,
        }
    }

    /// SplitMix64. It is good enough to choose faults, and needs no dependency.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl<M: Maps> Maps for FaultyMaps<M> {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, operation: &MapOp) -> Result<(), MapError> {
        if self.next_random() % 100 >= self.percent {
            return self.inner.apply(operation);
        }
        if let MapOp::SetSlots { base, slots } = operation {
            // A bulk write may stop halfway.
            let part = slots[..slots.len() / 2].to_vec();
            self.inner.apply(&MapOp::SetSlots {
                base: *base,
                slots: part,
            })?;
        }
        Err(MapError::Kernel {
            map: "FAULTY",
            operation: format!("{operation:?}"),
            source: "this write fails on purpose".into(),
        })
    }

    fn image(&self) -> Result<MapImage, MapError> {
        self.inner.image()
    }
}
