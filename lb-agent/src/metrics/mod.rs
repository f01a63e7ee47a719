//! What Prometheus is reported, in its text format: kube-proxy's metrics under kube-proxy's names,
//! which dashboards know, and the agent's own (`lb_*`).
//!
//! The loop writes atomic numbers; what packets count is read from the kernel's maps at each
//! scrape, on the scraper's thread.

mod agent;
mod kube_proxy;
mod sample_set;

use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};

pub use self::agent::AgentMetrics;
pub use self::kube_proxy::KubeProxy;
use crate::datapath::readings::Readings;
use crate::maps::MapError;

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A metric that cannot be: one of two with the same name, or without a value.
    #[error("the metrics cannot be written")]
    Prometheus(#[from] prometheus::Error),
    /// The kernel's maps cannot be read.
    #[error("the metrics of the kernel programs cannot be read")]
    Maps(#[from] MapError),
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    /// Those of kube-proxy.
    pub kube_proxy: KubeProxy,
    /// The agent's own that are not in the kernel's maps.
    pub agent: AgentMetrics,
}

impl Metrics {
    /// Metrics that nobody has reported anything.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        Ok(Self {
            kube_proxy: KubeProxy::register(&registry)?,
            agent: AgentMetrics::register(&registry)?,
            registry,
        })
    }

    /// Everything as text. Reads the kernel's maps: a matter of milliseconds, or of some hundred if
    /// the flow tables are full.
    pub fn text(&self, readings: &Readings) -> Result<String, MetricsError> {
        let mut families = Vec::new();
        families.extend(agent::packets(&readings.reasons()?));
        families.extend(agent::services(&readings.services()?));
        families.extend(agent::maps(self.agent.usage(), &readings.sizes()?));
        Ok(self.reported()? + &write(&families)?)
    }

    /// What the loop reported, as text.
    pub fn reported(&self) -> Result<String, MetricsError> {
        write(&self.registry.gather())
    }
}

fn write(families: &[MetricFamily]) -> Result<String, MetricsError> {
    Ok(TextEncoder::new().encode_to_string(families)?)
}
