//! The Kubernetes API as the source: `--kube`.
//!
//! The agent watches Services, EndpointSlices, Nodes and ServiceCIDRs. It needs the right to `list`
//! and `watch` these. It also watches Services of other proxies and other Nodes, because their
//! addresses matter. It needs the right to `get` the namespace kube-system, whose UID identifies
//! the cluster.

mod access;
mod cidrs;
mod config;
mod pace;
mod report;
#[cfg(test)]
mod tests;
mod watch;

use std::error::Error;
use std::ops::Range;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Config};
use tokio::sync::mpsc;

use self::watch::Watch;
use crate::model::HEADLESS_LABEL;
use crate::object::Change;

/// How long to wait before retrying a resource that the server does not have. The pause is random
/// so that not all nodes retry at the same time.
pub const RETRY_UNAVAILABLE: Range<Duration> = Duration::from_mins(5)..Duration::from_mins(10);

/// Why the source cannot run.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// There is neither a kubeconfig nor a service account.
    #[error(
        "cannot reach the Kubernetes API: there is no kubeconfig {files}; set KUBECONFIG, or run in a Pod with a service \
         account"
    )]
    NoConfig {
        /// The paths where the agent looked for one.
        files: String,
        /// Why there is no service account.
        #[source]
        source: Box<kube::config::InClusterError>,
    },
    /// There is a kubeconfig, but it is not usable.
    #[error("cannot use the kubeconfig {files}: correct it, or set KUBECONFIG to another one")]
    Kubeconfig {
        /// The kubeconfig files that are merged.
        files: String,
        /// What is wrong.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The proxy setting is not a URL. The error does not show it because it may contain a
    /// password.
    #[error("{setting} is not the URL of a proxy: write http://HOST:PORT")]
    Proxy {
        /// The setting that contains it.
        setting: &'static str,
        /// What is wrong.
        #[source]
        source: hyper::http::uri::InvalidUri,
    },
    /// The configuration cannot be used.
    #[error("cannot create a client for the Kubernetes API at {place}: correct the credentials or the proxy")]
    Client {
        /// The API server.
        place: String,
        /// What is wrong.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Returns how to reach the API: from kubeconfigs if there are any, otherwise with the Pod's
/// service account.
pub async fn infer_config() -> Result<Config, KubeError> {
    config::infer(|name| std::env::var_os(name)).await
}

/// Sends the objects and their changes until the receiver is closed. The API server may be
/// unreachable at any time, including at the start.
///
/// If a server does not have ServiceCIDRs, or does not allow the agent to read them, the agent
/// retries after `leisure`.
pub async fn run(
    config: Config,
    leisure: Range<Duration>,
    changes: mpsc::Sender<Change>,
) -> Result<(), KubeError> {
    let place = config::place(&config);
    let client = access::client(config)?;
    // There is no selector for this proxy's Services: Services of other proxies have addresses,
    // too. It also means that no Service is missing when it moves to this proxy.
    let services = Watch::<Service>::new(client.clone(), place.clone(), None, changes.clone());
    let slices = Watch::<EndpointSlice>::new(client.clone(), place.clone(), Some(slices()), changes.clone());
    let nodes = Watch::<Node>::new(client.clone(), place.clone(), None, changes.clone());
    tokio::select! {
        () = services.run() => {}
        () = slices.run() => {}
        () = nodes.run() => {}
        () = cidrs::run(client, place, leisure, changes.clone()) => {}
        () = changes.closed() => {}
    }
    Ok(())
}

/// Returns the UID of the namespace kube-system: all nodes of a cluster see the same one, and every
/// cluster has a different one. Retries until the API server answers. Returns `None` if the API
/// server refuses.
pub async fn cluster_uid(config: Config) -> Option<String> {
    const NAME: &str = "kube-system";
    const PATIENCE: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
    let [mut wait, longest] = PATIENCE;
    let place = config::place(&config);
    // The watches report the same error.
    let client = access::client(config).ok()?;
    loop {
        match Api::<Namespace>::all(client.clone()).get_metadata(NAME).await {
            Ok(namespace) => return namespace.metadata.uid,
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                tracing::warn!(
                    "cannot get the namespace {NAME} at {place}, so clients outside may guess which backend they get: \
                     allow the agent's service account to get it, or use --hash-seed: {}",
                    status.message
                );
                return None;
            }
            Err(error) => tracing::debug!("cannot get the namespace {NAME} yet: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (2 * wait).min(longest);
    }
}

/// The label selector for slices. It does not select by proxy name. Slices that the control plane
/// did not make need not repeat their Service's label. And when a Service moves to this proxy, its
/// slices are already known.
fn slices() -> String {
    format!("!{HEADLESS_LABEL}")
}

/// Returns the message of the innermost error. The errors around it repeat it or contain less.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
