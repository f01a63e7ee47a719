//! Restores the state from the maps after a start. Ids stay the same, so flows stay valid, and
//! correct rows are not rewritten.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::layout::ServiceId;

use super::port::{InstalledPort, Member, full_name};
use super::tables::{Context, MapMirror, index};
use super::{Installer, pause};
use crate::desired::{DesiredService, NamespacedName};
use crate::maps::{BackendState, Capacity, FrontendKey, MapError, MapImage, regions};
use crate::network::Family;

impl Installer {
    /// Restores the contents of the maps. Nothing changes before [`Self::first_sync`]. Backends
    /// that are missing from the objects then get the whole `grace` period, even if they were
    /// already absent before.
    pub fn restore(image: &MapImage, capacity: Capacity, grace: Duration) -> Self {
        let live = Family::ALL
            .into_iter()
            .flat_map(|family| image.backends(family).values());
        let live = live.filter(|backend| backend.state != BackendState::Gone);
        let ids: BTreeSet<ServiceId> = (live.map(|backend| backend.service))
            .chain(image.frontends.values().map(|frontend| frontend.service))
            .chain(image.names.keys().copied())
            .collect();
        let mut installer = Self {
            tables: MapMirror::restore(image, capacity, ids.iter().copied()),
            services: HashMap::new(),
            ports: ids.iter().map(|id| (*id, InstalledPort::default())).collect(),
            claims: HashMap::new(),
            waiting: HashMap::new(),
            vips: HashMap::new(),
            retries: BTreeSet::new(),
            woken: BTreeSet::new(),
            orphans: ids.into_iter().collect(),
            strays: Vec::new(),
            prune_retry: None,
            cidr_failure: None,
            grace,
            needs_room: false,
            absences: BTreeSet::new(),
        };
        installer.restore_members();
        installer.restore_frontends();
        installer
    }

    fn restore_members(&mut self) {
        for family in Family::ALL {
            let live = self.tables.backends(family).iter();
            for (id, backend) in live.filter(|(_, backend)| backend.state != BackendState::Gone) {
                let Some(port) = self.ports.get_mut(&backend.service) else {
                    continue;
                };
                let address = SocketAddr::new(backend.address, backend.port);
                port.families[index(family)]
                    .members
                    .push(Member::restored(address, id));
            }
        }
        for port in self.ports.values_mut() {
            for (family, state) in Family::ALL.into_iter().zip(&mut port.families) {
                state.members.sort();
                // No endpoint is written twice. If a corrupted map contains one twice, the second
                // row is removed.
                state.members.dedup_by(|second, first| {
                    let is_same = second.address == first.address;
                    if is_same {
                        self.strays.push((family, second.id));
                    }
                    is_same
                });
            }
        }
    }

    fn restore_frontends(&mut self) {
        let rows: BTreeMap<_, _> = self
            .tables
            .frontends()
            .iter()
            .map(|(key, row)| (*key, *row))
            .collect();
        for (key, row) in rows {
            let Some(port) = self
                .ports
                .get_mut(&row.service)
                .filter(|_| matches!(key, FrontendKey::Port(..)))
            else {
                continue;
            };
            port.frontends.push(key);
            let family = &mut port.families[index(Family::of(key.address()))];
            // The rows of a port name the same regions, unless its last change was interrupted.
            let known = [&mut family.cluster, &mut family.local, &mut family.maglev];
            for (known, named) in known.into_iter().zip(regions(&row)) {
                if known.length == 0 && self.tables.regions_mut().acquire(named) {
                    *known = named;
                }
            }
        }
    }

    /// The orphaned port that holds one of these frontends, if the frontend is not claimed.
    pub(super) fn orphan_of(&self, keys: impl Iterator<Item = FrontendKey>) -> Option<ServiceId> {
        let free = keys.filter(|key| !self.claims.contains_key(key));
        let mut holders = free.filter_map(|key| self.tables.frontend(&key));
        holders
            .find(|row| self.orphans.contains(&row.service))
            .map(|row| row.service)
    }

