//! The agent's loop: one thread, which alone writes maps and attaches programs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use k8s_openapi::jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::monitor::Monitor;
use crate::cli::{OnRemovedBackend, RunArguments, SocketLb, SourceArguments};
use crate::controller::Controller;
use crate::datapath::Datapath;
use crate::datapath::attach::AttachOptions;
use crate::datapath::maps::KernelMaps;
use crate::datapath::object::Settings;
use crate::datapath::pins::Pins;
use crate::datapath::readings::Readings;
use crate::devices::{self, DeviceOptions, View, device_addresses, primary_addresses};
use crate::health::{self, Health, HealthArguments, Served};
use crate::maps::Capacity;
use crate::metrics::Metrics;
use crate::model::NodeConfig;
use crate::object::{Change, Kind};
use crate::sockets::Closer;
use crate::source::kube::{self, KubeOptions};
use crate::source::manifests::Manifests;
use crate::{describe, mounts, namespace, ports};

/// Changes that may wait while the maps are written.
const CHANGES: usize = 1024;
/// How often the maps are compared with what was written to them.
const REPAIR_INTERVAL: Duration = Duration::from_secs(600);
/// How soon attaching is tried again after it failed.
const ATTACH_RETRY: Duration = Duration::from_secs(5);

/// Runs the agent until it is told to stop.
pub(super) async fn run(arguments: &RunArguments, closer: Option<Closer>) -> anyhow::Result<()> {
    let mut agent = Agent::start(arguments, closer).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            more = agent.step() => more?,
        }
    }
    tracing::info!("stopping; programs and maps stay in the kernel and traffic goes on");
    Ok(())
}

/// Everything the loop holds.
struct Agent {
    controller: Controller<KernelMaps>,
    monitor: Monitor,
    /// The node as the command line and its devices describe it.
    node: NodeConfig,
    datapath: Datapath,
    cgroup: Option<PathBuf>,
    changes: mpsc::Receiver<Change>,
    source: JoinHandle<anyhow::Result<()>>,
    view: watch::Receiver<View>,
    device_options: watch::Sender<DeviceOptions>,
    /// Whether the programs are attached: not before the first sync, so that no packet meets empty maps.
    attached: bool,
    attach_retry: Option<Instant>,
    next_repair: Instant,
    closer: Option<Closer>,
}

impl Agent {
    async fn start(arguments: &RunArguments, closer: Option<Closer>) -> anyhow::Result<Self> {
        let node_name = node_name(arguments)?;
        let configured: BTreeSet<IpAddr> = arguments.node_address.iter().copied().collect();
        let options = DeviceOptions::new(&arguments.devices, configured.clone())?;
        let (device_options, options) = watch::channel(options);
        let view = devices::watch(options).await?;

        let mut addresses = configured;
        for (family, primary) in primary_addresses(&view.borrow().snapshot) {
            if !addresses
                .iter()
                .any(|address| crate::maps::Family::of(*address) == family)
            {
                addresses.insert(primary);
            }
        }
        let cgroup = cgroup(arguments)?;
        let settings = settings(arguments, &addresses)?;
        let pins = Pins::new(&arguments.pins.pin_path);
        let attach = AttachOptions {
            xdp: arguments.xdp,
            tc: arguments.tc,
        };
        let maps_directory = pins.maps();
        let datapath = Datapath::load(settings, pins, attach)?;
        let mut maps = KernelMaps::open(&maps_directory)?;
        maps.renew_filter(&maps_directory)?;
        warn_of_other_sizes(&maps, &datapath.settings().capacity);

        let monitor = monitor(arguments.health, Readings::open(&maps_directory)?)?;

        let (sender, changes) = mpsc::channel(CHANGES);
        let options = KubeOptions {
            node: node_name.clone(),
            service_proxy_name: arguments.service_proxy_name.clone(),
        };
        let (kinds, source) = start_source(&arguments.source, options, sender).await?;
        let node = NodeConfig {
            name: node_name,
            zone: None,
            addresses,
            device_addresses: device_addresses(&view.borrow().snapshot),
            node_port_addresses: arguments.nodeport_addresses.clone(),
            unknown_port: arguments.unknown_port,
            service_proxy_name: arguments.service_proxy_name.clone(),
        };
        Ok(Self {
            controller: Controller::new(maps, node.clone(), kinds)?,
            monitor,
            node,
            datapath,
            cgroup,
            changes,
            source,
            view,
            device_options,
            attached: false,
            attach_retry: None,
            next_repair: Instant::now() + REPAIR_INTERVAL,
            closer,
        })
    }

