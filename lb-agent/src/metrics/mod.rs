//! The metrics for Prometheus, in its text format: kube-proxy's metrics under kube-proxy's names,
//! which existing dashboards use, and the agent's own (`lb_*`).
//!
//! The loop writes atomic numbers. The counters of packets are read from the kernel's maps at each
//! scrape, on a separate thread.

mod agent;
mod kube_proxy;
mod sample_set;

use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};

pub use self::agent::AgentMetrics;
pub use self::kube_proxy::KubeProxy;
use crate::datapath::readings::Readings;
use crate::maps::MapError;

/// Why the metrics are not available.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A metric is invalid: two have the same name, or one has no value.
    #[error("the metrics cannot be written")]
    Prometheus(#[from] prometheus::Error),
    /// The kernel's maps cannot be read.
    #[error("the metrics of the kernel programs cannot be read")]
    Maps(#[from] MapError),
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    /// The metrics of kube-proxy.
    pub kube_proxy: KubeProxy,
    /// The agent's own metrics, except those in the kernel's maps.
    pub agent: AgentMetrics,
}

impl Metrics {
    /// Registers all metrics, with their initial values.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        Ok(Self {
            kube_proxy: KubeProxy::register(&registry)?,
            agent: AgentMetrics::register(&registry)?,
            registry,
        })
    }

    /// Returns all metrics as text. Reads the kernel's maps, which takes milliseconds, or a few
    /// hundred of them if the flow tables are full.
    pub fn text(&self, readings: &Readings) -> Result<String, MetricsError> {
        let mut families = Vec::new();
        families.extend(agent::packets(&readings.reasons()?));
        families.extend(agent::services(&readings.services()?));
        families.extend(agent::maps(self.agent.usage(), &readings.sizes()?));
        Ok(self.reported()? + &write(&families)?)
    }

    /// Returns the metrics that the loop updates, as text.
    pub fn reported(&self) -> Result<String, MetricsError> {
        write(&self.registry.gather())
    }
}

fn write(families: &[MetricFamily]) -> Result<String, MetricsError> {
    Ok(TextEncoder::new().encode_to_string(families)?)
}
