//! Wildcard rows, which apply to a whole address. Several Services may share one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::layout::{Frontend, frontend_flags};

use super::tables::Context;
use super::{Entry, Installer};
use crate::desired::{DesiredService, DesiredVip, NamespacedName};
use crate::maps::{FrontendKey, MapError};
use crate::network::Family;

impl Installer {
    /// Registers the addresses of a Service before any Service is published. Otherwise a row could
    /// be written that takes only the first Services into account.
    pub(super) fn share_vips(&mut self, name: &NamespacedName) {
        let Some(entry) = self.services.get_mut(name) else {
            return;
        };
        for vip in entry.desired.iter().flat_map(|desired| &desired.vips) {
            entry.vips.insert(vip.address);
            self.vips.entry(vip.address).or_default().insert(name.clone());
        }
    }

    /// Writes the wildcard rows of a Service's addresses.
    pub(super) fn publish_vips(
        &mut self,
        name: &NamespacedName,
        entry: &mut Entry,
        desired: &DesiredService,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        for vip in &desired.vips {
            let row = self.wildcard(name, entry, vip);
            self.tables
                .set_frontend(context, FrontendKey::Wildcard(vip.address), row)?;
            self.vips.entry(vip.address).or_default().insert(name.clone());
            entry.vips.insert(vip.address);
        }
        Ok(())
    }

    /// The row of an address for a Service other than the current one.
    fn wildcard_of(&self, name: &NamespacedName, address: IpAddr) -> Option<Frontend> {
        let entry = self.services.get(name)?;
        Some(self.wildcard(name, entry, self.vip(name, address)?))
    }

    /// The row of an address for the Service `name`.
    fn wildcard(&self, name: &NamespacedName, entry: &Entry, vip: &DesiredVip) -> Frontend {
        let mut row = Frontend {
            flags: frontend_flags::WILDCARD,
            ..Frontend::default()
        };
        let others = self.vips.get(&vip.address).into_iter().flatten();
        let others = others.filter(|other| *other != name);
        let others: Vec<&DesiredVip> = others.filter_map(|other| self.vip(other, vip.address)).collect();
        let all = || others.iter().copied().chain([vip]);
        if all().all(|vip| vip.passes_unknown) {
            row.flags |= frontend_flags::PASS_UNKNOWN;
        }
        if all().any(|vip| vip.has_endpoints) {
            row.flags |= frontend_flags::ECHO;
        }
        // Clients that any of several Services allows may ping the address.
        if others.is_empty()
            && self.tables.ranges().is_written(entry.ranges)
            && let Some(desired) = &entry.desired
        {
            let family = Family::of(vip.address);
            if desired.source_ranges.filter(vip.kind, family) {
                row.source_ranges = entry.ranges;
                row.flags |= desired.source_ranges.flags(family);
            }
        }
        row
    }

    fn vip(&self, name: &NamespacedName, address: IpAddr) -> Option<&DesiredVip> {
        let desired = self.services.get(name)?.desired.as_ref()?;
        desired.vips.iter().find(|vip| vip.address == address)
    }

    /// Gives up the addresses that a Service no longer wants. The last user of an address deletes
    /// its row.
    pub(super) fn delete_vips(
        &mut self,
        name: &NamespacedName,
        entry: &mut Entry,
        context: &mut Context<'_>,
    ) -> Result<(), MapError> {
        let wanted: BTreeSet<IpAddr> = entry
            .desired
            .iter()
            .flat_map(|desired| &desired.vips)
            .map(|vip| vip.address)
            .collect();
        for address in entry.vips.difference(&wanted).copied().collect::<Vec<_>>() {
            let key = FrontendKey::Wildcard(address);
            let owners = self.vips.get(&address).into_iter().flatten();
            let mut others = owners.filter(|owner| *owner != name).peekable();
            if others.peek().is_none() {
                self.tables.delete_frontend(context, key)?;
            } else if let Some(row) = others.find_map(|other| self.wildcard_of(other, address)) {
                self.tables.set_frontend(context, key, row)?;
            }
            if let Some(owners) = self.vips.get_mut(&address) {
                owners.remove(name);
                if owners.is_empty() {
                    self.vips.remove(&address);
                }
            }
            entry.vips.remove(&address);
        }
        Ok(())
    }
}
