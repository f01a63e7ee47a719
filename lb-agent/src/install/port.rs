//! What one port of a Service has in the maps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use lb_common::layout::{BackendId, Region, ServiceId, Slot};

use super::tables::{Context, Tables, index};
use crate::desired::{DesiredBackend, DesiredPort, NamespacedName, PortName, TrafficPolicy};
use crate::maglev;
use crate::maps::{Backend, BackendState, Family, FrontendKey, MapError};

/// What a port has: rows, ids and regions. Owned by a Service, or found in the maps after a start.
#[derive(Debug, Default)]
pub(super) struct Port {
    /// Whose it is.
    pub(super) owner: Option<NamespacedName>,
    /// Frontend rows it wrote; another port of the Service may have taken one over since.
    pub(super) frontends: Vec<FrontendKey>,
    /// By family.
    pub(super) families: [PortFamily; 2],
}

/// What a port has of one family.
#[derive(Debug, Default)]
pub(super) struct PortFamily {
    /// Its backends, sorted by address. A row may be still to be written.
    pub(super) members: Vec<(SocketAddr, BackendId)>,
    /// Regions that its next frontend rows name. It counts as a user of each.
    pub(super) cluster: Region,
    /// See `cluster`; it may be the same one.
    pub(super) local: Region,
    /// See `cluster`: what clients outside choose from at all addresses but cluster IPs.
    pub(super) maglev: Region,
}

/// What a port asks for of one family.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Order<'a> {
    /// Its backends, sorted by address.
    pub(super) backends: &'a [DesiredBackend],
    /// Which of them the Maglev table names; `None`: there is no table.
    maglev: Option<TrafficPolicy>,
}

/// What is to be reserved for one family of a port.
#[derive(Debug)]
pub(super) struct FamilyPlan {
    /// Number of backends that get a row.
    pub(super) added: usize,
    pub(super) cluster: Want,
    pub(super) local: Want,
    pub(super) maglev: Want,
    /// What the Maglev table holds: positions among the backends that it names.
    table: Vec<u32>,
}

/// What becomes of a region.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want {
    /// It holds what it shall.
    Keep,
    /// It becomes the cluster's, which holds the same.
    Cluster,
    /// It is replaced by one with so many slots.
    New(usize),
    /// It is replaced by this one.
    Allocated(Region),
}

/// What the maps call a port: `NAMESPACE/NAME/PORT/PROTOCOL`.
pub(super) fn full_name(service: &NamespacedName, port: &PortName) -> String {
    let PortName { name, protocol } = port;
    format!("{service}/{name}/{protocol}")
}

impl<'a> Order<'a> {
    /// What a port gets of one family: nothing, unless it has a frontend that could name it.
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
        // Sorted: IPv4 comes first.
        let (of_v4, of_v6) = port
            .backends
            .split_at(port.backends.partition_point(|backend| backend.address.is_ipv4()));
        Self {
            backends: match family {
                Family::V4 => of_v4,
                Family::V6 => of_v6,
            },
            // A Service has one policy for all of them.
            maglev: frontends.find_map(|frontend| frontend.external_policy()),
        }
    }

    /// The backends that clients see; `None`: there are no such clients.
    fn seen(&self, policy: Option<TrafficPolicy>) -> impl Iterator<Item = &'a DesiredBackend> + use<'a> {
        let backends = self.backends.iter();
        backends.filter(move |backend| policy.is_some_and(|policy| backend.is_in(policy)))
    }
}

impl PortFamily {
    /// Backends, sorted by address, and their ids; `None` for those that have no row yet.
    fn with_ids<'a, B: IntoIterator<Item = &'a DesiredBackend>>(
        &self,
        backends: B,
    ) -> impl Iterator<Item = (&'a DesiredBackend, Option<BackendId>)> + use<'_, 'a, B> {
        // Both are sorted: walking along both is much less work than a search for each.
        let mut members = self.members.iter().peekable();
        backends.into_iter().map(move |backend| {
            while members.next_if(|(member, _)| *member < backend.address).is_some() {}
            let found = members.next_if(|(member, _)| *member == backend.address);
            (backend, found.map(|(_, id)| *id))
        })
    }