    /// Waits for something to happen and does what follows from it.
    async fn step(&mut self) -> anyhow::Result<()> {
        let due = [
            self.controller.next_due(),
            self.attach_retry,
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
                self.attach_retry = Some(Instant::now());
                self.follow_devices();
            }
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let now = Instant::now();
        self.monitor.tick(&mut self.controller, now);
        self.follow_node()?;
        if self.controller.is_synced() && (!self.attached || self.attach_retry.is_some_and(|due| due <= now))
        {
            self.attach(now)?;
        }
        if self.next_repair <= now {
            self.next_repair = now + REPAIR_INTERVAL;
            self.repair();
        }
        if let Some(closer) = self.closer.as_mut().filter(|_| self.controller.is_synced()) {
            closer.follow(self.controller.maps().removed_backends());
        }
        Ok(())
    }

    /// Takes a change and all that wait behind it, so that many changes are one pass over the maps.
    fn take(&mut self, change: Change) {
        self.controller.change(change);
        while let Ok(change) = self.changes.try_recv() {
            self.controller.change(change);
        }
    }

    async fn source_ended(&mut self) -> anyhow::Result<()> {
        (&mut self.source).await.context("the source of objects died")??;
        bail!("the source of objects ended")
    }

    /// NodePorts may be for addresses that come and go.
    fn follow_devices(&mut self) {
        let addresses = device_addresses(&self.view.borrow().snapshot);
        if self.node.device_addresses != addresses {
            self.node.device_addresses = addresses;
            self.controller.set_node(self.node.clone());
        }
    }

    /// The Node object may say other addresses than the devices did.
    fn follow_node(&mut self) -> anyhow::Result<()> {
        let addresses = &self.controller.node().addresses;
        self.device_options.send_if_modified(|options| {
            let is_new = options.node_addresses != *addresses;
            options.node_addresses.clone_from(addresses);
            is_new
        });
        let settings = Settings {
            node_address4: first_ipv4(addresses),
            node_address6: first_ipv6(addresses),
            ..self.datapath.settings().clone()
        };
        if settings != *self.datapath.settings() {
            tracing::info!(?addresses, "the node's addresses changed");
            self.datapath.reload(settings)?;
            self.attached = false;
        }
        Ok(())
    }

