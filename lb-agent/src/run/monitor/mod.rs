//! Reports the state of the main loop to health checks and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use crate::controller::Controller;
use crate::desired::{HealthCheck, NamespacedName, PerFamily, ServiceHealth};
use crate::health::{Checks, Health, Pulse};
use crate::install::Installer;
use crate::maps::Maps;
use crate::metrics::Metrics;
use crate::network::Family;

/// The longest time between two heartbeats of the loop, and between two updates of the metrics that
/// take time to compute.
const SURVEY_INTERVAL: Duration = Duration::from_secs(10);
/// The delay between a change and the update of these metrics.
const SURVEY_DELAY: Duration = Duration::from_secs(1);

/// Observes the controller and publishes its state.
pub(super) struct Monitor {
    health: Arc<Health>,
    checks: watch::Sender<Checks>,
    metrics: Arc<Metrics>,
    /// When the agent started. Changes of endpoints before this time are not counted as latencies:
    /// an earlier agent installed them.
    started: Timestamp,
    /// Services whose last installation failed.
    waiting: BTreeSet<NamespacedName>,
    /// Services that drop traffic because all their endpoints are on other nodes.
    without_local: BTreeMap<NamespacedName, ServiceHealth>,
    next_survey: Instant,
}

impl Monitor {
    pub(super) fn new(health: Arc<Health>, metrics: Arc<Metrics>, now: Instant, clock: Timestamp) -> Self {
        Self {
            health,
            checks: watch::Sender::default(),
            metrics,
            started: clock,
            waiting: BTreeSet::new(),
            without_local: BTreeMap::new(),
            next_survey: now,
        }
    }

    /// The health checks that Services request.
    pub(super) fn checks(&self) -> watch::Receiver<Checks> {
        self.checks.subscribe()
    }

    /// The latest time for the next call of [`Self::tick`]. Without calls, health checks fail.
    pub(super) fn next_due(&self) -> Instant {
        self.next_survey
    }

    /// Runs the controller, and reports the result.
    pub(super) fn tick<M: Maps>(&mut self, controller: &mut Controller<M>, now: Instant) {
        // Reported before the controller handles them, so that they appear as pending if it hangs.
        self.report_changes(controller);
        let changed = controller.tick(now);
        if !changed.is_empty() {
            self.metrics.kube_proxy.passed(now.elapsed());
            self.next_survey = self.next_survey.min(now + SURVEY_DELAY);
        }
        self.report_changes(controller);
        self.follow(controller, changed);
        let clock = Timestamp::now();
        self.report_latencies(controller, clock);
        self.beat(controller, now, clock);
        if self.next_survey <= now {
            self.next_survey = now + SURVEY_INTERVAL;
            if controller.take_changed() {
                self.metrics.agent.set_problems(controller.problems().len());
                self.metrics.agent.set_usage(controller.installer().usage());
            }
        }
    }

    fn report_changes<M: Maps>(&self, controller: &Controller<M>) {
        let observed = controller.observed();
        let (services, endpoints) = (observed.service_changes, observed.endpoint_changes);
        let clock = seconds(Timestamp::now());
        self.metrics.kube_proxy.changed(services, endpoints, clock);
    }

    /// Updates the health checks and metrics of changed Services, and of those whose installation
    /// failed before and may have succeeded now.
    fn follow<M: Maps>(&mut self, controller: &Controller<M>, mut changed: BTreeSet<NamespacedName>) {
        let installer = controller.installer();
        changed.append(&mut self.waiting);
        let addresses = controller.node().node_ports_at();
        self.checks.send_if_modified(|checks| {
            let mut is_new = checks.addresses != addresses;
            checks.addresses = addresses;
            for name in &changed {
                let old = checks.services.get(name).copied();
                let new = check(installer, name, old);
                is_new |= old != new;
                match new {
                    Some(check) => checks.services.insert(name.clone(), check),
                    None => checks.services.remove(name),
                };
            }
            is_new
        });
        for name in changed {
            self.remember(installer, name);
        }
        self.report_without_local();
    }

    fn remember(&mut self, installer: &Installer, name: NamespacedName) {
        let service = installer.service(&name);
        let health = service.as_ref().map(|service| service.desired.health);
        let is_waiting = service.is_some_and(|service| service.failure.is_some());
        match health.filter(has_ports_without_local) {
            Some(health) => self.without_local.insert(name.clone(), health),
            None => self.without_local.remove(&name),
        };
        if is_waiting {
            self.waiting.insert(name);
        }
    }

    fn report_without_local(&self) {
        let sum = |count: fn(&ServiceHealth) -> PerFamily| {
            PerFamily::of(|family| {
                let counts = self
                    .without_local
                    .values()
                    .map(|health| count(health).get(family));
                counts.sum()
            })
        };
        let internal = sum(|health| health.without_local_internal);
        let external = sum(|health| health.without_local_external);
        self.metrics.kube_proxy.without_local(internal, external);
    }

    /// Reports the time from the cause of each endpoint change until the maps contain it.
    fn report_latencies<M: Maps>(&self, controller: &mut Controller<M>, clock: Timestamp) {
        if !controller.is_synced() {
            return;
        }
        for trigger in controller.take_triggers() {
            let service = controller.installer().service(&trigger.service);
            let is_installed = service.is_some_and(|service| service.failure.is_none());
            if is_installed && trigger.time > self.started {
                let latency = clock.duration_since(trigger.time).as_secs_f64();
                self.metrics.kube_proxy.programmed(trigger.family, latency);
            }
        }
    }

    fn beat<M: Maps>(&self, controller: &Controller<M>, now: Instant, clock: Timestamp) {
        let fault_since = controller.installer().fault_since();
        let is_synced = controller.is_synced() && fault_since.is_none();
        if is_synced {
            self.metrics.kube_proxy.synced(seconds(clock));
        }
        let synced = if is_synced {
            clock
        } else {
            self.health.pulse().synced
        };
        self.health.set(Pulse {
            beat: now,
            fault_since,
            synced,
            node_is_leaving: controller.observed().node_is_leaving,
        });
    }
}

/// Returns the health check of a Service. If its last installation failed, the maps still serve the
/// previous version. Its health check stays then, with no more endpoints than there are now.
fn check(installer: &Installer, name: &NamespacedName, old: Option<HealthCheck>) -> Option<HealthCheck> {
    let service = installer.service(name)?;
    let new = service.desired.health.check?;
    if service.failure.is_none() {
        return Some(new);
    }
    let old = old?;
    let local_endpoints = PerFamily::of(|family| {
        let [old, new] = [old, new].map(|check| check.local_endpoints.get(family));
        old.min(new)
    });
    Some(HealthCheck {
        port: old.port,
        families: old.families,
        local_endpoints,
    })
}

fn has_ports_without_local(health: &ServiceHealth) -> bool {
    let counts = [health.without_local_internal, health.without_local_external];
    Family::ALL
        .into_iter()
        .any(|family| counts.iter().any(|count| count.get(family) > 0))
}

/// Returns the seconds since 1970, the unit of metrics.
fn seconds(clock: Timestamp) -> f64 {
    clock.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64()
}

#[cfg(test)]
mod tests;
