//! What the agent starts with: from its arguments and from what it finds on its host.

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

/// Starts to tell how the agent is.
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
    health::start(served).context("cannot start to serve health checks and metrics")?;
    Ok(monitor)
}

/// The name of this node: as the command line says, else that of the host.
pub(super) fn node_name(arguments: &RunArguments) -> anyhow::Result<String> {
    if let Some(name) = &arguments.node_name {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname().context("cannot read the host name: use --node-name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

/// Where the socket programs are attached, if they are to be.
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
            "cgroup v2 is not mounted: processes of this host do not reach Services; mount it, name it with --cgroup, \
             or use --socket-lb=off"
        );
        return Ok(None);
    };
    let partial = mounts::partial_cgroup2(root);
    if let Some(why) = partial.with_context(|| format!("cannot look at {}: use --cgroup", root.display()))? {
        tracing::warn!("processes of this host do not reach Services: {why}; or use --socket-lb=off");
        return Ok(None);
    }
    Ok(Some(root.to_path_buf()))
}

/// What the programs are loaded with on a node with these addresses.
pub(super) fn settings(
    arguments: &RunArguments,
    addresses: &BTreeSet<IpAddr>,
    hash_seed: u64,
) -> anyhow::Result<Settings> {
    let sizes = &arguments.sizes;
    let cookie = namespace::cookie().context("cannot tell this network namespace from others")?;
    if cookie.is_none() {
        tracing::info!("this kernel tells no network namespace: the initial one is taken for the node's");
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

/// The first IPv4 address.
pub(super) fn first_ipv4(addresses: &BTreeSet<IpAddr>) -> Option<std::net::Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// The first IPv6 address.
pub(super) fn first_ipv6(addresses: &BTreeSet<IpAddr>) -> Option<std::net::Ipv6Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    })
}

/// A source that runs.
pub(super) struct Source {
    /// The kinds that it delivers.
    pub(super) kinds: Vec<ObjectKind>,
    /// What it runs as.
    pub(super) task: JoinHandle<anyhow::Result<()>>,
    /// The cluster's UID, once the API has answered; nothing inside if it refuses. Without a
    /// cluster there is none.
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
        bail!("name a source of Services: --manifests DIR, or --kube for the Kubernetes API");
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
        task: tokio::spawn(async move { Ok(kube::run(config, kube::LEISURE, changes).await?) }),
        cluster: Some(cluster),
    })
}

/// Has connections that another service proxy has begun go on with it. `None` if they cannot be
/// known.
pub(super) fn find_others(mut others: OtherConnections) -> Option<OtherConnections> {
    match others.update() {
        Ok(0) => {}
        Ok(connections) => tracing::info!(
            connections,
            "another service proxy ran here: the connections that it has begun stay with it until they end"
        ),
        Err(error) => {
            tracing::info!(
                "{}; if another service proxy ran here, the connections that it has begun are lost",
                describe(&error)
            );
            return None;
        }
    }
    Some(others)
}
