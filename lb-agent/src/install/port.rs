//! What one port of a Service has in the maps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use lb_common::layout::{BackendId, Region, ServiceId, Slot};

use super::tables::{Context, Tables, index};
use crate::desired::{DesiredBackend, DesiredPort, NamespacedName, PortName};
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
}

/// What is to be reserved for one family of a port.
#[derive(Debug)]
pub(super) struct FamilyPlan {
    /// Number of backends that get a row.
    pub(super) added: usize,
    pub(super) cluster: Want,
    pub(super) local: Want,
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

/// The backends of one family that a port gets: none, unless it has a frontend that could name them.
pub(super) fn backends<'a>(
    claims: &HashMap<FrontendKey, ServiceId>,
    id: ServiceId,
    port: &'a DesiredPort,
    family: Family,
) -> &'a [DesiredBackend] {
    let mut keys = port.frontends.iter().map(|frontend| &frontend.key);
    if !keys.any(|key| Family::of(key.address()) == family && claims.get(key) == Some(&id)) {
        return &[];
    }
    // Sorted: IPv4 comes first.
    let (of_v4, of_v6) = port
        .backends
        .split_at(port.backends.partition_point(|backend| backend.address.is_ipv4()));
    match family {
        Family::V4 => of_v4,
        Family::V6 => of_v6,
    }
}

impl PortFamily {
    fn id(&self, address: &SocketAddr) -> Option<BackendId> {
        let position = self
            .members
            .binary_search_by(|(member, _)| member.cmp(address))
            .ok()?;
        Some(self.members[position].1)
    }

    /// What has to be reserved for `backends`.
    pub(super) fn plan(&self, tables: &Tables, family: Family, backends: &[DesiredBackend]) -> FamilyPlan {
        let added = backends
            .iter()
            .filter(|backend| self.id(&backend.address).is_none())
            .count();
        let cluster = self.plan_region(
            tables,
            family,
            self.cluster,
            backends.iter().filter(|backend| backend.in_cluster),
        );
        let local = match backends
            .iter()
            .all(|backend| backend.in_cluster == backend.in_local)
        {
            true => Want::Cluster,
            false => self.plan_region(
                tables,
                family,
                self.local,
                backends.iter().filter(|backend| backend.in_local),
            ),
        };
        FamilyPlan {
            added,
            cluster,
            local,
        }
    }

    fn plan_region<'a>(
        &self,
        tables: &Tables,
        family: Family,
        region: Region,
        backends: impl Iterator<Item = &'a DesiredBackend> + Clone,
    ) -> Want {
        let slots = backends
            .clone()
            .map(|backend| Some(slot(tables, family, self.id(&backend.address)?)));
        if slots.eq(tables.slots(region).iter().map(|slot| Some(*slot))) {
            Want::Keep
        } else {
            Want::New(backends.count())
        }
    }

    /// Reserves ids and takes the planned regions. False if an id is missing, which the plan rules out.
    pub(super) fn reserve(
        &mut self,
        tables: &mut Tables,
        backends: &[DesiredBackend],
        (family, plan): (Family, &FamilyPlan),
        now: Instant,
    ) -> bool {
        for backend in backends {
            if let Err(position) = self
                .members
                .binary_search_by(|(member, _)| member.cmp(&backend.address))
            {
                let Some(id) = tables.allocate_backend(family) else {
                    return false;
                };
                self.members.insert(position, (backend.address, id));
            }
        }
        let old = (self.cluster, self.local);
        if let Want::Allocated(region) = plan.cluster {
            self.cluster = self.fill(
                tables,
                family,
                region,
                backends.iter().filter(|backend| backend.in_cluster),
            );
        }
        match plan.local {
            Want::Allocated(region) => {
                self.local = self.fill(
                    tables,
                    family,
                    region,
                    backends.iter().filter(|backend| backend.in_local),
                );
            }
            Want::Cluster if self.local != self.cluster => {
                tables.acquire(self.cluster);
                self.local = self.cluster;
            }
            _ => {}
        }
        for (old, new) in [(old.0, self.cluster), (old.1, self.local)] {
            if old != new {
                tables.release_region(old, now);
            }
        }
        true
    }

    fn fill<'a>(
        &self,
        tables: &mut Tables,
        family: Family,
        region: Region,
        backends: impl Iterator<Item = &'a DesiredBackend>,
    ) -> Region {
        let ids = backends.filter_map(|backend| self.id(&backend.address));
        let slots = ids.map(|id| slot(tables, family, id)).collect();
        tables.fill_region(region, slots);
        region
    }

    /// Writes what frontend rows will name: backends that are new or may take flows now, and the regions.
    pub(super) fn write(
        &self,
        tables: &mut Tables,
        context: &mut Context<'_>,
        service: ServiceId,
        backends: &[DesiredBackend],
    ) -> Result<(), MapError> {
        for backend in backends {
            let Some(id) = self.id(&backend.address) else {
                continue;
            };
            let mut row = row(tables, service, id, backend);
            if let Some(old) = tables.backend(Family::of(row.address), id) {
                // The rows in use may name it until they are replaced; what they do not name is taken back then.
                if row.state == BackendState::Draining {
                    row.state = old.state;
                }
                row.in_cluster |= old.in_cluster;
                row.in_local |= old.in_local;
            }
            tables.set_backend(context, id, row)?;
        }
        tables.write_region(context, self.cluster)?;
        tables.write_region(context, self.local)
    }

    /// Marks backends that are not wanted as gone, and those that shall take no new flows as draining.
    pub(super) fn clear(
        &mut self,
        tables: &mut Tables,
        context: &mut Context<'_>,
        (family, service): (Family, ServiceId),
        backends: &[DesiredBackend],
    ) -> Result<(), MapError> {
        let mut position = 0;
        while let Some((address, id)) = self.members.get(position).copied() {
            match backends.binary_search_by(|backend| backend.address.cmp(&address)) {
                Ok(found) => {
                    let row = row(tables, service, id, &backends[found]);
                    tables.set_backend(context, id, row)?;
                    position += 1;
                }
                Err(_) => {
                    tables.remove_backend(context, family, id)?;
                    self.members.remove(position);
                }
            }
        }
        Ok(())
    }
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
