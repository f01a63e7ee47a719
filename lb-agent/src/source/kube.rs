//! The Kubernetes API as the source: `--kube`.
//!
//! Four watches, on Services (of those that other proxies serve for their addresses),
//! EndpointSlices, Nodes (of the other ones for their addresses) and ServiceCIDRs: they need the
//! right to `list` and `watch` these. The UID of the namespace kube-system, which stands for the
//! cluster, needs the right to `get` it.

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

/// How soon to ask for what a server does not have. The pauses differ, lest all nodes ask at once.
pub const LEISURE: Range<Duration> = Duration::from_mins(5)..Duration::from_mins(10);

/// Why the source cannot run.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// There is neither a kubeconfig nor a service account.
    #[error(
        "no way to the Kubernetes API: there is no kubeconfig {files}; set KUBECONFIG, or run in a Pod with a service \
         account"
    )]
    NoConfig {
        /// Where one was looked for.
        files: String,
        /// Why there is no service account.
        #[source]
        source: Box<kube::config::InClusterError>,
    },
    /// A kubeconfig is there and cannot be used.
    #[error("cannot use the kubeconfig {files}: correct it, or have KUBECONFIG name another")]
    Kubeconfig {
        /// The files that make it up.
        files: String,
        /// What is wrong.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The proxy cannot be used. Its URL is not shown, since it may have a password.
    #[error("{setting} is not the URL of a proxy: write http://HOST:PORT")]
    Proxy {
        /// Where it comes from.
        setting: &'static str,
        /// What is wrong.
        #[source]
        source: hyper::http::uri::InvalidUri,
    },
    /// The configuration cannot be used.
    #[error("cannot prepare to ask the Kubernetes API at {place}: correct the credentials or the proxy")]
    Client {
        /// The API server.
        place: String,
        /// What is wrong.
        #[source]
        source: Box<kube::Error>,
    },
}

/// How to reach the API: from kubeconfigs if there are any, else with the Pod's service account.
pub async fn infer_config() -> Result<Config, KubeError> {
    config::infer(|name| std::env::var_os(name)).await
}

/// Sends the objects and how they change, until the receiver is closed. The API may be away at any
/// time, also at the start.
///
/// A server that has no ServiceCIDRs, or does not allow to read them, is asked again after
/// `leisure`.
pub async fn run(
    config: Config,
    leisure: Range<Duration>,
    changes: mpsc::Sender<Change>,
) -> Result<(), KubeError> {
    let place = config::place(&config);
    let client = access::client(config)?;
    // Those of all proxies: what others serve has addresses, too, and what changes hands is never
    // missing.
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

/// The UID of the namespace kube-system: the same for all nodes of a cluster, and another in every
/// cluster. Asks until the API answers; `None` if it refuses.
pub async fn cluster_uid(config: Config) -> Option<String> {
    const NAME: &str = "kube-system";
    const PATIENCE: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
    let [mut wait, longest] = PATIENCE;
    let place = config::place(&config);
    // Whoever watches has the same error.
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

/// Whose proxy a slice is for is not asked: slices not made by the control plane need not repeat
/// their Service's label, and when a Service comes from another proxy its slices are known already.
fn slices() -> String {
    format!("!{HEADLESS_LABEL}")
}

/// The innermost error: those around it repeat it or say less.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
