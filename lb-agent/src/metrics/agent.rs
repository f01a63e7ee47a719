//! The agent's own metrics, `lb_*`.

use std::sync::{Mutex, PoisonError};

use lb_common::layout::ServiceStats;
use lb_common::reason::Reason;
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntGauge, IntGaugeVec, Opts, Registry};

use super::sample_set::SampleSet;
use crate::install::Usage;
use crate::network;

/// The metrics that the loop updates.
pub struct AgentMetrics {
    problems: IntGauge,
    usage: Mutex<Option<Usage>>,
}

impl AgentMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, Error> {
        let build = Opts::new("lb_build_info", "Always 1; the label is the agent's version");
        let build = IntGaugeVec::new(build, &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        let problems = IntGauge::new(
            "lb_problems",
            "Unusable parts of objects, and Services that are not installed as requested",
        )?;
        registry.register(Box::new(problems.clone()))?;
        Ok(Self {
            problems,
            usage: Mutex::new(None),
        })
    }

    /// Sets the number of problems.
    pub fn set_problems(&self, problems: usize) {
        self.problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }

    /// Sets the usage of the maps that the agent fills.
    pub fn set_usage(&self, usage: Usage) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage);
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the number of packets by reason.
pub(super) fn packets(reasons: &[(Reason, u64)]) -> Option<MetricFamily> {
    let help = "Packets that were rejected, answered or dropped, by reason";
    let mut family = SampleSet::counter("lb_packets_total", help);
    for (reason, packets) in reasons {
        family.add(&[("reason", reason.name())], *packets);
    }
    family.finish()
}

/// Returns the number of connections by Service port. The names of the ports are
/// `NAMESPACE/NAME/PORT/PROTOCOL`.
pub(super) fn services(services: &[(String, ServiceStats)]) -> impl Iterator<Item = MetricFamily> {
    let mut connections = SampleSet::counter(
        "lb_service_connections_total",
        "Connections that were translated to an endpoint of the Service",
    );
    let mut rejected = SampleSet::counter(
        "lb_service_rejected_total",
        "Connections to the Service that failed because it had no usable endpoint",
    );
    for (full_name, stats) in services {
        let mut parts = full_name.split('/');
        let labels = ["namespace", "service", "port", "protocol"]
            .map(|label| (label, parts.next().unwrap_or_default()));
        connections.add(&labels, stats.connections);
        rejected.add(&labels, stats.rejected);
    }
    [connections, rejected].into_iter().filter_map(SampleSet::finish)
}

/// Returns the usage of the maps: of those that the agent fills, and of those that packets fill.
pub(super) fn maps(
    usage: Option<Usage>,
    filled_by_packets: &[(&str, usize, u32)],
) -> impl Iterator<Item = MetricFamily> {
    let mut entries = SampleSet::gauge("lb_map_entries", "Entries in use in a BPF map");
    let mut capacity = SampleSet::gauge("lb_map_capacity", "Maximum number of entries of a BPF map");
    let mut add = |map: &str, used: usize, room: u32| {
        entries.add(&[("map", map)], u64::try_from(used).unwrap_or(u64::MAX));
        capacity.add(&[("map", map)], u64::from(room));
    };
    if let Some(usage) = usage {
        for (index, family) in network::Family::ALL.into_iter().enumerate() {
            let room = usage.capacity;
            add(
                &format!("frontends {family}"),
                usage.frontends[index],
                room.frontends,
            );
            add(
                &format!("backends {family}"),
                usage.backends[index],
                room.backends,
            );
            add(
                &format!("source ranges {family}"),
                usage.source_ranges[index],
                room.source_ranges,
            );
        }
        add("slots", usage.slots, usage.capacity.slots);
        add("services", usage.services, usage.capacity.services);
    }
    for (map, used, room) in filled_by_packets {
        add(map, *used, *room);
    }
    [entries, capacity].into_iter().filter_map(SampleSet::finish)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::Capacity;

    fn text(families: impl IntoIterator<Item = MetricFamily>) -> String {
        super::super::write(&families.into_iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn packets_are_labelled_with_their_reason() {
        let text = text(packets(&[(Reason::NoEndpoint, 3), (Reason::UnknownPort, 0)]));
        let expected = "# HELP lb_packets_total Packets that were rejected, answered or dropped, by reason\n\
                        # TYPE lb_packets_total counter\n\
                        lb_packets_total{reason=\"no_endpoint\"} 3\n\
                        lb_packets_total{reason=\"unknown_port\"} 0\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn connections_are_labelled_with_their_service_port() {
        let stats = ServiceStats {
            connections: 5,
            rejected: 2,
        };
        let text = text(services(&[
            ("default/web/http/TCP".to_owned(), stats),
            ("default/dns//UDP".to_owned(), ServiceStats::default()),
        ]));
        for line in [
            "# TYPE lb_service_connections_total counter",
            "lb_service_connections_total{namespace=\"default\",service=\"web\",port=\"http\",protocol=\"TCP\"} 5",
            "lb_service_rejected_total{namespace=\"default\",service=\"web\",port=\"http\",protocol=\"TCP\"} 2",
            "lb_service_connections_total{namespace=\"default\",service=\"dns\",port=\"\",protocol=\"UDP\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(services(&[]).count(), 0);
    }

    #[test]
    fn map_usage_covers_maps_filled_by_the_agent_and_by_packets() {
        let usage = Usage {
            frontends: [1, 2],
            backends: [3, 4],
            slots: 5,
            services: 6,
            source_ranges: [7, 8],
            capacity: Capacity {
                frontends: 10,
                slots: 20,
                backends: 30,
                services: 40,
                source_ranges: 50,
            },
        };
        let text = text(maps(Some(usage), &[("flows IPv4", 7, 50)]));
        for line in [
            "lb_map_entries{map=\"frontends IPv6\"} 2",
            "lb_map_entries{map=\"backends IPv4\"} 3",
            "lb_map_capacity{map=\"backends IPv6\"} 30",
            "lb_map_entries{map=\"source ranges IPv6\"} 8",
            "lb_map_capacity{map=\"source ranges IPv4\"} 50",
            "lb_map_entries{map=\"slots\"} 5",
            "lb_map_capacity{map=\"services\"} 40",
            "lb_map_entries{map=\"flows IPv4\"} 7",
            "lb_map_capacity{map=\"flows IPv4\"} 50",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_version_and_the_number_of_problems_are_reported() {
        let registry = Registry::new();
        let own = AgentMetrics::register(&registry).unwrap();
        own.set_problems(3);
        let text = text(registry.gather());
        assert!(text.contains("lb_problems 3\n"), "{text}");
        let build = format!("lb_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&build), "{text}");
    }
}
