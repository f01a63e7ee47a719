//! What one port of a Service has in the maps.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::layout::{BackendId, Region, ServiceId};

use super::tables::{Context, Tables, index};
use crate::desired::{DesiredBackend, DesiredPort, NamespacedName, PortName};
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

/// What the maps call a port: `NAMESPACE/NAME/PORT/PROTOCOL`.
pub(super) fn full_name(service: &NamespacedName, port: &PortName) -> String {
    let PortName { name, protocol } = port;
    format!("{service}/{name}/{protocol}")
}

impl PortFamily {
    /// Backends, sorted by address, and their ids; `None` for those that have no row yet.
    pub(super) fn with_ids<'a, B: IntoIterator<Item = &'a DesiredBackend>>(
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

    /// Its regions, empty ones included.
    pub(super) fn regions(&self) -> [Region; 3] {
        [self.cluster, self.local, self.maglev]
    }

    /// Its regions, which it has no more.
    pub(super) fn take_regions(&mut self) -> [Region; 3] {
        [&mut self.cluster, &mut self.local, &mut self.maglev].map(std::mem::take)
    }

    /// Writes what frontend rows will name: backends that are new or may take flows now, and the
    /// regions.
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
            if let Some(old) = tables.backends(Family::of(row.address)).endpoint(id) {
                // The rows in use may name it until they are replaced; what they do not name is
                // taken back then.
                if row.state == BackendState::Draining {
                    row.state = old.state;
                }
                row.in_cluster |= old.in_cluster;
                row.in_local |= old.in_local;
            }
            tables.backends(family).is_news(id, &row).then_some((id, row))
        });
        let rows = rows.collect();
        tables.backends_mut(family).write(context.maps, rows)?;
        for region in self.regions() {
            tables.regions_mut().write(context.maps, region)?;
        }
        Ok(())
    }

    /// Takes note of what the objects say of its backends: who is there again, and who does not
    /// come back. `ended` are addresses whose Pods have ended.
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

    /// Marks backends that are not wanted as absent, or as gone if they do not come back or their
    /// time is over; and those that shall take no new flows as draining.
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
                    .backends(family)
                    .endpoint(id)
                    .copied()
                    .filter(|_| member.outlives(context.now, grace))
                    .map(absent),
            };
            if let Some(row) = row {
                changed.extend(tables.backends(family).is_news(id, &row).then_some((id, row)));
                return true;
            }
            if result.is_ok() {
                result = tables.remove_backend(context, family, id);
            }
            result.is_err()
        });
        result?;
        tables.backends_mut(family).write(context.maps, changed)
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

    /// Whether its row is kept although nobody asks for it: it has just vanished, and may come
    /// back.
    fn outlives(&mut self, now: Instant, grace: Duration) -> bool {
        !self.is_leaving && *self.absent_until.get_or_insert(now + grace) > now
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
        generation: tables.backends(Family::of(backend.address.ip())).generation(id),
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
