//! Brings the maps to the state that the Services require, with an ordered, minimal set of writes.
//!
//! A change of a Service takes these steps. Packets see it after the writes of step 3:
//! 1. Ids and regions are reserved in memory. If something does not fit, the change is rejected
//!    before anything is written.
//! 2. New and changed backends are written, then the slots of new regions and the source ranges of
//!    new sets. Regions and sets in use are never modified.
//! 3. Frontend rows are written, each by one atomic operation.
//! 4. Unwanted frontend rows are deleted. Then removed backends are marked gone and others
//!    draining. Sets of source ranges that no row names any more are deleted.
//!
//! Service CIDRs take effect after all these steps, and lose effect before them.
//!
//! Ids and regions that are no longer in use can be reused after `tables::GRACE`. A region is never
//! reused while a row names it. If a write fails, the Service keeps its state, and the next attempt
//! continues from there.

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

use lb_common::layout::{BackendId, ServiceId};
use lb_common::map::{self, FamilySpecs as _};
use lb_common::net::{Address4, Address6};

use crate::desired::{DesiredPort, DesiredService, NamespacedName, PortName};
use crate::maps::{FrontendKey, MapError, Maps};
use crate::network::Family;
use cidrs::CidrFailure;
use port::InstalledPort;
use ranges::SetId;
pub use repair::Repaired;
use tables::{Context, MapMirror};
pub use usage::Usage;

/// The delay before the first retry of a failed Service. It doubles with each failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest delay before a retry.
const RETRY_LAST: Duration = Duration::from_secs(10);

/// Tracks the contents of the maps and changes them.
#[derive(Debug)]
pub struct Installer {
    tables: MapMirror,
    services: HashMap<NamespacedName, Entry>,
    ports: HashMap<ServiceId, InstalledPort>,
    /// The port that holds each frontend.
    claims: HashMap<FrontendKey, ServiceId>,
    /// Other Services that want a frontend, oldest first.
    waiting: HashMap<FrontendKey, BTreeSet<(i64, NamespacedName)>>,
    /// The Services that share an address's wildcard row.
    vips: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    /// Failed Services, by the time of their next attempt.
    retries: BTreeSet<(Instant, NamespacedName)>,
    /// Services that can now get a frontend that they waited for.
    woken: BTreeSet<NamespacedName>,
    /// Ports found in the maps that no Service has claimed.
    orphans: HashSet<ServiceId>,
    /// Backend rows found in the maps that belong to no port.
    strays: Vec<(Family, BackendId)>,
    /// When to retry the removal of unowned rows: number of failures and time.
    prune_retry: Option<(u32, Instant)>,
    cidr_failure: Option<CidrFailure>,
    /// How long backends that are missing from the objects keep their connections.
    grace: Duration,
    /// Whether a Service did not fit because of the rows of absent backends.
    needs_room: bool,
    /// Services with absent backends, by the time when the first of them is removed.
    absences: BTreeSet<(Instant, NamespacedName)>,
}

/// One Service: its desired state and what it has in the maps.
#[derive(Debug, Default)]
struct Entry {
    desired: Option<Arc<DesiredService>>,
    /// Ports that have an id, including ports to be removed.
    ports: Vec<(PortName, ServiceId)>,
    /// Addresses whose wildcard row it shares.
    vips: BTreeSet<IpAddr>,
    /// The source ranges for its next rows of load balancer addresses. 0 allows all clients. The
    /// Service counts as a user of the set.
    ranges: SetId,
    /// Frontends that another Service holds.
    lost: Vec<FrontendKey>,
    failure: Option<Failure>,
    /// The same time as in `absences`.
    absent_until: Option<Instant>,
}

/// Why the last attempt failed, and when the next one is scheduled.
#[derive(Debug)]
struct Failure {
    message: String,
    attempts: u32,
    due: Instant,
    /// When the kernel began to refuse the Service. `None` if the Service does not fit into the
    /// maps.
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

/// The installation state of one Service.
#[derive(Clone, Debug)]
pub struct InstalledService<'a> {
    /// Its name.
    pub name: &'a NamespacedName,
    /// Its desired state.
    pub desired: &'a DesiredService,
    /// Why it is not in the maps as desired.
    pub failure: Option<&'a str>,
    /// Frontends that another Service holds, with that Service.
    pub conflicts: Vec<(FrontendKey, &'a NamespacedName)>,
}

impl Installer {
    /// Installs all Services for the first time after a start. If two Services want the same
    /// frontend, the one that holds it keeps it. If neither holds it, the older one gets it. Then
    /// unowned rows are removed.
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
        // All new rows are written before old ones are deleted, so a frontend that moves between
        // Services is never missing.
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

    /// Installs the new desired state of a Service. `None` removes it. `ended` contains addresses
    /// whose Pods have ended, so their backends do not come back.
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

    /// Runs scheduled work: frees what is no longer in use, and retries failed Services.
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

    /// When [`Self::tick`] must run next.
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

    /// All desired Services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = InstalledService<'_>> {
        self.services
            .iter()
            .filter_map(|(name, entry)| self.view(name, entry))
    }

    /// One Service, if it is desired.
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

    /// Services that could not be removed yet, and why.
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

    /// Records the result of an attempt and schedules the next one.
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
                        self.needs_room |= [
                            Address4::BACKENDS.name,
                            Address6::BACKENDS.name,
                            map::SERVICE_STATS.name,
                        ]
                        .contains(&map);
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

    /// Removes absent backends if other Services need their rows.
    fn make_room(&mut self, context: &mut Context<'_>) {
        if std::mem::take(&mut self.needs_room) {
            self.remove_absent_backends(context);
        }
    }

    fn run_woken(&mut self, context: &mut Context<'_>) {
        while let Some(name) = self.woken.pop_first() {
            self.attempt(&name, context);
        }
    }
}

/// The rank of a Service among those that want the same frontend: its creation time. Unknown times
/// rank last.
fn age(desired: &DesiredService) -> i64 {
    desired.created.unwrap_or(i64::MAX)
}

/// The delay after a number of consecutive failures.
fn pause(attempts: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << attempts.min(16)).min(RETRY_LAST)
}

#[cfg(test)]
mod tests;