    /// The orphaned port with this name.
    pub(super) fn orphan_named(&self, name: &str) -> Option<ServiceId> {
        let names = self.tables.names();
        let mut orphans = self.orphans.iter();
        orphans
            .find(|id| names.get(id).is_some_and(|its| its == name))
            .copied()
    }

    /// Gives ports their previous ids. Ports are matched by name, or by frontends that only one
    /// Service wants. The claims of these ports decide about frontends that several Services want.
    pub(super) fn adopt_all(&mut self, services: &[(NamespacedName, Arc<DesiredService>)]) {
        let mut n_claimants: HashMap<FrontendKey, u32> = HashMap::new();
        let frontends = services
            .iter()
            .flat_map(|(_, desired)| &desired.ports)
            .flat_map(|port| &port.frontends);
        for frontend in frontends {
            *n_claimants.entry(frontend.key).or_default() += 1;
        }
        let named: HashMap<String, ServiceId> = self
            .tables
            .names()
            .iter()
            .map(|(id, name)| (name.clone(), *id))
            .collect();
        for (name, desired) in services {
            let mut entry = self.services.remove(name).unwrap_or_default();
            for port in &desired.ports {
                let keys = || port.frontends.iter().map(|frontend| frontend.key);
                let by_name = named.get(&full_name(name, &port.port)).copied();
                let by_name = by_name.filter(|id| self.orphans.contains(id));
                let by_frontend = || self.orphan_of(keys().filter(|key| n_claimants.get(key) == Some(&1)));
                let Some(id) = by_name.or_else(by_frontend) else {
                    continue;
                };
                self.assign(name, &mut entry, port, id);
                let its = keys().filter(|key| self.tables.frontend(key).is_some_and(|row| row.service == id));
                self.claims.extend(its.map(|key| (key, id)));
            }
            self.services.insert(name.clone(), entry);
        }
    }

    /// Removes unowned rows. Failed removals are retried.
    pub(super) fn prune(&mut self, context: &mut Context<'_>) {
        let attempts = self
            .prune_retry
            .take()
            .map_or(0, |(attempts, _)| attempts.saturating_add(1));
        self.prune_retry = match self.try_prune(context) {
            Ok(()) => {
                let ports = self.orphans.iter().filter_map(|id| self.ports.get(id));
                let absent_until = ports.filter_map(InstalledPort::absent_until).min();
                absent_until.map(|until| (0, until))
            }
            Err(_) => Some((attempts, context.now + pause(attempts))),
        };
    }

    fn try_prune(&mut self, context: &mut Context<'_>) -> Result<(), MapError> {
        let vips: HashSet<_> = self
            .services
            .values()
            .filter_map(|entry| entry.desired.as_ref())
            .flat_map(|desired| &desired.vips)
            .map(|vip| vip.address)
            .collect();
        let mut unowned: Vec<FrontendKey> = (self.tables.frontends().iter())
            .filter(|(key, row)| match key {
                FrontendKey::Wildcard(address) => !vips.contains(address) && !self.vips.contains_key(address),
                FrontendKey::Port(..) => {
                    !self.claims.contains_key(key)
                        && self
                            .ports
                            .get(&row.service)
                            .is_none_or(|port| port.owner.is_none())
                }
            })
            .map(|(key, _)| *key)
            .collect();
        unowned.sort();
        for key in unowned {
            self.tables.delete_frontend(context, key)?;
        }
        let mut orphans: Vec<ServiceId> = self.orphans.iter().copied().collect();
        orphans.sort_unstable();
        for id in orphans {
            self.delete_frontends(id, context)?;
            if self.remove_port(id, context)? {
                self.orphans.remove(&id);
            }
        }
        while let Some((family, id)) = self.strays.last().copied() {
            self.tables.remove_backend(context, family, id)?;
            self.strays.pop();
        }
        self.tables.delete_unused_ranges(context)
    }
}
