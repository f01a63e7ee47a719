//! Reports while Services are added, changed and removed, and while their installation fails.

use super::*;
use crate::maps::Capacity;
use crate::maps::testing::{FakeMaps, FaultyMaps};
use crate::model::{NodeConfig, NodePortAddresses};
use crate::object::{Change, Object, ObjectKind};

const CAPACITY: Capacity = Capacity {
    frontends: 16,
    slots: 65_536,
    backends: 4,
    services: 16,
    source_ranges: 16,
};
const STARTED: &str = "2026-01-02T03:04:05Z";

/// A controller and its monitor.
struct Bench<M> {
    controller: Controller<M>,
    monitor: Monitor,
    now: Instant,
}

impl<M: Maps> Bench<M> {
    fn new(maps: M) -> Self {
        let node = NodeConfig {
            name: "node-a".to_owned(),
            zone: None,
            addresses: ["192.0.2.1".parse().unwrap()].into(),
            node_port_addresses: vec![NodePortAddresses::Primary],
            ..NodeConfig::default()
        };
        let now = Instant::now();
        let health = Arc::new(Health::new(now, STARTED.parse().unwrap()));
        let metrics = Arc::new(Metrics::new().unwrap());
        Self {
            controller: Controller::new(maps, node, [ObjectKind::Service], Duration::ZERO).unwrap(),
            monitor: Monitor::new(health, metrics, now, STARTED.parse().unwrap()),
            now,
        }
    }

    /// Delivers the first list, which is empty.
    fn listed(mut self) -> Self {
        self.change(Change::Replace {
            kind: ObjectKind::Service,
            objects: Vec::new(),
        });
        self
    }

    fn change(&mut self, change: Change) {
        self.controller.change(change);
        self.tick();
    }

    fn apply(&mut self, object: Object) {
        self.change(Change::Apply(object));
    }

