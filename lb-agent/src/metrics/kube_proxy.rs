//! The metrics that kube-proxy has in all its modes. Names, help, types, labels and buckets are
//! those of its `pkg/proxy/metrics/metrics.go` (Kubernetes 1.36; listed in the reference of
//! Kubernetes' metrics).
//!
//! kube-proxy runs one proxy per family. Here, one pass covers both families, so it reports the
//! same values for both.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Error, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets, linear_buckets,
};

use crate::desired::PerFamily;
use crate::network::Family;
use crate::state::Changes;

const FAMILY: &str = "ip_family";

/// kube-proxy's metrics.
pub struct KubeProxy {
    sync_duration: HistogramVec,
    network_programming: HistogramVec,
    last_synced: GaugeVec,
    last_queued: GaugeVec,
    services: ChangeMetrics,
    endpoints: ChangeMetrics,
    no_local_endpoints: IntGaugeVec,
    healthz: IntCounterVec,
    livez: IntCounterVec,
}

/// The numbers of changes of one kind of object.
struct ChangeMetrics {
    total: IntCounter,
    pending: IntGauge,
}

impl KubeProxy {
    pub(super) fn register(registry: &Registry) -> Result<Self, Error> {
        let metrics = Self {
            sync_duration: histogram(
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
            network_programming: histogram(
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                network_programming_buckets()?,
            )?,
            last_synced: time(
                "sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
            )?,
            last_queued: time(
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
            )?,
            services: ChangeMetrics::new("service", "Service")?,
            endpoints: ChangeMetrics::new("endpoint", "Endpoint")?,
            no_local_endpoints: IntGaugeVec::new(
                options(
                    "sync_proxy_rules_no_local_endpoints_total",
                    "Number of services with a Local traffic policy and no endpoints",
                ),
                &[FAMILY, "traffic_policy"],
            )?,
            healthz: answers("proxy_healthz_total", "Cumulative proxy healthz HTTP status")?,
            livez: answers("proxy_livez_total", "Cumulative proxy livez HTTP status")?,
        };
        metrics.begin();
        for collector in metrics.collectors() {
            registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// Creates all counters with the value 0 at the start, because a rate needs two values.
    fn begin(&self) {
        for family in Family::ALL {
            self.sync_duration.with_label_values(&[name(family)]);
            self.network_programming.with_label_values(&[name(family)]);
        }
        for code in ["200", "503"] {
            self.healthz.with_label_values(&[code]);
            self.livez.with_label_values(&[code]);
        }
        self.without_local(PerFamily::default(), PerFamily::default());
    }

    fn collectors(&self) -> [Box<dyn Collector>; 11] {
        [
            Box::new(self.sync_duration.clone()),
            Box::new(self.network_programming.clone()),
            Box::new(self.last_synced.clone()),
            Box::new(self.last_queued.clone()),
            Box::new(self.services.total.clone()),
            Box::new(self.services.pending.clone()),
            Box::new(self.endpoints.total.clone()),
            Box::new(self.endpoints.pending.clone()),
            Box::new(self.no_local_endpoints.clone()),
            Box::new(self.healthz.clone()),
            Box::new(self.livez.clone()),
        ]
    }

    /// Sets the numbers of changes. `clock`: seconds since 1970.
    pub fn changed(&self, services: Changes, endpoints: Changes, clock: f64) {
        let has_new = [self.services.set(services), self.endpoints.set(endpoints)];
        if has_new.contains(&true) {
            set_all(&self.last_queued, clock);
        }
    }

    /// Records the duration of a pass over changed Services.
    pub fn passed(&self, duration: Duration) {
        for family in Family::ALL {
            let histogram = self.sync_duration.with_label_values(&[name(family)]);
            histogram.observe(duration.as_secs_f64());
        }
    }

    /// Records that the maps are in sync. `clock`: seconds since 1970.
    pub fn synced(&self, clock: f64) {
        set_all(&self.last_synced, clock);
    }

    /// Records the time in seconds from the cause of an endpoint change until the maps contain it.
    pub fn programmed(&self, family: Family, seconds: f64) {
        let histogram = self.network_programming.with_label_values(&[name(family)]);
        histogram.observe(seconds);
    }

    /// Sets the number of ports whose traffic is dropped because all endpoints are on other nodes,
    /// by traffic policy.
    pub fn without_local(&self, internal: PerFamily, external: PerFamily) {
        for (policy, counts) in [("internal", internal), ("external", external)] {
            for family in Family::ALL {
                let gauge = self.no_local_endpoints.with_label_values(&[name(family), policy]);
                gauge.set(i64::try_from(counts.get(family)).unwrap_or(i64::MAX));
            }
        }
    }

    /// Counts a response of `/healthz` or `/livez` with this status. Ignores other paths.
    pub fn answered(&self, path: &str, status: u16) {
        let counters = match path {
            "/healthz" => &self.healthz,
            "/livez" => &self.livez,
            _ => return,
        };
        counters.with_label_values(&[status.to_string()]).inc();
    }
}

impl ChangeMetrics {
    /// `name` is the word for the kind of object in metric names, `kind` the one in the help.
    fn new(name: &str, kind: &str) -> Result<Self, Error> {
        Ok(Self {
            total: IntCounter::with_opts(options(
                &format!("sync_proxy_rules_{name}_changes_total"),
                &format!("Cumulative proxy rules {kind} changes"),
            ))?,
            pending: IntGauge::with_opts(options(
                &format!("sync_proxy_rules_{name}_changes_pending"),
                &format!("Pending proxy rules {kind} changes"),
            ))?,
        })
    }

    /// Sets both numbers. Returns true if there are new changes.
    fn set(&self, changes: Changes) -> bool {
        let added = changes.total.saturating_sub(self.total.get());
        self.total.inc_by(added);
        self.pending
            .set(i64::try_from(changes.pending).unwrap_or(i64::MAX));
        added > 0
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn set_all(gauges: &GaugeVec, value: f64) {
    for family in Family::ALL {
        gauges.with_label_values(&[name(family)]).set(value);
    }
}

fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("kubeproxy")
}

fn histogram(name: &str, help: &str, buckets: Vec<f64>) -> Result<HistogramVec, Error> {
    let options = HistogramOpts::from(options(name, help)).buckets(buckets);
    HistogramVec::new(options, &[FAMILY])
}

fn time(name: &str, help: &str) -> Result<GaugeVec, Error> {
    GaugeVec::new(options(name, help), &[FAMILY])
}

fn answers(name: &str, help: &str) -> Result<IntCounterVec, Error> {
    IntCounterVec::new(options(name, help), &["code"])
}

/// The same buckets as in kube-proxy, including the one of 0.
fn network_programming_buckets() -> Result<Vec<f64>, Error> {
    let lists = [
        vec![0.0],
        linear_buckets(0.25, 0.25, 2)?,
        linear_buckets(1.0, 1.0, 59)?,
        linear_buckets(60.0, 5.0, 12)?,
        linear_buckets(120.0, 30.0, 7)?,
    ];
    Ok(lists.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(registry: &Registry, prefix: &str) -> Vec<String> {
        let text = super::super::write(&registry.gather()).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn names_types_and_labels_are_kube_proxys() {
        let registry = Registry::new();
        let metrics = KubeProxy::register(&registry).unwrap();
        metrics.synced(1.5);
        let one = Changes { total: 1, pending: 1 };
        metrics.changed(one, Changes::default(), 2.5);
        let expected = [
            "network_programming_duration_seconds histogram",
            "proxy_healthz_total counter",
            "proxy_livez_total counter",
            "sync_proxy_rules_duration_seconds histogram",
            "sync_proxy_rules_endpoint_changes_pending gauge",
            "sync_proxy_rules_endpoint_changes_total counter",
            "sync_proxy_rules_last_queued_timestamp_seconds gauge",
            "sync_proxy_rules_last_timestamp_seconds gauge",
            "sync_proxy_rules_no_local_endpoints_total gauge",
            "sync_proxy_rules_service_changes_pending gauge",
            "sync_proxy_rules_service_changes_total counter",
        ];
        assert_eq!(
            lines(&registry, "# TYPE "),
            expected.map(|line| format!("# TYPE kubeproxy_{line}"))
        );
        let values = |name: &str| lines(&registry, &format!("kubeproxy_{name}"));
        for (name, expected) in [
            ("proxy_livez_total", ["{code=\"200\"} 0", "{code=\"503\"} 0"]),
            (
                "sync_proxy_rules_last_timestamp_seconds",
                ["{ip_family=\"IPv4\"} 1.5", "{ip_family=\"IPv6\"} 1.5"],
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                ["{ip_family=\"IPv4\"} 2.5", "{ip_family=\"IPv6\"} 2.5"],
            ),
            (
                "sync_proxy_rules_duration_seconds_count",
                ["{ip_family=\"IPv4\"} 0", "{ip_family=\"IPv6\"} 0"],
            ),
        ] {
            assert_eq!(
                values(name),
                expected.map(|value| format!("kubeproxy_{name}{value}"))
            );
        }
    }

    #[test]
    fn histograms_have_the_buckets_of_kube_proxy() {
        let registry = Registry::new();
        let metrics = KubeProxy::register(&registry).unwrap();
        metrics.passed(Duration::from_millis(3));
        metrics.programmed(Family::V6, 61.0);
        let bounds = |name: &str| -> Vec<(f64, String)> {
            let prefix = format!("kubeproxy_{name}_duration_seconds_bucket{{ip_family=\"IPv6\",le=\"");
            let parse = |line: String| {
                let (bound, count) = line[prefix.len()..].split_once("\"} ").unwrap();
                (bound.parse().unwrap(), count.to_owned())
            };
            lines(&registry, &prefix).into_iter().map(parse).collect()
        };
        let sync = bounds("sync_proxy_rules");
        let below = |bounds: &[(f64, String)]| bounds.iter().filter(|(_, count)| count == "0").count();
        assert_eq!((sync.len(), sync[0].0, sync[14].0), (16, 0.001, 16.384));
        // The buckets up to 1 and 2 ms do not contain the pass of 3 ms.
        assert_eq!(below(&sync), 2);
        let network = bounds("network_programming");
        let found: Vec<f64> = [0, 1, 2, 3, 61, 62, 63, 74, 75, 80]
            .iter()
            .map(|index| network[*index].0)
            .collect();
        assert_eq!(
            found,
            [0.0, 0.25, 0.5, 1.0, 59.0, 60.0, 65.0, 120.0, 150.0, 300.0]
        );
        assert_eq!((network.len(), below(&network)), (82, 63));
    }

    #[test]
    fn changes_are_counted_once() {
        let registry = Registry::new();
        let metrics = KubeProxy::register(&registry).unwrap();
        let endpoints = |total, pending, clock| {
            metrics.changed(Changes::default(), Changes { total, pending }, clock);
        };
        endpoints(3, 2, 1.0);
        endpoints(3, 0, 2.0);
        metrics.answered("/healthz", 503);
        metrics.answered("/livez", 200);
        metrics.answered("/other", 200);
        metrics.without_local(PerFamily { ipv4: 1, ipv6: 0 }, PerFamily { ipv4: 0, ipv6: 2 });
        for line in [
            "sync_proxy_rules_endpoint_changes_total 3",
            "sync_proxy_rules_endpoint_changes_pending 0",
            "sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1",
            "proxy_healthz_total{code=\"200\"} 0",
            "proxy_healthz_total{code=\"503\"} 1",
            "proxy_livez_total{code=\"200\"} 1",
            "sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 1",
            "sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 2",
            "sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"internal\"} 0",
        ] {
            let line = format!("kubeproxy_{line}");
            assert_eq!(lines(&registry, &line), [line]);
        }
    }
}
