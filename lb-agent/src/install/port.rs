//! What one port of a Service has in the maps.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::layout::{BackendId, Region, ServiceId, Slot};

use super::tables::{Context, Tables, index};
use crate::desired::{DesiredBackend, DesiredPort, NamespacedName, PortName, TrafficPolicy};
use crate::maglev;
use crate::maps::{Backend, BackendState, FrontendKey, MapError};
use crate::network::Family;

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

/// A backend of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Member {
    /// Address and port of the endpoint.
    pub(super) address: SocketAddr,
    /// Its row, which may be still to be written.
    pub(super) id: BackendId,
    /// Whether it does not come back once it is missing.
    pub(super) is_leaving: bool,
    /// It is missing, and its row is kept for its connections until then.
    pub(super) absent_until: Option<Instant>,
}

/// What a port has of one family.
#[derive(Debug, Default)]
pub(super) struct PortFamily {
    /// Its backends, sorted by address, absent ones included.
    pub(super) members: Vec<Member>,
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
            while members
                .next_if(|member| member.address < backend.address)
                .is_some()
            {}
            let found = members.next_if(|member| member.address == backend.address);
            (backend, found.map(|member| member.id))
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
            .map_while(|(backend, _)| {
                Some(Member {
                    address: backend.address,
                    id: tables.allocate_backend(family)?,
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

    /// Its regions, which it has no more.
    pub(super) fn take_regions(&mut self) -> [Region; 3] {
        [&mut self.cluster, &mut self.local, &mut self.maglev].map(std::mem::take)
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

    /// Takes note of what the objects say of its backends: who is there again, and who does not come back. `ended` are
    /// addresses whose Pods have ended.
    pub(super) fn mark(&mut self, port: Option<&DesiredPort>, ended: &BTreeSet<IpAddr>) {
        for member in &mut self.members {
            let listed = port.and_then(|port| port.backend(member.address));
            let is_released = || port.is_some_and(|port| port.is_released(member.address));
            match listed {
                Some(backend) => member.appear(backend),
                None => member.is_leaving |= ended.contains(&member.address.ip()) || is_released(),
            }
        }
    }

    /// Marks backends that are not wanted as absent, or as gone if they do not come back or their time is over; and those
    /// that shall take no new flows as draining.
    pub(super) fn clear(
        &mut self,
        tables: &mut Tables,
        context: &mut Context<'_>,
        (family, service): (Family, ServiceId),
        backends: &[DesiredBackend],
        grace: Duration,
    ) -> Result<(), MapError> {
        let mut wanted = backends.iter().peekable();
        let mut changed = Vec::new();
        let mut result = Ok(());
        // Both are sorted.
        self.members.retain_mut(|member| {
            let Member { address, id, .. } = *member;
            while wanted.next_if(|backend| backend.address < address).is_some() {}
            let row = match wanted.next_if(|backend| backend.address == address) {
                Some(backend) => {
                    member.appear(backend);
                    Some(row(tables, service, id, backend))
                }
                None => tables
                    .backend(family, id)
                    .copied()
                    .filter(|_| member.outlives(context.now, grace))
                    .map(absent),
            };
            if let Some(row) = row {
                changed.extend(tables.is_news(family, id, &row).then_some((id, row)));
                return true;
            }
            if result.is_ok() {
                result = tables.remove_backend(context, family, id);
            }
            result.is_err()
        });
        result?;
        tables.set_backends(context, family, changed)
    }

    /// Removes backends whose absence has lasted until `now`; all absent ones without a time.
    pub(super) fn end_absences(
        &mut self,
        tables: &mut Tables,
        context: &mut Context<'_>,
        family: Family,
        now: Option<Instant>,
    ) -> Result<(), MapError> {
        let mut result = Ok(());
        self.members.retain(|member| {
            let is_over = |until: Instant| now.is_none_or(|now| until <= now);
            if result.is_err() || !member.absent_until.is_some_and(is_over) {
                return true;
            }
            result = tables.remove_backend(context, family, member.id);
            result.is_err()
        });
        result
    }

    /// When the first absence ends.
    pub(super) fn absent_until(&self) -> Option<Instant> {
        self.members.iter().filter_map(|member| member.absent_until).min()
    }
}

impl Member {
    /// An endpoint that was found in the maps.
    pub(super) fn restored(address: SocketAddr, id: BackendId) -> Self {
        Self {
            address,
            id,
            is_leaving: false,
            absent_until: None,
        }
    }

    fn appear(&mut self, backend: &DesiredBackend) {
        self.is_leaving = backend.leaving;
        self.absent_until = None;
    }

    /// Whether its row is kept although nobody asks for it: it has just vanished, and may come back.
    fn outlives(&mut self, now: Instant, grace: Duration) -> bool {
        !self.is_leaving && *self.absent_until.get_or_insert(now + grace) > now
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

/// The row of a backend that is missing from the objects.
fn absent(row: Backend) -> Backend {
    Backend {
        state: BackendState::Absent,
        in_cluster: false,
        in_local: false,
        ..row
    }
}

impl Port {
    /// When the first absence of a backend ends.
    pub(super) fn absent_until(&self) -> Option<Instant> {
        self.families.iter().filter_map(PortFamily::absent_until).min()
    }

    /// Whether it has neither frontends nor backends.
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.families.iter().all(|family| family.members.is_empty())
    }

    /// The part of one family.
    pub(super) fn family(&self, family: Family) -> &PortFamily {
        &self.families[index(family)]
    }
}
