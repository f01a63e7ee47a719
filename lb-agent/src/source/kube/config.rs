//! How to reach the API server.

use kube::Config;

/// Where the API server is, as an operator knows it.
pub(super) fn place(config: &Config) -> String {
    config.cluster_url.to_string()
}
