//! Derives the agent's initial settings from its arguments and from the host, and starts its parts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::arguments::{OnRemovedBackend, RunArguments, SocketLb, SourceArguments};
use super::monitor::Monitor;
use crate::conntrack::OtherConnections;
use crate::datapath::object::settings::{Settings, TableSizes};
use crate::datapath::readings::Readings;
use crate::health::{self, Health, HealthArguments, Served};
use crate::maps::Capacity;
use crate::metrics::Metrics;
use crate::object::{Change, ObjectKind};
use crate::source::kube;
use crate::source::manifests::{AllocationOptions, Manifests};
use crate::{describe, mounts, namespace, ports};

/// Starts the servers for health checks and metrics. Returns the monitor that supplies them with
/// data.
pub(super) fn monitor(arguments: HealthArguments, readings: Readings) -> anyhow::Result<Monitor> {
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
    health::start(served).context("cannot start the servers for health checks and metrics")?;
    Ok(monitor)
}

/// The name of this node: from the command line, otherwise the host name.
pub(super) fn node_name(arguments: &RunArguments) -> anyhow::Result<String> {
    if let Some(name) = &arguments.node_name {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname().context("cannot read the host name: set --node-name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// The cgroup to attach the socket programs to. `None` if they are not to be attached.
pub(super) fn cgroup(arguments: &RunArguments) -> anyhow::Result<Option<PathBuf>> {
    if arguments.socket_lb == SocketLb::Off {
        return Ok(None);
    }
    if let Some(path) = &arguments.cgroup {
        return Ok(Some(path.clone()));
    }
    let mounts = mounts::mounts().context("cannot read the mounts of this host")?;
    let Some(root) = mounts::cgroup2(&mounts) else {
        tracing::warn!(
            "cgroup v2 is not mounted: processes of this host cannot reach Services; mount it, set --cgroup, or use \
             --socket-lb=off"
        );
        return Ok(None);
    };
    let partial = mounts::partial_cgroup2(root);
    if let Some(why) = partial.with_context(|| format!("cannot examine {}: set --cgroup", root.display()))? {
        tracing::warn!("processes of this host cannot reach Services: {why}; or use --socket-lb=off");
        return Ok(None);
    }
    Ok(Some(root.to_path_buf()))
}

/// The settings with which the programs are loaded on a node with these addresses.
pub(super) fn settings(
    arguments: &RunArguments,
    addresses: &BTreeSet<IpAddr>,
    hash_seed: u64,
) -> anyhow::Result<Settings> {
    let sizes = &arguments.sizes;
    let cookie = namespace::cookie().context("cannot read the cookie of this network namespace")?;
    if cookie.is_none() {
        tracing::info!(
            "this kernel has no SO_NETNS_COOKIE: the programs treat the initial network namespace as the node's"
        );
    }
    Ok(Settings {
        node_address4: first_ipv4(addresses),
        node_address6: first_ipv6(addresses),
        node_namespace: cookie.unwrap_or_default(),
        only_node_sockets: arguments.socket_lb == SocketLb::Host,
        keeps_removed: arguments.on_removed_backend == OnRemovedBackend::Forward,
        redirects_locally: arguments.local_redirect,
        source_ports: ports::source_ports(),
        hash_seed,
        lifetimes: arguments.lifetimes.seconds(),
        capacity: Capacity {
            frontends: sizes.max_frontends,
            slots: sizes.max_slots,
            backends: sizes.max_backends,
            services: sizes.max_services,
            source_ranges: sizes.max_source_ranges,
        },
        tables: TableSizes {
            flows: sizes.max_flows,
            sockets: sizes.max_sockets,
            affinities: sizes.max_affinities,
            fragments: sizes.max_fragments,
        },
    })
}

/// Returns the first IPv4 address.
pub(super) fn first_ipv4(addresses: &BTreeSet<IpAddr>) -> Option<std::net::Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// Returns the first IPv6 address.
pub(super) fn first_ipv6(addresses: &BTreeSet<IpAddr>) -> Option<std::net::Ipv6Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    })
}

/// A running source.
pub(super) struct Source {
    /// The kinds of objects that it delivers.
    pub(super) kinds: Vec<ObjectKind>,
    /// The task in which it runs.
    pub(super) task: JoinHandle<anyhow::Result<()>>,
    /// Receives the cluster's UID. The outer value is `None` until the API server answers, the
    /// inner one if it refuses. There is no receiver without a cluster.
    pub(super) cluster: Option<watch::Receiver<Option<Option<String>>>>,
}

/// Starts the source.
pub(super) async fn start_source(
    arguments: &SourceArguments,
    allocation: AllocationOptions,
    changes: mpsc::Sender<Change>,
) -> anyhow::Result<Source> {
    if let Some(directory) = &arguments.manifests {
        let manifests = Manifests::open(directory, allocation)?;
        return Ok(Source {
            kinds: ObjectKind::ALL.into(),
            task: tokio::spawn(async move { Ok(manifests.run(changes).await?) }),
            cluster: None,
        });
    }
    let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if !arguments.kube && !in_cluster {
        bail!("set a source of Services: --manifests DIR, or --kube for the Kubernetes API");
    }
    let config = kube::infer_config().await?;
    let kinds = vec![
        ObjectKind::Service,
        ObjectKind::EndpointSlice,
        ObjectKind::Node,
        ObjectKind::ServiceCidr,
    ];
    let (answer, cluster) = watch::channel(None);
    let asked = config.clone();
    tokio::spawn(async move { answer.send_replace(Some(kube::cluster_uid(asked).await)) });
    Ok(Source {
        kinds,
        task: tokio::spawn(async move { Ok(kube::run(config, kube::RETRY_UNAVAILABLE, changes).await?) }),
        cluster: Some(cluster),
    })
}

/// Lets the packets of another service proxy's open connections pass, so that these connections
/// continue. Returns `None` if they cannot be listed.
pub(super) fn find_others(mut others: OtherConnections) -> Option<OtherConnections> {
    match others.update() {
        Ok(0) => {}
        Ok(connections) => tracing::info!(
            connections,
            "another service proxy ran here: its open connections are left to conntrack until they end"
        ),
        Err(error) => {
            tracing::info!(
                "{}; if another service proxy ran here, its open connections will break",
                describe(&error)
            );
            return None;
        }
    }
    Some(others)
}
