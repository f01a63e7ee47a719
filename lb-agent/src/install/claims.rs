//! Claims on frontends. Each frontend belongs to one port, and its holder keeps it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::layout::ServiceId;
use lb_common::map;

use super::port::full_name;
use super::{Entry, Installer, age};
use crate::desired::{DesiredPort, DesiredService, NamespacedName};
use crate::maps::{FrontendKey, MapError};

impl Installer {
    /// Records the new desired state of a Service, and gives up frontends that it no longer wants.
    ///
    /// `ended` contains addresses whose Pods have ended.
    pub(super) fn order(
        &mut self,
        name: &NamespacedName,
        desired: Option<Arc<DesiredService>>,
        ended: &BTreeSet<IpAddr>,
    ) {
        let mut entry = self.services.remove(name).unwrap_or_default();
        self.stop_waiting(name, &entry);
        let old = std::mem::replace(&mut entry.desired, desired);
        if let Some(new) = entry.desired.clone() {
            self.rename_ports(&mut entry, &new);
        }
        self.mark_backends(&entry, ended);

        // The port that gets each frontend. `None` if that port has no id yet.
        let mut wanted: HashMap<FrontendKey, Option<ServiceId>> = HashMap::new();
        for port in entry.desired.iter().flat_map(|desired| &desired.ports) {
            let id = entry.id(&port.port);
            wanted.extend(port.frontends.iter().map(|frontend| (frontend.key, id)));
        }
        let own: HashSet<ServiceId> = entry.ports.iter().map(|(_, id)| *id).collect();
        for frontend in old
            .iter()
            .flat_map(|old| &old.ports)
            .flat_map(|port| &port.frontends)
        {
            let Some(holder) = self
                .claims
                .get(&frontend.key)
                .filter(|holder| own.contains(holder))
            else {
                continue;
            };
            match wanted.get(&frontend.key) {
                Some(Some(id)) if id == holder => {}
                Some(_) => {
                    self.claims.remove(&frontend.key);
                }
                None => {
                    self.claims.remove(&frontend.key);
                    self.wake_next(frontend.key);
                }
            }
        }
        self.services.insert(name.clone(), entry);
    }

    /// A renamed port stays the same port. It keeps its id, its backends and therefore its flows.
    fn rename_ports(&self, entry: &mut Entry, desired: &DesiredService) {
        for port in &desired.ports {
            if entry.id(&port.port).is_some() {
                continue;
            }
            let holders: Vec<ServiceId> = port
                .frontends
                .iter()
                .filter_map(|frontend| self.claims.get(&frontend.key).copied())
                .collect();
            let unnamed = entry.ports.iter_mut().find(|(name, id)| {
                holders.contains(id) && desired.ports.iter().all(|other| other.port != *name)
            });
            if let Some((name, _)) = unnamed {
                *name = port.port.clone();
            }
        }
    }

    /// Gives each port of a Service an id, and the frontends that no other Service holds.
    pub(super) fn claim(&mut self, name: &NamespacedName) -> Result<(), MapError> {
        self.with_entry(name, |installer, entry| {
            installer.stop_waiting(name, entry);
            let lost_before = std::mem::take(&mut entry.lost);
            let mut result = Ok(());
            if let Some(desired) = entry.desired.clone() {
                let mut ports = desired.ports.iter();
                result = ports.try_for_each(|port| installer.claim_port(name, entry, port, age(&desired)));
            }
            for key in entry.lost.iter().filter(|key| !lost_before.contains(key)) {
                tracing::warn!(service = %name, frontend = %key, "another Service has this frontend");
            }
            result
        })
    }

    fn claim_port(
        &mut self,
        name: &NamespacedName,
        entry: &mut Entry,
        port: &DesiredPort,
        age: i64,
    ) -> Result<(), MapError> {
        let id = match entry.id(&port.port) {
            Some(id) => id,
            None => {
                let by_frontend = || self.orphan_of(port.frontends.iter().map(|frontend| frontend.key));
                let orphan = self.orphan_named(&full_name(name, &port.port));
                let id = orphan
                    .or_else(by_frontend)
                    .or_else(|| self.tables.allocate_service())
                    .ok_or(MapError::Full {
                        map: map::SERVICE_STATS.name,
                        capacity: self.tables.capacity().services,
                        flag: "--max-services",
                    })?;
                self.assign(name, entry, port, id);
                id
            }
        };
        for frontend in &port.frontends {
            let holder = *self.claims.entry(frontend.key).or_insert(id);
            if holder != id {
                entry.lost.push(frontend.key);
                self.waiting
                    .entry(frontend.key)
                    .or_default()
                    .insert((age, name.clone()));
            }
        }
        Ok(())
    }

    /// Assigns an id to a port.
    pub(super) fn assign(
        &mut self,
        name: &NamespacedName,
        entry: &mut Entry,
        port: &DesiredPort,
        id: ServiceId,
    ) {
        self.orphans.remove(&id);
        let state = self.ports.entry(id).or_default();
        state.owner = Some(name.clone());
        if entry.ranges == 0 {
            // This set was found in the maps, together with the port.
            let rows = state.frontends.iter().filter_map(|key| self.tables.frontend(key));
            entry.ranges = rows
                .map(|row| row.source_ranges)
                .find(|set| *set != 0)
                .unwrap_or(0);
            self.tables.ranges_mut().acquire(entry.ranges);
        }
        entry.ports.push((port.port.clone(), id));
    }

    fn stop_waiting(&mut self, name: &NamespacedName, entry: &Entry) {
        let age = entry.desired.as_deref().map_or(i64::MAX, age);
        for key in &entry.lost {
            if let Some(waiting) = self.waiting.get_mut(key) {
                waiting.remove(&(age, name.clone()));
                if waiting.is_empty() {
                    self.waiting.remove(key);
                }
            }
        }
    }

    fn wake_next(&mut self, key: FrontendKey) {
        let next = self.waiting.get(&key).and_then(|waiting| waiting.first());
        self.woken.extend(next.map(|(_, name)| name.clone()));
    }
}
