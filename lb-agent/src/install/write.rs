//! The writes of a change, in order.

use lb_common::layout::{Frontend, Region, ServiceId};

use super::plan::FamilyDemand;
use super::port::{InstalledFamily, full_name};
use super::ranges::SetId;
use super::tables::{Context, index};
use super::{Entry, Installer};
use crate::desired::{DesiredPort, NamespacedName, SourceRanges};
use crate::maps::MapError;
use crate::network::Family;

impl Installer {
    /// Steps 1 to 3. After them, packets see the new state of the Service.
    pub(super) fn publish_service(
        &mut self,
        name: &NamespacedName,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        self.claim(name)?;
        self.with_entry(name, |installer, entry| {
            let Some(desired) = entry.desired.clone() else {
                return Ok(());
            };
            installer.reserve_ranges(entry, Some(&desired))?;
            installer.reserve(entry, &desired, context)?;
            installer.tables.ranges_mut().write(context.maps, entry.ranges)?;
            for (id, port) in entry.desired_ports(&desired) {
                installer.publish_port(id, port, (entry.ranges, &desired.source_ranges), context)?;
            }
            installer.publish_vips(name, entry, &desired, context)
        })
    }

    /// Step 4: removes what the Service no longer wants.
    pub(super) fn clear_service(
        &mut self,
        name: &NamespacedName,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        self.with_entry(name, |installer, entry| {
            for (_, id) in &entry.ports {
                installer.delete_frontends(*id, context)?;
            }
            installer.delete_vips(name, entry, context)?;
            let desired = entry.desired.clone();
            for (port_name, id) in entry.ports.clone() {
                let ports = desired.iter().flat_map(|desired| &desired.ports);
                match ports.into_iter().find(|port| port.port == port_name) {
                    Some(port) => {
                        let wanted =
                            Family::ALL.map(|family| FamilyDemand::of(&installer.claims, id, port, family));
                        installer.clear_backends(id, &wanted, context)?;
                    }
                    None => {
                        if installer.remove_port(id, context)? {
                            entry.ports.retain(|(_, other)| *other != id);
                        }
                    }
                }
            }
            if desired.is_none() {
                installer.reserve_ranges(entry, None)?;
            }
            installer.tables.delete_unused_ranges(context)
        })
    }

    /// Takes the entry out of the map while `action` changes it and the rest of the installer.
    pub(super) fn with_entry(
        &mut self,
        name: &NamespacedName,
        action: impl FnOnce(&mut Self, &mut Entry) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let Some(mut entry) = self.services.get_mut(name).map(std::mem::take) else {
            return Ok(());
        };
        let result = action(self, &mut entry);
        if let Some(place) = self.services.get_mut(name) {
            *place = entry;
        }
        result
    }

    fn publish_port(
        &mut self,
        id: ServiceId,
        port: &DesiredPort,
        (set, ranges): (SetId, &SourceRanges),
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        let Some(state) = self.ports.get_mut(&id) else {
            return Ok(());
        };
        if let Some(owner) = &state.owner {
            self.tables.set_name(context, id, full_name(owner, &port.port))?;
        }
        for family in Family::ALL {
            let order = FamilyDemand::of(&self.claims, id, port, family);
            state.families[index(family)].write(&mut self.tables, context, (family, id), order.backends)?;
        }
        for frontend in port
            .frontends
            .iter()
            .filter(|frontend| self.claims.get(&frontend.key) == Some(&id))
        {
            let family = Family::of(frontend.key.address());
            let (source_ranges, filter_flags) = match ranges.filter(frontend.kind, family) {
                true => (set, ranges.flags(family)),
                false => (0, 0),
            };
            let family = state.family(family);
            let value = Frontend {
                service: id,
                flags: frontend.flags | filter_flags,
                cluster: family.cluster,
                local: family.local,
                maglev: match frontend.external_policy() {
                    Some(_) => family.maglev,
                    None => Region::default(),
                },
                source_ranges,
                affinity_seconds: port.affinity_seconds,
            };
            let is_new = self
                .tables
                .frontend(&frontend.key)
                .is_none_or(|old| old.service != id);
            self.tables.set_frontend(context, frontend.key, value)?;
            if is_new {
                state.frontends.push(frontend.key);
            }
        }
        Ok(())
    }

    /// Deletes the rows that a port has but no longer holds a claim on.
    pub(super) fn delete_frontends(
        &mut self,
        id: ServiceId,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        let Some(state) = self.ports.get_mut(&id) else {
            return Ok(());
        };
        let mut position = 0;
        while let Some(key) = state.frontends.get(position).copied() {
            // Another port may have overwritten the row, which then belongs to that port.
            let is_its = self.tables.frontend(&key).is_some_and(|row| row.service == id);
            if is_its && self.claims.get(&key) == Some(&id) {
                position += 1;
                continue;
            }
            if is_its {
                self.tables.delete_frontend(context, key)?;
            }
            state.frontends.swap_remove(position);
        }
        Ok(())
    }

    fn clear_backends(
        &mut self,
        id: ServiceId,
        orders: &[FamilyDemand<'_>; 2],
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        let Some(state) = self.ports.get_mut(&id) else {
            return Ok(());
        };
        for (family, order) in Family::ALL.into_iter().zip(orders) {
            let family_and_id = (family, id);
            let backends = order.backends;
            state.families[index(family)].clear(
                &mut self.tables,
                context,
                family_and_id,
                backends,
                self.grace,
            )?;
        }
        Ok(())
    }

    /// Removes a port that has no frontend rows any more, and its backends. The port keeps its id
    /// while some backends are absent, because their connections need it. Returns whether the port
    /// was removed.
    pub(super) fn remove_port(&mut self, id: ServiceId, context: &mut Context<'_>) -> Result<bool, MapError> {
        self.clear_backends(id, &[FamilyDemand::default(); 2], context)?;
        if let Some(state) = self.ports.get_mut(&id) {
            for region in state.families.iter_mut().flat_map(InstalledFamily::take_regions) {
                self.tables.release_region(region, context.now);
            }
            if !state.is_empty() {
                return Ok(false);
            }
        }
        self.tables.delete_name(context, id)?;
        if self.ports.remove(&id).is_some() {
            self.tables.retire_service(id, context.now);
        }
        Ok(true)
    }
}
