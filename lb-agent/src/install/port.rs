//! The rows, ids and regions of one port of a Service.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::layout::{BackendId, Region, ServiceId};

use super::tables::{Context, MapMirror, index};
use crate::desired::{DesiredBackend, DesiredPort, NamespacedName, PortName};
use crate::maps::{Backend, BackendState, FrontendKey, MapError};
use crate::network::Family;

/// The rows, ids and regions of a port. The port belongs to a Service, or was found in the maps
/// after a start.
#[derive(Debug, Default)]
pub(super) struct InstalledPort {
    /// The Service that owns the port.
    pub(super) owner: Option<NamespacedName>,
    /// Frontend rows that it wrote. Another port of the Service may have overwritten one since.
    pub(super) frontends: Vec<FrontendKey>,
    /// The parts of each family.
    pub(super) families: [InstalledFamily; 2],
}

/// A backend of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Member {
    /// Address and port of the endpoint.
    pub(super) address: SocketAddr,
    /// The id of its row, which may not be written yet.
    pub(super) id: BackendId,
    /// Whether it does not come back once it is missing.
    pub(super) is_leaving: bool,
    /// The end of the grace period, if the endpoint is missing. Its row is kept until then for its
    /// connections.
    pub(super) absent_until: Option<Instant>,
}

/// The part of a port for one family.
#[derive(Debug, Default)]
pub(super) struct InstalledFamily {
    /// Its backends, sorted by address. Absent ones are included.
    pub(super) members: Vec<Member>,
    /// Regions for its next frontend rows. The port counts as a user of each.
    pub(super) cluster: Region,
    /// See `cluster`. It may be the same region.
    pub(super) local: Region,
    /// See `cluster`. Outside clients use it at all addresses except cluster IPs.
    pub(super) maglev: Region,
}

/// The name of a port in the maps: `NAMESPACE/NAME/PORT/PROTOCOL`.
pub(super) fn full_name(service: &NamespacedName, port: &PortName) -> String {
    let PortName { name, protocol } = port;
    format!("{service}/{name}/{protocol}")
}

impl InstalledFamily {
    /// Returns backends, sorted by address, with their ids. `None` for backends without a row.
    pub(super) fn with_ids<'a, B: IntoIterator<Item = &'a DesiredBackend>>(
        &self,
        backends: B,
    ) -> impl Iterator<Item = (&'a DesiredBackend, Option<BackendId>)> + use<'_, 'a, B> {
        // Both lists are sorted. A merge is much cheaper than a search for each backend.
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

    /// Its regions, including empty ones.
    pub(super) fn regions(&self) -> [Region; 3] {
        [self.cluster, self.local, self.maglev]
    }

    /// Takes its regions away.
    pub(super) fn take_regions(&mut self) -> [Region; 3] {
        [&mut self.cluster, &mut self.local, &mut self.maglev].map(std::mem::take)
    }

    /// Writes the regions and the backends that frontend rows will name. Backends are written if
    /// they are new or may accept flows now.
    pub(super) fn write(
        &self,
        tables: &mut MapMirror,
        context: &mut Context<'_>,
        (family, service): (Family, ServiceId),
        backends: &[DesiredBackend],
    ) -> Result<(), MapError> {
        let rows = self.with_ids(backends).filter_map(|(backend, id)| {
            let id = id?;
            let mut row = row(tables, service, id, backend);
            if let Some(old) = tables.backends(Family::of(row.address)).endpoint(id) {
                // Current frontend rows may name it until they are replaced. After that, `clear`
                // removes what they do not name.
                if row.state == BackendState::Draining {
                    row.state = old.state;
                }
                row.in_cluster |= old.in_cluster;
                row.in_local |= old.in_local;
            }
            tables.backends(family).needs_write(id, &row).then_some((id, row))
        });
        let rows = rows.collect();
        tables.backends_mut(family).write(context.maps, rows)?;
        for region in self.regions() {
            tables.regions_mut().write(context.maps, region)?;
        }
        Ok(())
    }

    /// Records which backends are back, and which do not come back, according to the objects.
    /// `ended` contains addresses whose Pods have ended.
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

    /// Marks backends that are not wanted as absent. If they do not come back or their grace period
    /// is over, marks them as gone. Marks backends that must not accept new flows as draining.
    pub(super) fn clear(
        &mut self,
        tables: &mut MapMirror,
        context: &mut Context<'_>,
        (family, service): (Family, ServiceId),
        backends: &[DesiredBackend],
        grace: Duration,
    ) -> Result<(), MapError> {
        let mut wanted = backends.iter().peekable();
        let mut changed = Vec::new();
        let mut result = Ok(());
        // Both lists are sorted.
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
                changed.extend(tables.backends(family).needs_write(id, &row).then_some((id, row)));
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

    /// Removes backends whose grace period ended by `now`. `None` removes all absent ones.
    pub(super) fn end_absences(
        &mut self,
        tables: &mut MapMirror,
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

    /// Whether the row is kept although the backend is not wanted: it disappeared recently and may
    /// come back.
    fn outlives(&mut self, now: Instant, grace: Duration) -> bool {
        !self.is_leaving && *self.absent_until.get_or_insert(now + grace) > now
    }
}

fn row(tables: &MapMirror, service: ServiceId, id: BackendId, backend: &DesiredBackend) -> Backend {
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

impl InstalledPort {
    /// When the first absence of a backend ends.
    pub(super) fn absent_until(&self) -> Option<Instant> {
        self.families
            .iter()
            .filter_map(InstalledFamily::absent_until)
            .min()
    }

    /// Whether it has neither frontends nor backends.
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.families.iter().all(|family| family.members.is_empty())
    }

    /// The part for one family.
    pub(super) fn family(&self, family: Family) -> &InstalledFamily {
        &self.families[index(family)]
    }
}
