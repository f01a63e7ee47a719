//! The agent's main loop. Its thread is the only one that writes Services to the maps and attaches
//! programs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::arguments::RunArguments;
use super::monitor::Monitor;
use super::seed::Seed;
use super::{Searches, setup};
use crate::conntrack::OtherConnections;
use crate::controller::Controller;
use crate::datapath::Datapath;
use crate::datapath::attach::options::AttachOptions;
use crate::datapath::maps::KernelMaps;
use crate::datapath::object::settings::Settings;
use crate::datapath::pins::Pins;
use crate::datapath::readings::Readings;
use crate::describe;
use crate::devices::{
    self, Bare, DeviceOptions, DeviceView, Role, Snapshot, device_addresses, primary_addresses,
};
use crate::model::NodeConfig;
use crate::network::Family;
use crate::object::Change;
use crate::reassembly::Reassembly;
use crate::sockets::{self, Closer, Finder};
use crate::source::manifests::AllocationOptions;

/// Capacity of the queue of changes that arrive while the loop writes the maps.
const CHANGES: usize = 1024;
/// How often the agent compares the maps with what it wrote to them.
const REPAIR_INTERVAL: Duration = Duration::from_secs(600);
/// The delay before the agent attaches again after a failure.
const ATTACH_RETRY: Duration = Duration::from_secs(5);
/// The delay between a change of the node's addresses and loading the programs with the new ones.
/// Further changes during this time cause no further load.
const SETTLING: Duration = Duration::from_secs(1);
/// How often the agent checks whether other software has attached programs before its own.
const ATTACH_CHECK: Duration = Duration::from_secs(10);

/// Runs the agent until SIGTERM or SIGINT.
pub(super) async fn run(
    arguments: &RunArguments,
    searches: Searches,
    reassembly: Option<Reassembly>,
) -> anyhow::Result<()> {
    let mut agent = Agent::start(arguments, searches).await?;
    if let Some(reassembly) = &reassembly {
        agent.datapath.use_reassembly(reassembly.device());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            more = agent.step() => more?,
        }
    }
    if let Err(error) = agent.datapath.leave_reassembly() {
        tracing::warn!("{}", describe(&error));
    }
    tracing::info!("stopping; programs and maps stay in the kernel, and Services keep working");
    Ok(())
}

/// Waits until the finder reports a change. Without a finder, never returns.
async fn found(finder: &mut Option<Finder>) {
    match finder {
        Some(finder) => finder.changed().await,
        None => std::future::pending().await,
    }
}

/// The state of the main loop.
struct Agent {
    controller: Controller<KernelMaps>,
    monitor: Monitor,
    /// The node as described by the command line and its devices.
    node: NodeConfig,
    /// The addresses of the node from the command line.
    configured: BTreeSet<IpAddr>,
    datapath: Datapath,
    cgroup: Option<PathBuf>,
    changes: mpsc::Receiver<Change>,
    source: JoinHandle<anyhow::Result<()>>,
    view: watch::Receiver<DeviceView>,
    device_options: watch::Sender<DeviceOptions>,
    /// Whether the programs are attached. The agent attaches them after the first sync, so that
    /// they never see empty maps.
    attached: bool,
    /// The devices without programs that were logged.
    bare: BTreeSet<Bare>,
    next_attach: Option<Instant>,
    /// When to load the programs with the node's new addresses.
    reload_due: Option<Instant>,
    next_repair: Instant,
    closer: Option<Closer>,
    finder: Option<Finder>,
    /// Whether the command line selects the devices of Pods.
    names_pod_devices: bool,
    seed: Seed,
    /// `Some` until the programs are attached for the first time.
    others: Option<OtherConnections>,
}