    fn tick(&mut self) {
        self.monitor.tick(&mut self.controller, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.tick();
    }

    /// The numbers of local endpoints in the health checks of these Services; -1 without a check.
    fn reported(&self, names: &[&str]) -> Vec<i64> {
        let checks = self.monitor.checks();
        let checks = checks.borrow();
        let reported = |name: &&str| {
            let name = NamespacedName {
                namespace: "default".to_owned(),
                name: (*name).to_owned(),
            };
            let check = checks.services.get(&name);
            check.map_or(-1, |check| i64::try_from(check.local_endpoints.ipv4).unwrap())
        };
        names.iter().map(reported).collect()
    }

    #[track_caller]
    fn assert_metric(&self, line: &str) {
        let text = self.monitor.metrics.reported().unwrap();
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

/// A Service of type LoadBalancer with `externalTrafficPolicy: Local` and the health check port
/// 32000 + `number`.
fn service(name: &str, number: u16) -> Object {
    let text = format!(
        "metadata: {{name: {name}, namespace: default}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: {}
  clusterIP: 10.96.0.{number}
  ports: [{{port: 80, nodePort: {}}}]
",
        32_000 + number,
        30_000 + number
    );
    Object::Service(Box::new(serde_norway::from_str(&text).unwrap()))
}

/// A slice with endpoints `10.1.0.OCTET`, on this node (`here`) and on another one (`there`).
fn slice(service: &str, here: &[u8], there: &[u8], cause: &str) -> Object {
    let endpoint = |octet: &u8, node: &str| format!("- {{addresses: [10.1.0.{octet}], nodeName: {node}}}\n");
    let endpoints: String = (here.iter().map(|octet| endpoint(octet, "node-a")))
        .chain(there.iter().map(|octet| endpoint(octet, "node-b")))
        .collect();
    let text = format!(
        "metadata:
  name: {service}
  namespace: default
  labels: {{kubernetes.io/service-name: {service}}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{cause}'}}
addressType: IPv4
ports: [{{name: '', port: 8080}}]
endpoints:
{endpoints}"
    );
    Object::EndpointSlice(Box::new(serde_norway::from_str(&text).unwrap()))
}

fn node(taint: &str) -> Object {
    let text =
        format!("metadata: {{name: node-a}}\nspec: {{taints: [{{key: {taint}, effect: NoSchedule}}]}}");
    Object::Node(Box::new(serde_norway::from_str(&text).unwrap()))
}

#[test]
fn health_checks_follow_the_services() {
    let mut bench = Bench::new(FakeMaps::new(CAPACITY)).listed();
    let mut checks = bench.monitor.checks();
    checks.mark_unchanged();
    bench.apply(service("web", 1));
    assert_eq!(bench.reported(&["web"]), [0]);
    bench.apply(slice("web", &[1, 2], &[3], STARTED));
    assert_eq!(bench.reported(&["web"]), [2]);
    assert!(checks.has_changed().unwrap());
    assert_eq!(
        checks.borrow_and_update().addresses,
        ["192.0.2.1".parse().unwrap()].into()
    );
    bench.tick();
    assert!(!checks.has_changed().unwrap());
    bench.apply(slice("web", &[], &[3], STARTED));
    assert_eq!(bench.reported(&["web"]), [0]);
    bench.change(Change::Delete(service("web", 1).reference()));
    assert_eq!(bench.reported(&["web"]), [-1]);
}

#[test]
fn a_service_that_does_not_fit_has_no_health_check_until_it_fits() {
    // Room for three backends.
    let mut bench = Bench::new(FakeMaps::new(CAPACITY)).listed();
    bench.apply(slice("web", &[1, 2], &[], STARTED));
    bench.apply(service("web", 1));
    bench.apply(slice("api", &[3, 4], &[], STARTED));
    bench.apply(service("api", 2));
    assert_eq!(bench.reported(&["web", "api"]), [2, -1]);
    // No more endpoints than the maps have, and no more than there are now.
    bench.apply(slice("web", &[1, 2, 5, 6], &[], STARTED));
    assert_eq!(bench.reported(&["web", "api"]), [2, -1]);
    bench.apply(slice("web", &[1], &[2, 5, 6], STARTED));
    assert_eq!(bench.reported(&["web", "api"]), [1, -1]);
    bench.pass(SURVEY_INTERVAL);
    bench.assert_metric("lb_problems 2");
    // Full maps do not make the agent unhealthy.
    assert!(bench.monitor.health.pulse().is_healthy(bench.now));
    assert_eq!(bench.monitor.health.pulse().fault_since, None);

    bench.change(Change::Delete(service("web", 1).reference()));
    bench.pass(SURVEY_INTERVAL);
    bench.pass(SURVEY_INTERVAL);
    assert_eq!(bench.reported(&["web", "api"]), [-1, 2]);
    bench.assert_metric("lb_problems 0");
}

#[test]
fn an_agent_whose_writes_fail_becomes_unhealthy_after_a_minute() {
    let mut bench = Bench::new(FaultyMaps::new(FakeMaps::new(CAPACITY), 100, 0)).listed();
    let synced = bench.monitor.health.pulse().synced;
    bench.apply(service("web", 1));
    let pulse = bench.monitor.health.pulse();
    assert_eq!((pulse.fault_since, pulse.synced), (Some(bench.now), synced));
    for _ in 0..6 {
        assert!(bench.monitor.health.pulse().is_healthy(bench.now));
        bench.pass(SURVEY_INTERVAL);
    }
    assert!(!bench.monitor.health.pulse().is_healthy(bench.now));
}

#[test]
fn an_agent_that_waits_for_the_first_list_is_healthy() {
    let mut bench = Bench::new(FakeMaps::new(CAPACITY));
    bench.apply(service("web", 1));
    for _ in 0..20 {
        bench.pass(SURVEY_INTERVAL);
    }
    let pulse = bench.monitor.health.pulse();
    assert!(pulse.is_healthy(bench.now));
    assert_eq!(pulse.synced, STARTED.parse().unwrap());
    assert_eq!(bench.reported(&["web"]), [-1]);
    bench.assert_metric("kubeproxy_sync_proxy_rules_service_changes_pending 1");
    let bench = bench.listed();
    assert!(bench.monitor.health.pulse().synced > STARTED.parse().unwrap());
    bench.assert_metric("kubeproxy_sync_proxy_rules_service_changes_pending 0");
}

#[test]
fn the_autoscaler_taint_marks_the_node_as_leaving() {
    let mut bench = Bench::new(FakeMaps::new(CAPACITY)).listed();
    for (taint, expected) in [
        ("node.kubernetes.io/not-ready", false),
        ("ToBeDeletedByClusterAutoscaler", true),
    ] {
        bench.apply(node(taint));
        assert_eq!(bench.monitor.health.pulse().node_is_leaving, expected, "{taint}");
    }
}

#[test]
fn passes_update_the_metrics_of_kube_proxy() {
    let mut bench = Bench::new(FakeMaps::new(CAPACITY)).listed();
    bench.apply(service("web", 1));
    bench.tick();
    bench.apply(slice("web", &[], &[1], "2026-01-02T03:04:06Z"));
    // Its cause is older than this agent.
    bench.apply(slice("api", &[], &[2], "2026-01-02T03:04:04Z"));
    // These endpoints belong to no Service.
    bench.apply(slice("none", &[], &[3], "2026-01-02T03:04:06Z"));
    for (name, value) in [
        ("sync_proxy_rules_service_changes_total", 1),
        ("sync_proxy_rules_endpoint_changes_total", 3),
        ("sync_proxy_rules_endpoint_changes_pending", 0),
        ("sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}", 4),
        (
            "network_programming_duration_seconds_count{ip_family=\"IPv4\"}",
            1,
        ),
        (
            "network_programming_duration_seconds_count{ip_family=\"IPv6\"}",
            0,
        ),
        (
            "sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"}",
            1,
        ),
        (
            "sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"}",
            0,
        ),
    ] {
        bench.assert_metric(&format!("kubeproxy_{name} {value}"));
    }
    bench.apply(slice("web", &[1], &[], "2026-01-02T03:04:07Z"));
    bench.assert_metric(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 0",
    );
}

#[test]
fn problems_without_a_service_are_counted_and_a_survey_needs_news() {
    let mut bench = Bench::new(FakeMaps::new(CAPACITY)).listed();
    bench.pass(SURVEY_INTERVAL);
    bench.assert_metric("lb_problems 0");
    assert!(!bench.controller.take_changed());
    // Its Service label is empty.
    bench.apply(slice("", &[1], &[], ""));
    bench.pass(SURVEY_INTERVAL);
    bench.assert_metric("lb_problems 1");
    bench.pass(SURVEY_INTERVAL);
    assert!(!bench.controller.take_changed());
}
