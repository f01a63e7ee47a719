//! The agent's synchronous core: it takes changes of objects, and applies operations to the maps.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::desired::{DesiredPort, NamespacedName, ServiceType};
use crate::install::{InstalledService, Installer, Repaired};
use crate::maps::{MapError, Maps, Protocol};
use crate::model::{self, NodeConfig, Problem};
use crate::object::{Change, ObjectKind, ObjectReference};
use crate::state::{ClusterState, Observed, Trigger};

/// Keeps the maps in line with the objects. It is synchronous: the caller supplies changes and the
/// time.
#[derive(Debug)]
pub struct Controller<M> {
    state: ClusterState,
    installer: Installer,
    maps: M,
    is_synced: bool,
    /// Whether anything may have changed since the last [`Self::take_changed`].
    has_news: bool,
    /// The problems of each Service and its endpoints.
    problems: BTreeMap<NamespacedName, Vec<Problem>>,
}

/// Counts and problems, for metrics and `status`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Status {
    /// Whether everything was listed and installed once.
    pub synced: bool,
    /// Kinds that the source has not listed yet.
    pub waiting_for: Vec<String>,
    /// The number of Service ports that should be in the maps.
    pub service_ports: usize,
    /// The number of Service ports that are not in the maps as desired.
    pub failed: usize,
    /// All problems, sorted.
    pub problems: Vec<String>,
}

/// One port of a Service, for the output of `services`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ServiceSummary {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The port's name; empty if it has none.
    pub port: String,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The Service's type.
    #[serde(rename = "type")]
    pub service_type: ServiceType,
    /// Addresses and ports that clients connect to.
    pub frontends: Vec<String>,
    /// The numbers of its endpoints.
    pub endpoints: EndpointCounts,
    /// Whether its rows are installed.
    #[serde(flatten)]
    pub state: ServiceState,
}

/// The numbers of a port's endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct EndpointCounts {
    /// Endpoints that get new connections.
    pub ready: usize,
    /// Endpoints that only keep their existing connections.
    pub draining: usize,
    /// Endpoints on this node that get new connections.
    pub local: usize,
}

/// Whether the rows of a port are installed.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(tag = "state", content = "message", rename_all = "lowercase")]
pub enum ServiceState {
    /// They are installed.
    Ok,
    /// They are not installed, with the reason.
    Failed(String),
}

impl<M: Maps> Controller<M> {
    /// Starts with the content of the maps. The source delivers `kinds`. If a backend disappears,
    /// its connections are kept for `grace`.
    pub fn new(
        maps: M,
        node: NodeConfig,
        kinds: impl IntoIterator<Item = ObjectKind>,
        grace: Duration,
    ) -> Result<Self, MapError> {
        Ok(Self {
            installer: Installer::restore(&maps.image()?, maps.capacity(), grace),
            state: ClusterState::new(node, kinds),
            maps,
            is_synced: false,
            has_news: true,
            problems: BTreeMap::new(),
        })
    }

    /// Records a change. The next [`Self::tick`] installs it, so many changes are installed
    /// together.
    pub fn change(&mut self, change: Change) {
        self.has_news = true;
        self.state.apply(change);
    }

    /// Changes the node's configuration. The next [`Self::tick`] installs it.
    pub fn set_node(&mut self, node: NodeConfig) {
        self.has_news = true;
        self.state.set_node(node);
    }

    /// Installs changes, and does the work that is due. It writes nothing before the source has
    /// listed every kind. Returns the Services that changed.
    pub fn tick(&mut self, now: Instant) -> BTreeSet<NamespacedName> {
        if !self.state.ready() {
            return BTreeSet::new();
        }
        self.has_news |= self.next_due().is_some_and(|due| due <= now);
        let dirty = self.state.take_dirty();
        let ended = self.state.take_ended();
        let cidrs = self.state.node().service_cidrs.clone();
        self.installer.end_cidrs(&cidrs, &mut self.maps, now);
        if self.is_synced {
            for name in &dirty {
                let desired = self.desired(name);
                self.installer.set(name, desired, &ended, &mut self.maps, now);
            }
        } else {
            let desired = dirty
                .iter()
                .filter_map(|name| self.desired(name).map(|desired| (name.clone(), desired)))
                .collect();
            self.installer.first_sync(desired, &mut self.maps, now);
            self.is_synced = true;
        }
        self.installer.tick(&mut self.maps, now);
        self.installer.begin_cidrs(&cidrs, &mut self.maps, now);
        dirty
    }

    /// Whether the desired rows, or the result of their installation, may have changed since the
    /// last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// When [`Self::tick`] needs to be called if there is no change.
    pub fn next_due(&self) -> Option<Instant> {
        self.installer.next_due()
    }