impl Agent {
    async fn start(arguments: &RunArguments, searches: Searches) -> anyhow::Result<Self> {
        let node_name = setup::node_name(arguments)?;
        let allocation = AllocationOptions {
            cidrs: arguments.service_cidr.cidrs()?,
            state_directory: arguments.state_directory.clone(),
        };
        let configured: BTreeSet<IpAddr> = arguments.node_address.iter().copied().collect();
        let options = DeviceOptions::new(&arguments.devices, configured.clone())?;
        let (device_options, options) = watch::channel(options);
        let view = devices::watch(options).await?;

        let addresses = own_addresses(&configured, &BTreeSet::new(), &view.borrow().snapshot);
        let cgroup = setup::cgroup(arguments)?;
        let pins = Pins::new(&arguments.pins.pin_path);
        let mut seed = Seed::new(arguments.hash_seed.as_deref(), &pins.maps());
        let settings = setup::settings(arguments, &addresses, seed.now())?;
        let attach = AttachOptions {
            xdp: arguments.xdp,
            tc: arguments.tc,
        };
        let maps_directory = pins.maps();
        let datapath = Datapath::load(settings, pins, attach)?;
        let mut maps = KernelMaps::open(&maps_directory)?;
        maps.renew_filters(&maps_directory)?;

        let others = OtherConnections::open(&maps_directory)?;
        let monitor = setup::monitor(arguments.health, Readings::open(&maps_directory)?)?;

        let (sender, changes) = mpsc::channel(CHANGES);
        let source = setup::start_source(&arguments.source, allocation, sender).await?;
        seed.follow(source.cluster, arguments.hash_seed.is_some());
        let node = NodeConfig {
            name: node_name,
            zone: None,
            addresses,
            device_addresses: device_addresses(&view.borrow().snapshot),
            other_nodes: BTreeSet::new(),
            service_cidrs: arguments.service_cidr.named(),
            node_port_addresses: arguments.nodeport_addresses.clone(),
            unknown_port: arguments.unknown_port,
            service_proxy_name: arguments.service_proxy_name.clone(),
        };
        let grace = Duration::from_secs(arguments.removed_backend_grace.into());
        Ok(Self {
            controller: Controller::new(maps, node.clone(), source.kinds, grace)?,
            monitor,
            node,
            configured,
            datapath,
            cgroup,
            changes,
            source: source.task,
            view,
            device_options,
            attached: false,
            bare: BTreeSet::new(),
            next_attach: None,
            reload_due: None,
            next_repair: Instant::now() + REPAIR_INTERVAL,
            closer: searches.closer,
            finder: searches.finder,
            names_pod_devices: !arguments.devices.pod_device.is_empty(),
            seed,
            others: Some(others),
        })
    }

