//! The demand of a port, and the reservations for it before anything is written.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use lb_common::layout::{BackendId, Region, ServiceId, Slot};

use super::port::{InstalledFamily, Member};
use super::tables::MapMirror;
use crate::desired::{DesiredBackend, DesiredPort, TrafficPolicy};
use crate::maglev;
use crate::maps::FrontendKey;
use crate::network::Family;

/// The demand of a port for one family.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FamilyDemand<'a> {
    /// Its backends, sorted by address.
    pub(super) backends: &'a [DesiredBackend],
    /// The backends that the Maglev table names. `None` if there is no table.
    maglev: Option<TrafficPolicy>,
}

/// The reservation for one family of a port.
#[derive(Debug)]
pub(super) struct FamilyPlan {
    /// Number of backends that get a new row.
    pub(super) added: usize,
    pub(super) cluster: RegionPlan,
    pub(super) local: RegionPlan,
    pub(super) maglev: RegionPlan,
    /// The contents of the Maglev table: positions among the backends that it names.
    table: Vec<u32>,
}

/// How a region changes.
#[derive(Clone, Copy, Debug)]
pub(super) enum RegionPlan {
    /// It stays, since its contents are right.
    Keep,
    /// It is replaced by the cluster region, which has the same contents.
    Cluster,
    /// It is replaced by a new one with this number of slots.
    New(usize),
    /// It is replaced by this one.
    Allocated(Region),
}

impl<'a> FamilyDemand<'a> {
    /// The demand of a port for one family. Empty, unless a frontend of that family could name its
    /// backends.
    pub(super) fn of(
        claims: &HashMap<FrontendKey, ServiceId>,
        id: ServiceId,
        port: &'a DesiredPort,
        family: Family,
    ) -> Self {
        let mut frontends = port
            .frontends
            .iter()
            .filter(|frontend| Family::of(frontend.key.address()) == family)
            .filter(|frontend| claims.get(&frontend.key) == Some(&id))
            .peekable();
        if frontends.peek().is_none() {
            return Self::default();
        }
        // The backends are sorted, and IPv4 comes first.
        let (of_v4, of_v6) = port
            .backends
            .split_at(port.backends.partition_point(|backend| backend.address.is_ipv4()));
        Self {
            backends: match family {
                Family::V4 => of_v4,
                Family::V6 => of_v6,
            },
            // A Service has the same policy for all of its external frontends.
            maglev: frontends.find_map(|frontend| frontend.external_policy()),
        }
    }

    /// The backends for clients with this policy. `None` if there are no such clients.
    fn seen(&self, policy: Option<TrafficPolicy>) -> impl Iterator<Item = &'a DesiredBackend> + use<'a> {
        let backends = self.backends.iter();
        backends.filter(move |backend| policy.is_some_and(|policy| backend.is_in(policy)))
    }
}

impl InstalledFamily {
    /// Plans the reservation for a demand.
    pub(super) fn plan(&self, tables: &MapMirror, family: Family, order: &FamilyDemand<'_>) -> FamilyPlan {
        let backends = order.backends;
        let added = self.with_ids(backends).filter(|(_, id)| id.is_none()).count();
        let slots = |policy| self.slots(tables, family, order, policy);
        let cluster = plan_region(tables, self.cluster, &slots(Some(TrafficPolicy::Cluster)));
        let local = match backends
            .iter()
            .all(|backend| backend.in_cluster == backend.in_local)
        {
            true => RegionPlan::Cluster,
            false => plan_region(tables, self.local, &slots(Some(TrafficPolicy::Local))),
        };
        let addresses: Vec<SocketAddr> = order.seen(order.maglev).map(|backend| backend.address).collect();
        let table = maglev::table(&addresses);
        let maglev = plan_region(tables, self.maglev, &entries(&table, &slots(order.maglev)));
        FamilyPlan {
            added,
            cluster,
            local,
            maglev,
            table,
        }
    }

    /// The slots of the backends for clients with this policy. `None` for backends without a row.
    fn slots(
        &self,
        tables: &MapMirror,
        family: Family,
        order: &FamilyDemand<'_>,
        policy: Option<TrafficPolicy>,
    ) -> Vec<Option<Slot>> {
        self.with_ids(order.seen(policy))
            .map(|(_, id)| Some(slot(tables, family, id?)))
            .collect()
    }

    /// Allocates ids and takes the planned regions. Returns false if ids run out, which the plan
    /// prevents.
    pub(super) fn reserve(
        &mut self,
        tables: &mut MapMirror,
        order: &FamilyDemand<'_>,
        (family, plan): (Family, &FamilyPlan),
        now: Instant,
    ) -> bool {
        let missing = self.with_ids(order.backends).filter(|(_, id)| id.is_none());
        let added: Vec<_> = missing
            .map_while(|(backend, _)| {
                Some(Member {
                    address: backend.address,
                    id: tables.backends_mut(family).allocate()?,
                    is_leaving: backend.leaving,
                    absent_until: None,
                })
            })
            .collect();
        let is_complete = added.len() == plan.added;
        self.members.reserve_exact(added.len());
        self.members.extend(added);
        self.members.sort();
        if !is_complete {
            return false;
        }
        let old = self.regions();
        if let RegionPlan::Allocated(region) = plan.cluster {
            let slots = self.slots(tables, family, order, Some(TrafficPolicy::Cluster));
            self.cluster = fill(tables, region, &slots);
        }
        match plan.local {
            RegionPlan::Allocated(region) => {
                let slots = self.slots(tables, family, order, Some(TrafficPolicy::Local));
                self.local = fill(tables, region, &slots);
            }
            RegionPlan::Cluster if self.local != self.cluster => {
                tables.regions_mut().acquire(self.cluster);
                self.local = self.cluster;
            }
            _ => {}
        }
        if let RegionPlan::Allocated(region) = plan.maglev {
            let slots = self.slots(tables, family, order, order.maglev);
            self.maglev = fill(tables, region, &entries(&plan.table, &slots));
        }
        for (old, new) in old.into_iter().zip(self.regions()) {
            if old != new {
                tables.release_region(old, now);
            }
        }
        true
    }
}

/// Decides how `region` changes if it must contain `slots`.
fn plan_region(tables: &MapMirror, region: Region, slots: &[Option<Slot>]) -> RegionPlan {
    let held = tables.regions().slots(region).iter().map(|slot| Some(*slot));
    if held.eq(slots.iter().copied()) {
        RegionPlan::Keep
    } else {
        RegionPlan::New(slots.len())
    }
}

/// Sets the contents of `region`. All rows are already reserved.
fn fill(tables: &mut MapMirror, region: Region, slots: &[Option<Slot>]) -> Region {
    tables
        .regions_mut()
        .fill(region, slots.iter().copied().flatten().collect());
    region
}

/// The entries of a Maglev table over the backends that `slots` name.
fn entries(table: &[u32], slots: &[Option<Slot>]) -> Vec<Option<Slot>> {
    let entry = |position: &u32| slots.get(*position as usize).copied().flatten();
    table.iter().map(entry).collect()
}

fn slot(tables: &MapMirror, family: Family, id: BackendId) -> Slot {
    Slot {
        backend: id,
        generation: tables.backends(family).generation(id),
    }
}