    /// Compares the maps with their expected content, and writes the difference.
    pub fn repair(&mut self) -> Result<Repaired, MapError> {
        if !self.is_synced {
            return Ok(Repaired::default());
        }
        self.has_news = true;
        let image = self.maps.image()?;
        Ok(self.installer.repair(&image, &mut self.maps))
    }

    /// Whether everything was listed and installed once.
    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// The maps.
    pub fn maps(&self) -> &M {
        &self.maps
    }

    /// The installer, with the installed Services.
    pub fn installer(&self) -> &Installer {
        &self.installer
    }

    /// Whether a Pod of this node has or may have an address.
    pub fn is_pod_address(&self, address: IpAddr) -> bool {
        self.state.is_pod_address(address)
    }

    /// Data from the objects for health checks and metrics.
    pub fn observed(&self) -> &Observed {
        self.state.observed()
    }

    /// Returns the slices that changed since the last call.
    pub fn take_triggers(&mut self) -> Vec<Trigger> {
        self.state.take_triggers()
    }

    /// The node's configuration, with the data of its Node object.
    pub fn node(&self) -> &NodeConfig {
        self.state.node()
    }

    /// Returns the counts and problems.
    pub fn status(&self) -> Status {
        let services = self.services();
        Status {
            synced: self.is_synced,
            waiting_for: self.state.pending().map(|kind| kind.to_string()).collect(),
            service_ports: services.len(),
            failed: services
                .iter()
                .filter(|service| service.state != ServiceState::Ok)
                .count(),
            problems: self.problems().iter().map(Problem::to_string).collect(),
        }
    }

    /// Returns all ports of all Services, sorted.
    pub fn services(&self) -> Vec<ServiceSummary> {
        let mut services: Vec<InstalledService<'_>> = self.installer.services().collect();
        services.sort_by_key(|service| service.name);
        services.iter().flat_map(summaries).collect()
    }

    /// Returns all problems of the objects and their installation, sorted.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.state.problems();
        problems.extend(self.problems.values().flatten().cloned());
        for service in self.installer.services() {
            let failures = service.failure.map(str::to_owned).into_iter();
            let messages = failures.chain(service.conflicts.iter().map(conflict));
            problems.extend(messages.map(|message| service_problem(service.name, message)));
        }
        for (name, failure) in self.installer.failed_removals() {
            problems.push(service_problem(name, format!("it is not removed yet: {failure}")));
        }
        problems.sort();
        problems.dedup();
        problems
    }

    /// Returns the desired rows of a Service. It also records the problems.
    fn desired(&mut self, name: &NamespacedName) -> Option<Arc<crate::desired::DesiredService>> {
        let Some(service) = self.state.service(name) else {
            self.problems.remove(name);
            return None;
        };
        let (slices, mut problems) = self.state.slices(name);
        let mut node = Cow::Borrowed(self.state.node());
        // A Service CIDR that could not be removed from the maps still makes the programs drop
        // packets to addresses without a row.
        if !self.installer.cidrs().is_subset(&node.service_cidrs) {
            node.to_mut().service_cidrs.extend(self.installer.cidrs());
        }
        let (desired, mut unusable) = model::desired(service, &slices, &node);
        problems.append(&mut unusable);
        let known = self.problems.get(name).map(Vec::as_slice).unwrap_or_default();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::warn!("{problem}");
        }
        if problems.is_empty() {
            self.problems.remove(name);
        } else {
            self.problems.insert(name.clone(), problems);
        }
        desired.map(Arc::new)
    }
}

fn service_problem(name: &NamespacedName, message: String) -> Problem {
    let object = ObjectReference {
        kind: ObjectKind::Service,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    };
    Problem { object, message }
}

fn conflict((key, holder): &(crate::maps::FrontendKey, &NamespacedName)) -> String {
    format!("{key} is used by Service {holder}: give one of them another address or port")
}

fn summaries(service: &InstalledService<'_>) -> Vec<ServiceSummary> {
    let summary = |port: &DesiredPort| {
        let lost = service
            .conflicts
            .iter()
            .find(|(key, _)| port.frontends.iter().any(|frontend| frontend.key == *key));
        let failure = service.failure.map(str::to_owned).or_else(|| lost.map(conflict));
        let active = || port.backends.iter().filter(|backend| backend.is_active());
        ServiceSummary {
            namespace: service.name.namespace.clone(),
            name: service.name.name.clone(),
            port: port.port.name.clone(),
            protocol: port.port.protocol,
            service_type: service.desired.service_type,
            frontends: port
                .frontends
                .iter()
                .map(|frontend| frontend.key.to_string())
                .collect(),
            endpoints: EndpointCounts {
                ready: active().count(),
                draining: port.backends.len() - active().count(),
                local: active().filter(|backend| backend.local).count(),
            },
            state: failure.map_or(ServiceState::Ok, ServiceState::Failed),
        }
    };
    service.desired.ports.iter().map(summary).collect()
}

#[cfg(test)]
mod tests;
