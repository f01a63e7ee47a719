//! Service CIDRs. Packets to addresses in them that have no row are dropped. So a CIDR is added
//! after the rows of its addresses, and removed before them.

use std::collections::BTreeSet;
use std::time::Instant;

use super::tables::Context;
use super::{Installer, pause};
use crate::maps::{MapError, Maps};
use crate::network::Cidr;

/// Why the last attempt failed, and when the next one is scheduled.
#[derive(Debug)]
pub(super) struct CidrFailure {
    message: String,
    attempts: u32,
    pub(super) due: Instant,
}

impl Installer {
    /// Removes the Service CIDRs that are not in `wanted`.
    pub fn end_cidrs(&mut self, wanted: &BTreeSet<Cidr>, maps: &mut dyn Maps, now: Instant) {
        let ended: Vec<Cidr> = self.tables.cidrs().difference(wanted).copied().collect();
        self.change_cidrs(ended, maps, now, |installer, cidr, context| {
            installer.tables.delete_cidr(context, cidr)
        });
    }

    /// Adds these Service CIDRs, unless the row of a Service that another proxy serves could not be
    /// written.
    pub fn begin_cidrs(&mut self, wanted: &BTreeSet<Cidr>, maps: &mut dyn Maps, now: Instant) {
        let new: Vec<Cidr> = wanted.difference(self.tables.cidrs()).copied().collect();
        if !new.is_empty() && self.lacks_rows_of_held_services() {
            return;
        }
        self.change_cidrs(new, maps, now, |installer, cidr, context| {
            installer.tables.add_cidr(context, cidr)
        });
    }

    /// The Service CIDRs in effect.
    pub fn cidrs(&self) -> &BTreeSet<Cidr> {
        self.tables.cidrs()
    }

    fn lacks_rows_of_held_services(&self) -> bool {
        let mut failed = self
            .retries
            .iter()
            .filter_map(|(_, name)| self.services.get(name));
        failed.any(|entry| {
            entry
                .desired
                .as_ref()
                .is_some_and(|desired| desired.ports.is_empty())
        })
    }

    fn change_cidrs(
        &mut self,
        cidrs: Vec<Cidr>,
        maps: &mut dyn Maps,
        now: Instant,
        change: impl Fn(&mut Self, Cidr, &mut Context<'_>) -> Result<(), MapError>,
    ) {
        if cidrs.is_empty()
            || self
                .cidr_failure
                .as_ref()
                .is_some_and(|failure| failure.due > now)
        {
            return;
        }
        let context = &mut Context { maps, now };
        let result = cidrs.into_iter().try_for_each(|cidr| change(self, cidr, context));
        let before = self.cidr_failure.take();
        let Err(error) = result else {
            let cidrs: Vec<String> = self.tables.cidrs().iter().map(Cidr::to_string).collect();
            tracing::info!(
                cidrs = cidrs.join(","),
                "packets to addresses in Service CIDRs that belong to no Service are dropped"
            );
            return;
        };
        let message = crate::describe(&error);
        if before.as_ref().is_none_or(|failure| failure.message != message) {
            tracing::warn!("cannot change the Service CIDRs yet: {message}");
        }
        let attempts = before.map_or(0, |failure| failure.attempts.saturating_add(1));
        self.cidr_failure = Some(CidrFailure {
            message,
            attempts,
            due: now + pause(attempts),
        });
    }
}
