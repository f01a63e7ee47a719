//! Brings the maps to what the Services ask for, by the smallest ordered set of writes.
//!
//! A change of a Service goes through these steps, and packets see it by the writes of the third:
//! 1. ids, room and regions are reserved in memory; what does not fit is refused before anything is
//!    written;
//! 2. new and changed backends are written, then the slots of new regions and source ranges of new
//!    sets (what is in use of these is never modified);
//! 3. frontend rows are written, each by one atomic operation;
//! 4. frontend rows nobody wants are deleted, then removed backends are marked gone and others
//!    draining, and sets of source ranges that no row names any more are deleted.
//!
//! Service CIDRs come into force after all that, and go out of force before it.
//!
//! What went out of use is used again after `tables::GRACE`, a region never before its last row is
//! gone. If a write fails, the Service stays where it is and goes on from there at its next
//! attempt.

mod absence;
mod backends;
mod cidrs;
mod claims;
mod ids;
mod plan;
mod port;
mod ranges;
mod regions;
mod repair;
mod reserve;
mod restore;
mod slots;
mod tables;
mod usage;
mod vips;
mod write;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::layout::{BackendId, ServiceId, map};

use crate::desired::{DesiredPort, DesiredService, NamespacedName, PortName};
use crate::maps::{FrontendKey, MapError, Maps};
use crate::network::Family;
use cidrs::CidrFailure;
use port::Port;
use ranges::SetId;
pub use repair::Repaired;
use tables::{Context, Tables};
pub use usage::Usage;

/// The first pause before a failed Service is tried again; it doubles with each failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause before a failed Service is tried again.
const RETRY_LAST: Duration = Duration::from_secs(10);

/// Knows what is in the maps and changes it.
#[derive(Debug)]
pub struct Installer {
    tables: Tables,
    services: HashMap<NamespacedName, Entry>,
    ports: HashMap<ServiceId, Port>,
    /// Which port has the right to a frontend.
    claims: HashMap<FrontendKey, ServiceId>,
    /// Who else asked for it, oldest first.
    waiting: HashMap<FrontendKey, BTreeSet<(i64, NamespacedName)>>,
    /// Which Services share an address's wildcard row.
    vips: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    /// Failed Services by the time of their next attempt.
    retries: BTreeSet<(Instant, NamespacedName)>,
    /// Services that can have a frontend they waited for.
    woken: BTreeSet<NamespacedName>,
    /// Ports found in the maps that no Service has asked for.
    orphans: HashSet<ServiceId>,
    /// Backend rows found in the maps that belong to nothing.
    strays: Vec<(Family, BackendId)>,
    /// When to try again to remove what nobody owns: number of failures and time.
    prune_retry: Option<(u32, Instant)>,
    cidr_failure: Option<CidrFailure>,
    /// How long backends keep connections that are missing from the objects.
    grace: Duration,
    /// Whether a Service found no room that absent backends have.
    needs_room: bool,
    /// Services with such backends, by the time when the first is given up.
    absences: BTreeSet<(Instant, NamespacedName)>,
}

/// One Service: what it asks for, and what it has.
#[derive(Debug, Default)]
struct Entry {
    desired: Option<Arc<DesiredService>>,
    /// Ports that have an id, those to be removed included.
    ports: Vec<(PortName, ServiceId)>,
    /// Addresses whose wildcard row it shares.
    vips: BTreeSet<IpAddr>,
    /// The source ranges that its next rows of load balancer addresses name; 0 if all clients may
    /// come. It counts as a user of them.
    ranges: SetId,
    /// Frontends that another Service has.
    lost: Vec<FrontendKey>,
    failure: Option<Failure>,
    /// As `absences` has it.
    absent_until: Option<Instant>,
}

/// Why the last attempt failed, and when the next one is due.
#[derive(Debug)]
struct Failure {
    message: String,
    attempts: u32,
    due: Instant,
    /// When the kernel began to refuse it; `None` if it does not fit into the maps.
    fault_since: Option<Instant>,
}

impl Entry {
    fn id(&self, port: &PortName) -> Option<ServiceId> {
        self.ports
            .iter()
            .find(|(name, _)| name == port)
            .map(|(_, id)| *id)
    }