    /// What has to be reserved for an order.
    pub(super) fn plan(&self, tables: &Tables, family: Family, order: &Order<'_>) -> FamilyPlan {
        let backends = order.backends;
        let added = self.with_ids(backends).filter(|(_, id)| id.is_none()).count();
        let slots = |policy| self.slots(tables, family, order, policy);
        let cluster = plan_region(tables, self.cluster, &slots(Some(TrafficPolicy::Cluster)));
        let local = match backends
            .iter()
            .all(|backend| backend.in_cluster == backend.in_local)
        {
            true => Want::Cluster,
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

    /// The slots that name the backends that clients see; `None` for those that have no row yet.
    fn slots(
        &self,
        tables: &Tables,
        family: Family,
        order: &Order<'_>,
        policy: Option<TrafficPolicy>,
    ) -> Vec<Option<Slot>> {
        self.with_ids(order.seen(policy))
            .map(|(_, id)| Some(slot(tables, family, id?)))
            .collect()
    }

    /// Reserves ids and takes the planned regions. False if an id is missing, which the plan rules out.
    pub(super) fn reserve(
        &mut self,
        tables: &mut Tables,
        order: &Order<'_>,
        (family, plan): (Family, &FamilyPlan),
        now: Instant,
    ) -> bool {
        let missing = self.with_ids(order.backends).filter(|(_, id)| id.is_none());
        let added: Vec<_> = missing
            .map_while(|(backend, _)| Some((backend.address, tables.allocate_backend(family)?)))
            .collect();
        let is_complete = added.len() == plan.added;
        self.members.reserve_exact(added.len());
        self.members.extend(added);
        self.members.sort();
        if !is_complete {
            return false;
        }
        let old = self.regions();
        if let Want::Allocated(region) = plan.cluster {
            let slots = self.slots(tables, family, order, Some(TrafficPolicy::Cluster));
            self.cluster = fill(tables, region, &slots);
        }
        match plan.local {
            Want::Allocated(region) => {
                let slots = self.slots(tables, family, order, Some(TrafficPolicy::Local));
                self.local = fill(tables, region, &slots);
            }
            Want::Cluster if self.local != self.cluster => {
                tables.acquire(self.cluster);
                self.local = self.cluster;
            }
            _ => {}
        }
        if let Want::Allocated(region) = plan.maglev {
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

    /// Its regions, empty ones included.
    pub(super) fn regions(&self) -> [Region; 3] {
        [self.cluster, self.local, self.maglev]
    }

    /// Writes what frontend rows will name: backends that are new or may take flows now, and the regions.
    pub(super) fn write(
        &self,
        tables: &mut Tables,
        context: &mut Context<'_>,
        (family, service): (Family, ServiceId),
        backends: &[DesiredBackend],
    ) -> Result<(), MapError> {
        let rows = self.with_ids(backends).filter_map(|(backend, id)| {
            let id = id?;
            let mut row = row(tables, service, id, backend);
            if let Some(old) = tables.backend(Family::of(row.address), id) {
                // The rows in use may name it until they are replaced; what they do not name is taken back then.
                if row.state == BackendState::Draining {
                    row.state = old.state;
                }
                row.in_cluster |= old.in_cluster;
                row.in_local |= old.in_local;
            }
            tables.is_news(family, id, &row).then_some((id, row))
        });
        let rows = rows.collect();
        tables.set_backends(context, family, rows)?;
        for region in self.regions() {
            tables.write_region(context, region)?;
        }
        Ok(())
    }

    /// Marks backends that are not wanted as gone, and those that shall take no new flows as draining.
    pub(super) fn clear(
        &mut self,
        tables: &mut Tables,
        context: &mut Context<'_>,
        (family, service): (Family, ServiceId),
        backends: &[DesiredBackend],
    ) -> Result<(), MapError> {
        let mut wanted = backends.iter().peekable();
        let mut changed = Vec::new();
        let mut result = Ok(());
        // Both are sorted.
        self.members.retain(|(address, id)| {
            while wanted.next_if(|backend| backend.address < *address).is_some() {}
            if let Some(backend) = wanted.next_if(|backend| backend.address == *address) {
                let row = row(tables, service, *id, backend);
                changed.extend(tables.is_news(family, *id, &row).then_some((*id, row)));
                return true;
            }
            if result.is_ok() {
                result = tables.remove_backend(context, family, *id);
            }
            result.is_err()
        });
        result?;
        tables.set_backends(context, family, changed)
    }
}

/// What becomes of `region`, which is to hold `slots`.
fn plan_region(tables: &Tables, region: Region, slots: &[Option<Slot>]) -> Want {
    let held = tables.slots(region).iter().map(|slot| Some(*slot));
    if held.eq(slots.iter().copied()) {
        Want::Keep
    } else {
        Want::New(slots.len())
    }
}

/// Says what `region` shall hold. All rows have been reserved.
fn fill(tables: &mut Tables, region: Region, slots: &[Option<Slot>]) -> Region {
    tables.fill_region(region, slots.iter().copied().flatten().collect());
    region
}

/// The entries of a Maglev table over the backends that `slots` name.
fn entries(table: &[u32], slots: &[Option<Slot>]) -> Vec<Option<Slot>> {
    let entry = |position: &u32| slots.get(*position as usize).copied().flatten();
    table.iter().map(entry).collect()
}

fn slot(tables: &Tables, family: Family, id: BackendId) -> Slot {
    Slot {
        backend: id,
        generation: tables.generation(family, id),
    }
}

fn row(tables: &Tables, service: ServiceId, id: BackendId, backend: &DesiredBackend) -> Backend {
    Backend {
        address: backend.address.ip(),
        port: backend.address.port(),
        state: if backend.is_active() {
            BackendState::Active
        } else {
            BackendState::Draining
        },
        local: backend.local,
        in_cluster: backend.in_cluster,
        in_local: backend.in_local,
        generation: tables.generation(Family::of(backend.address.ip()), id),
        service,
    }
}

impl Port {
    /// The part of one family.
    pub(super) fn family(&self, family: Family) -> &PortFamily {
        &self.families[index(family)]
    }
}
