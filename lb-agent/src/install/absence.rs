//! Backends that disappear from the objects although their Pods may still run. They keep their
//! connections for a grace period and can come back without any effect on them.
//!
//! A member that is not desired stays in its port until a deadline. The port also stays, with its
//! id and name, while it has such members. Backends that are known not to come back are removed
//! immediately.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use lb_common::layout::ServiceId;

use super::port::InstalledPort;
use super::tables::{Context, index};
use super::{Entry, Installer};
use crate::desired::NamespacedName;
use crate::maps::MapError;
use crate::network::Family;

impl Installer {
    /// Records which backends of a Service are back, and which do not come back.
    pub(super) fn mark_backends(&mut self, entry: &Entry, ended: &BTreeSet<IpAddr>) {
        for (port_name, id) in &entry.ports {
            let mut ports = entry.desired.iter().flat_map(|desired| &desired.ports);
            let port = ports.find(|port| port.port == *port_name);
            if let Some(state) = self.ports.get_mut(id) {
                state
                    .families
                    .iter_mut()
                    .for_each(|family| family.mark(port, ended));
            }
        }
    }

    /// Records when the first absence in a Service ends. If the Service failed, its absences end
    /// with its next attempt.
    pub(super) fn note_absences(&mut self, name: &NamespacedName) {
        let Some(entry) = self.services.get_mut(name) else {
            return;
        };
        let ports = entry.ports.iter().filter_map(|(_, id)| self.ports.get(id));
        let until = ports.filter_map(InstalledPort::absent_until).min();
        let until = until.filter(|_| entry.failure.is_none());
        if until != entry.absent_until {
            if let Some(old) = std::mem::replace(&mut entry.absent_until, until) {
                self.absences.remove(&(old, name.clone()));
            }
            self.absences.extend(until.map(|until| (until, name.clone())));
        }
    }

    /// Removes the backends whose grace period is over.
    pub(super) fn end_absences(&mut self, context: &mut Context<'_>) {
        while self
            .absences
            .first()
            .is_some_and(|(until, _)| *until <= context.now)
        {
            if let Some((_, name)) = self.absences.pop_first() {
                let result = self.end_absences_of(&name, Some(context.now), context);
                self.settle(&name, result, context.now);
            }
        }
    }

    /// Removes all absent backends, because others need their rows. Failed removals are retried
    /// when the grace period ends.
    pub(super) fn remove_absent_backends(&mut self, context: &mut Context<'_>) {
        for (_, name) in std::mem::take(&mut self.absences) {
            let result = self.end_absences_of(&name, None, context);
            self.settle(&name, result, context.now);
        }
        for (_, name) in self.retries.clone() {
            let _ = self.end_absences_of(&name, None, context);
        }
        for id in self.orphans.clone() {
            let _ = self.end_absences_of_port(id, None, context);
        }
        self.prune(context);
    }

    /// Removes the backends of a Service whose grace period ended by `now`, and ports that were
    /// kept for them. `None` removes all absent backends. This is safe in any state of the Service,
    /// because no frontend row names these backends.
    pub(super) fn end_absences_of(
        &mut self,
        name: &NamespacedName,
        now: Option<Instant>,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        self.with_entry(name, |installer, entry| {
            for (port_name, id) in entry.ports.clone() {
                installer.end_absences_of_port(id, now, context)?;
                let mut ports = entry.desired.iter().flat_map(|desired| &desired.ports);
                let is_wanted = ports.any(|port| port.port == port_name);
                let is_empty = installer.ports.get(&id).is_none_or(InstalledPort::is_empty);
                if !is_wanted && is_empty && installer.remove_port(id, context)? {
                    entry.ports.retain(|(_, other)| *other != id);
                }
            }
            Ok(())
        })
    }

    fn end_absences_of_port(
        &mut self,
        id: ServiceId,
        now: Option<Instant>,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        let Some(state) = self.ports.get_mut(&id) else {
            return Ok(());
        };
        for family in Family::ALL {
            state.families[index(family)].end_absences(&mut self.tables, context, family, now)?;
        }
        Ok(())
    }
}