    /// The desired ports that have an id.
    fn desired_ports<'a>(
        &'a self,
        desired: &'a DesiredService,
    ) -> impl Iterator<Item = (ServiceId, &'a DesiredPort)> {
        desired
            .ports
            .iter()
            .filter_map(|port| Some((self.id(&port.port)?, port)))
    }

    fn is_empty(&self) -> bool {
        self.desired.is_none() && self.ports.is_empty() && self.vips.is_empty() && self.ranges == 0
    }
}

/// One Service as it stands.
#[derive(Clone, Debug)]
pub struct InstalledService<'a> {
    /// Its name.
    pub name: &'a NamespacedName,
    /// What it asks for.
    pub desired: &'a DesiredService,
    /// Why it is not in the maps as it asks.
    pub failure: Option<&'a str>,
    /// Frontends that another Service has, and which.
    pub conflicts: Vec<(FrontendKey, &'a NamespacedName)>,
}

impl Installer {
    /// Installs all Services for the first time since the start: of two that ask for the same
    /// frontend, that which has it keeps it, else the older one gets it. Then what nobody owns is
    /// removed.
    pub fn first_sync(
        &mut self,
        services: Vec<(NamespacedName, Arc<DesiredService>)>,
        maps: &mut dyn Maps,
        now: Instant,
    ) {
        let context = &mut Context { maps, now };
        let mut services = services;
        services.sort_by(|(name, desired), (other_name, other)| {
            age(desired).cmp(&age(other)).then_with(|| name.cmp(other_name))
        });
        self.adopt_all(&services);
        let names: Vec<NamespacedName> = services
            .into_iter()
            .map(|(name, desired)| {
                self.services.entry(name.clone()).or_default().desired = Some(desired);
                name
            })
            .collect();
        let entries = std::mem::take(&mut self.services);
        for entry in entries.values() {
            self.mark_backends(entry, &BTreeSet::new());
        }
        self.services = entries;
        for name in &names {
            self.share_vips(name);
        }
        // First everything new, then what is gone: a frontend that changed hands is never missing.
        let published: Vec<_> = names
            .iter()
            .map(|name| self.publish_service(name, context))
            .collect();
        for (name, result) in names.iter().zip(published) {
            let result = result.and_then(|()| self.clear_service(name, context));
            self.settle(name, result, now);
        }
        self.run_woken(context);
        self.prune(context);
    }

    /// Installs what a Service asks for now; `None` removes it. `ended` are addresses whose Pods
    /// have ended: what was there does not come back.
    pub fn set(
        &mut self,
        name: &NamespacedName,
        desired: Option<Arc<DesiredService>>,
        ended: &BTreeSet<IpAddr>,
        maps: &mut dyn Maps,
        now: Instant,
    ) {
        let context = &mut Context { maps, now };
        self.tables.sweep(now);
        let is_known = self.services.contains_key(name);
        if !is_known && desired.is_none() {
            return;
        }
        self.order(name, desired, ended);
        self.attempt(name, context);
        self.run_woken(context);
        self.make_room(context);
    }