    /// Waits for the next event or deadline and handles it.
    async fn step(&mut self) -> anyhow::Result<()> {
        let due = [
            self.controller.next_due(),
            self.next_attach,
            self.reload_due,
            Some(self.monitor.next_due()),
            Some(self.next_repair),
        ];
        let due = due.into_iter().flatten().min().unwrap_or(self.next_repair);
        tokio::select! {
            change = self.changes.recv() => match change {
                Some(change) => self.take(change),
                None => return self.source_ended().await,
            },
            changed = self.view.changed() => {
                changed.context("the watch on network devices ended")?;
                self.next_attach = Some(Instant::now());
                self.follow_devices();
                if let Some(finder) = &self.finder {
                    finder.look();
                }
            }
            () = found(&mut self.finder) => {}
            () = self.seed.changed() => {}
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let now = Instant::now();
        self.monitor.tick(&mut self.controller, now);
        let seed = self.seed.settled();
        self.follow_node(now)?;
        if self.controller.is_synced() {
            self.follow_namespaces();
        }
        // Before the finder's first search, connections of Pods would be translated at their
        // devices instead of their sockets.
        let has_looked = self.finder.as_ref().is_none_or(Finder::has_looked);
        if self.controller.is_synced()
            && seed.is_some()
            && has_looked
            && (!self.attached || self.next_attach.is_some_and(|due| due <= now))
        {
            self.attach(now)?;
        }
        if self.next_repair <= now {
            self.next_repair = now + REPAIR_INTERVAL;
            self.repair();
        }
        if let Some(closer) = self.closer.as_mut().filter(|_| self.controller.is_synced()) {
            closer.follow(self.controller.maps().changes());
        }
        Ok(())
    }

    /// Takes a change and all queued ones, so that one pass over the maps handles all of them.
    fn take(&mut self, change: Change) {
        self.controller.change(change);
        while let Ok(change) = self.changes.try_recv() {
            self.controller.change(change);
        }
    }

    async fn source_ended(&mut self) -> anyhow::Result<()> {
        (&mut self.source).await.context("the object source crashed")??;
        bail!("the object source ended unexpectedly")
    }

    /// Updates the node's addresses from its devices. Addresses may change at any time, for example
    /// with a DHCP lease; NodePorts follow them.
    fn follow_devices(&mut self) {
        let snapshot = &self.view.borrow().snapshot;
        let node = NodeConfig {
            addresses: own_addresses(&self.configured, &self.node.addresses, snapshot),
            device_addresses: device_addresses(snapshot),
            ..self.node.clone()
        };
        if self.node != node {
            self.controller.set_node(node.clone());
            self.node = node;
        }
    }

    /// Passes the node's addresses, which the Node object may change, to the device watch. Loads
    /// the programs again if the addresses or the hash seed changed.
    fn follow_node(&mut self, now: Instant) -> anyhow::Result<()> {
        let addresses = &self.controller.node().addresses;
        self.device_options.send_if_modified(|options| {
            let is_new = options.node_addresses != *addresses;
            options.node_addresses.clone_from(addresses);
            is_new
        });
        let settings = Settings {
            node_address4: setup::first_ipv4(addresses),
            node_address6: setup::first_ipv6(addresses),
            hash_seed: self.seed.now(),
            ..self.datapath.settings().clone()
        };
        if settings == *self.datapath.settings() {
            self.reload_due = None;
            return Ok(());
        }
        // Attached programs use these addresses only as a fallback source address, so a change can
        // wait. Loading blocks the loop, so addresses that arrive one by one are loaded together.
        let is_only_address = self.attached && settings.hash_seed == self.datapath.settings().hash_seed;
        let due = *self.reload_due.get_or_insert(now + SETTLING);
        if is_only_address && now < due {
            return Ok(());
        }
        tracing::info!(?addresses, "the node's addresses or the hash seed changed");
        self.reload_due = None;
        self.datapath.reload(settings)?;
        self.attached = false;
        Ok(())
    }

    /// Writes for the socket programs which network namespaces belong to Pods. Without a finder,
    /// removes the rows of an earlier agent.
    fn follow_namespaces(&mut self) {
        let found = self.finder.as_mut().map(Finder::found);
        let (places, all) = match found.as_deref() {
            Some(Some(found)) => (found.places.as_slice(), !found.failed),
            Some(None) => return,
            None => (&[][..], true),
        };
        let view = self.view.borrow();
        let is_pod_device =
            |index| matches!(view.attachments.get(&index), Some(attachment) if attachment.role == Role::Pod);
        let is_pod_address = |address| self.controller.is_pod_address(address);
        let roles = sockets::roles(places, is_pod_address, is_pod_device, self.names_pod_devices);
        if let Err(error) = self.datapath.set_namespaces(roles, all) {
            tracing::warn!("{}; trying again", describe(&error));
        }
    }

    fn attach(&mut self, now: Instant) -> anyhow::Result<()> {
        // `borrow` does not mark the view as seen. If it changed since the last step, the next step
        // still updates the node's addresses.
        let view = self.view.borrow().clone();
        let others = self.others.take().and_then(setup::find_others);
        let errors = self.datapath.set_devices(&view, self.controller.maps().filter());
        for error in &errors {
            tracing::warn!("{}; trying again", describe(error));
        }
        let next = if errors.is_empty() {
            ATTACH_CHECK
        } else {
            ATTACH_RETRY
        };
        self.next_attach = Some(now + next);
        self.log_bare_devices(&view);
        if !self.attached {
            self.datapath.set_cgroup(self.cgroup.as_deref())?;
        }
        if let Err(error) = self.datapath.remove_leftovers() {
            tracing::warn!("{}; trying again", describe(&error));
        }
        if !self.attached {
            self.attached = true;
            if let Some(Err(error)) = others.map(OtherConnections::follow) {
                tracing::warn!("{}", describe(&error));
            }
            let status = self.controller.status();
            tracing::info!(
                service_ports = status.service_ports,
                failed = status.failed,
                devices = view.attachments.len(),
                "in sync"
            );
        }
        Ok(())
    }

    /// Logs the devices that carry no programs, once per device and reason.
    fn log_bare_devices(&mut self, view: &DeviceView) {
        let bare = devices::bare(&view.snapshot, |index| view.attachments.contains_key(&index));
        for found in bare.difference(&self.bare) {
            let why = found.why.text();
            tracing::info!(device = found.name, "no programs at this device: {why}");
        }
        self.bare = bare;
    }

    fn repair(&mut self) {
        match self.controller.repair() {
            Ok(repaired) if repaired == crate::install::Repaired::default() => {}
            Ok(repaired) => tracing::warn!(?repaired, "repaired maps with unexpected contents"),
            Err(error) => tracing::warn!("cannot verify the maps: {}", crate::describe(&error)),
        }
    }
}

/// The node's primary addresses while the Node object supplies none. They are the addresses from
/// the command line. In a family without one, the known address stays as long as a device has it.
/// Otherwise it is the address of the default route.
fn own_addresses(
    configured: &BTreeSet<IpAddr>,
    known: &BTreeSet<IpAddr>,
    snapshot: &Snapshot,
) -> BTreeSet<IpAddr> {
    let of_family = |addresses: &BTreeSet<IpAddr>, family| {
        addresses
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    };
    let primary = primary_addresses(snapshot);
    let present = device_addresses(snapshot);
    let mut addresses = configured.clone();
    for family in Family::ALL {
        if of_family(configured, family).is_none() {
            let known = of_family(known, family).filter(|address| present.contains(address));
            addresses.extend(known.or(primary.get(&family).copied()));
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Address, DefaultRoute, Link};

    /// A node whose device has these addresses, with a default route for each of `families`.
    fn snapshot(addresses: &[&str], families: &[Family]) -> Snapshot {
        let address = |text: &&str| Address {
            address: text.parse().unwrap(),
            global: true,
            stable: true,
        };
        let route = |&family| DefaultRoute {
            family,
            main: true,
            metric: 0,
            device: 2,
            preferred_source: None,
        };
        let link = Link {
            index: 2,
            up: true,
            ..Link::default()
        };
        Snapshot {
            links: [(2, link)].into(),
            addresses: [(2, addresses.iter().map(address).collect())].into(),
            default_routes: families.iter().map(route).collect(),
            ..Snapshot::default()
        }
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_of_default_routes_are_used_unless_configured() {
        let both = snapshot(&["192.0.2.1", "2001:db8::1"], &Family::ALL);
        let none = BTreeSet::new();
        assert_eq!(
            own_addresses(&none, &none, &both),
            set(&["192.0.2.1", "2001:db8::1"])
        );
        let configured = set(&["198.51.100.1"]);
        assert_eq!(
            own_addresses(&configured, &none, &both),
            set(&["198.51.100.1", "2001:db8::1"])
        );
        assert_eq!(own_addresses(&none, &none, &snapshot(&[], &[])), none);
    }

    #[test]
    fn a_known_address_stays_until_no_device_has_it() {
        let (none, known) = (BTreeSet::new(), set(&["192.0.2.1"]));
        let addresses = ["192.0.2.1", "192.0.2.2"];
        assert_eq!(own_addresses(&none, &known, &snapshot(&addresses, &[])), known);
        let before_it = snapshot(&["192.0.2.2", "192.0.2.1"], &[Family::V4]);
        assert_eq!(own_addresses(&none, &known, &before_it), known);
        let replaced = snapshot(&addresses[1..], &[Family::V4]);
        assert_eq!(own_addresses(&none, &known, &replaced), set(&["192.0.2.2"]));
        assert_eq!(
            own_addresses(&none, &known, &snapshot(&addresses[1..], &[])),
            none
        );
    }
}