    fn attach(&mut self, now: Instant) -> anyhow::Result<()> {
        let view = self.view.borrow_and_update().clone();
        let errors = self.datapath.set_devices(&view);
        for error in &errors {
            tracing::warn!("{}; trying again", describe(error));
        }
        self.attach_retry = (!errors.is_empty()).then(|| now + ATTACH_RETRY);
        if !self.attached {
            self.datapath.set_cgroup(self.cgroup.as_deref())?;
            self.attached = true;
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

    fn repair(&mut self) {
        match self.controller.repair() {
            Ok(repaired) if repaired == crate::install::Repaired::default() => {}
            Ok(repaired) => tracing::warn!(?repaired, "the maps were not as written, and were repaired"),
            Err(error) => tracing::warn!("cannot compare the maps: {:#}", anyhow::Error::from(error)),
        }
    }
}

/// Starts to tell how the agent is.
fn monitor(arguments: HealthArguments, readings: Readings) -> anyhow::Result<Monitor> {
    let (now, clock) = (Instant::now(), Timestamp::now());
    let health = Arc::new(Health::new(now, clock));
    let metrics = Arc::new(Metrics::new()?);
    let monitor = Monitor::new(health.clone(), metrics.clone(), now, clock);
    let served = Served {
        arguments,
        health,
        checks: monitor.checks(),
        metrics,
        readings: Arc::new(readings),
    };
    health::start(served).context("cannot start to serve health checks and metrics")?;
    Ok(monitor)
}

fn node_name(arguments: &RunArguments) -> anyhow::Result<String> {
    if let Some(name) = &arguments.node_name {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname().context("cannot read the host name: use --node-name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

fn cgroup(arguments: &RunArguments) -> anyhow::Result<Option<PathBuf>> {
    if arguments.socket_lb == SocketLb::Off {
        return Ok(None);
    }
    if let Some(path) = &arguments.cgroup {
        return Ok(Some(path.clone()));
    }
    let mounts = mounts::mounts().context("cannot read the mounts of this host")?;
    let root = mounts::cgroup2(&mounts).map(Path::to_path_buf);
    if root.is_none() {
        tracing::warn!(
            "cgroup v2 is not mounted: processes of this host do not reach Services; mount it, name it with --cgroup, \
             or use --socket-lb=off"
        );
    }
    Ok(root)
}

fn settings(arguments: &RunArguments, addresses: &BTreeSet<IpAddr>) -> anyhow::Result<Settings> {
    let sizes = &arguments.sizes;
    let node_namespace = namespace::cookie().context("cannot tell this network namespace from others")?;
    Ok(Settings {
        node_address4: first_ipv4(addresses),
        node_address6: first_ipv6(addresses),
        node_namespace,
        only_node_sockets: arguments.socket_lb == SocketLb::Host,
        keeps_removed: arguments.on_removed_backend == OnRemovedBackend::Forward,
        translated_ports: ports::translated(),
        lifetimes: arguments.lifetimes.seconds(),
        capacity: Capacity {
            frontends: sizes.max_frontends,
            slots: sizes.max_slots,
            backends: sizes.max_backends,
            services: sizes.max_services,
            source_ranges: sizes.max_source_ranges,
        },
        flows: sizes.max_flows,
    })
}

fn first_ipv4(addresses: &BTreeSet<IpAddr>) -> Option<std::net::Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

fn first_ipv6(addresses: &BTreeSet<IpAddr>) -> Option<std::net::Ipv6Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    })
}

fn warn_of_other_sizes(maps: &KernelMaps, wanted: &Capacity) {
    let capacity = crate::maps::Maps::capacity(maps);
    if capacity != *wanted {
        tracing::warn!(
            ?capacity,
            ?wanted,
            "the pinned maps keep their sizes: run `lb-agent cleanup` before the agent to change them"
        );
    }
}

/// Starts the source; returns the kinds that it delivers.
async fn start_source(
    arguments: &SourceArguments,
    options: KubeOptions,
    changes: mpsc::Sender<Change>,
) -> anyhow::Result<(Vec<Kind>, JoinHandle<anyhow::Result<()>>)> {
    if let Some(directory) = &arguments.manifests {
        let manifests = Manifests::open(directory)?;
        let kinds = vec![Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::Pod];
        return Ok((
            kinds,
            tokio::spawn(async move { Ok(manifests.run(changes).await?) }),
        ));
    }
    let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if !arguments.kube && !in_cluster {
        bail!("name a source of Services: --manifests DIR, or --kube for the Kubernetes API");
    }
    let config = kube::infer_config().await?;
    let kinds = vec![Kind::Service, Kind::EndpointSlice, Kind::Node];
    Ok((
        kinds,
        tokio::spawn(async move { Ok(kube::run(config, options, changes).await?) }),
    ))
}