    /// Does what is due: makes available what went out of use, and tries failed Services again.
    pub fn tick(&mut self, maps: &mut dyn Maps, now: Instant) {
        let context = &mut Context { maps, now };
        self.tables.sweep(now);
        while self.retries.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, name)) = self.retries.pop_first() {
                self.attempt(&name, context);
            }
        }
        self.end_absences(context);
        self.run_woken(context);
        if self.prune_retry.is_some_and(|(_, due)| due <= now) {
            self.prune(context);
        }
        self.make_room(context);
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        let retry = self.retries.first().map(|(due, _)| *due);
        let prune = self.prune_retry.map(|(_, due)| due);
        let absence = self.absences.first().map(|(until, _)| *until);
        let cidrs = self.cidr_failure.as_ref().map(|failure| failure.due);
        [retry, prune, absence, cidrs, self.tables.next_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// All Services that are wanted, in no order.
    pub fn services(&self) -> impl Iterator<Item = InstalledService<'_>> {
        self.services
            .iter()
            .filter_map(|(name, entry)| self.view(name, entry))
    }

    /// One Service, if it is wanted.
    pub fn service<'a>(&'a self, name: &'a NamespacedName) -> Option<InstalledService<'a>> {
        self.view(name, self.services.get(name)?)
    }

    fn view<'a>(&'a self, name: &'a NamespacedName, entry: &'a Entry) -> Option<InstalledService<'a>> {
        let holder = |key: &FrontendKey| self.ports.get(self.claims.get(key)?)?.owner.as_ref();
        Some(InstalledService {
            name,
            desired: entry.desired.as_deref()?,
            failure: entry.failure.as_ref().map(|failure| failure.message.as_str()),
            conflicts: entry
                .lost
                .iter()
                .filter_map(|key| Some((*key, holder(key)?)))
                .collect(),
        })
    }

    /// Services to be removed that could not be yet, and why.
    pub fn failed_removals(&self) -> impl Iterator<Item = (&NamespacedName, &str)> {
        let removed = self.services.iter().filter(|(_, entry)| entry.desired.is_none());
        removed.filter_map(|(name, entry)| Some((name, entry.failure.as_ref()?.message.as_str())))
    }

    fn attempt(&mut self, name: &NamespacedName, context: &mut Context<'_>) {
        let result = self
            .publish_service(name, context)
            .and_then(|()| self.clear_service(name, context));
        let ended = self.end_absences_of(name, Some(context.now), context);
        self.settle(name, result.and(ended), context.now);
    }

    /// Remembers how an attempt ended, and what is due next.
    fn settle(&mut self, name: &NamespacedName, result: Result<(), MapError>, now: Instant) {
        self.remember(name, result, now);
        self.note_absences(name);
    }

    fn remember(&mut self, name: &NamespacedName, result: Result<(), MapError>, now: Instant) {
        let Some(entry) = self.services.get_mut(name) else {
            return;
        };
        let before = entry.failure.take();
        if let Some(failure) = &before {
            if result.is_ok() {
                tracing::info!(service = %name, "installed after {} failures", failure.attempts.saturating_add(1));
            }
            self.retries.remove(&(failure.due, name.clone()));
        }
        match result {
            Ok(()) if entry.is_empty() => {
                if let Some(entry) = self.services.remove(name)
                    && let Some(until) = entry.absent_until
                {
                    self.absences.remove(&(until, name.clone()));
                }
            }
            Ok(()) => {}
            Err(error) => {
                let message = crate::describe(&error);
                if before.as_ref().is_none_or(|failure| failure.message != message) {
                    tracing::warn!(service = %name, "not installed yet: {message}");
                }
                let fault_since = match error {
                    MapError::Full { map, .. } => {
                        self.needs_room |=
                            [map::BACKENDS4, map::BACKENDS6, map::SERVICE_STATS].contains(&map);
                        None
                    }
                    MapError::Kernel { .. } => {
                        let before = before.as_ref().and_then(|failure| failure.fault_since);
                        before.or(Some(now))
                    }
                };
                let attempts = before.map_or(0, |failure| failure.attempts.saturating_add(1));
                let due = now + pause(attempts);
                self.retries.insert((due, name.clone()));
                entry.failure = Some(Failure {
                    message,
                    attempts,
                    due,
                    fault_since,
                });
            }
        }
    }

    /// Gives up absent backends if others need the room.
    fn make_room(&mut self, context: &mut Context<'_>) {
        if std::mem::take(&mut self.needs_room) {
            self.give_up_absent(context);
        }
    }

    fn run_woken(&mut self, context: &mut Context<'_>) {
        while let Some(name) = self.woken.pop_first() {
            self.attempt(&name, context);
        }
    }
}

/// The rank of a Service among those that ask for the same frontend: its creation, the unknown
/// last.
fn age(desired: &DesiredService) -> i64 {
    desired.created.unwrap_or(i64::MAX)
}

/// The pause after a number of failures in a row.
fn pause(attempts: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << attempts.min(16)).min(RETRY_LAST)
}

#[cfg(test)]
mod tests;
