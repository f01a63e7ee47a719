//! Tests with objects that are missing for a while: from the objects to the maps.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

mod cidrs;

use super::*;
use crate::maps::testing::FakeMaps;
use crate::maps::{Backend, BackendState, Capacity};
use crate::network::Family;
use crate::object::Object;

const CAPACITY: Capacity = Capacity {
    frontends: 32,
    slots: 4096,
    backends: 16,
    services: 8,
    source_ranges: 8,
};
const GRACE: Duration = Duration::from_secs(5);
/// A duration below the grace period.
const MOMENT: Duration = Duration::from_millis(300);
const KINDS: [ObjectKind; 5] = ObjectKind::ALL;

/// A controller and its clock.
struct Bench {
    controller: Controller<FakeMaps>,
    now: Instant,
}

fn parsed(text: &str) -> Object {
    fn from<T: serde::de::DeserializeOwned>(text: &str) -> Box<T> {
        Box::new(serde_norway::from_str(text).unwrap())
    }
    match text {
        _ if text.contains("kind: Service") => Object::Service(from::<Service>(text)),
        _ if text.contains("kind: Pod") => Object::Pod(from::<Pod>(text)),
        _ => Object::EndpointSlice(from::<EndpointSlice>(text)),
    }
}

impl Bench {
    fn new(objects: &[&str]) -> Self {
        let maps = FakeMaps::new(CAPACITY);
        let controller = Controller::new(maps, NodeConfig::default(), KINDS, GRACE).unwrap();
        let mut bench = Self {
            controller,
            now: Instant::now(),
        };
        let objects: Vec<Object> = objects.iter().map(|text| parsed(text)).collect();
        for kind in KINDS {
            let of_kind = objects.iter().filter(|object| object.reference().kind == kind);
            let objects = of_kind.cloned().collect();
            bench.controller.change(Change::Replace { kind, objects });
        }
        bench.controller.tick(bench.now);
        bench
    }

    fn apply(&mut self, text: &str) {
        self.controller.change(Change::Apply(parsed(text)));
        self.controller.tick(self.now);
    }

    fn delete(&mut self, text: &str) {
        self.controller.change(Change::Delete(parsed(text).reference()));
        self.controller.tick(self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.controller.tick(self.now);
    }

    /// Returns the newest row of each endpoint, of both families.
    fn rows(&self) -> BTreeMap<(std::net::IpAddr, u16), (u32, Backend)> {
        let image = self.controller.maps().image().unwrap();
        let rows = Family::ALL
            .into_iter()
            .flat_map(|family| image.backends(family).clone());
        rows.map(|(id, row)| ((row.address, row.port), (id, row)))
            .collect()
    }

    fn states(&self) -> Vec<BackendState> {
        self.rows().values().map(|(_, row)| row.state).collect()
    }
}

fn service(port_name: &str, protocol: &str) -> String {
    format!(
        "{{kind: Service, metadata: {{name: web, namespace: t}}, spec: {{type: NodePort, \
          clusterIPs: [10.96.0.10, 'fd00:96::10'], selector: {{app: web}}, \
          ports: [{{name: {port_name}, protocol: {protocol}, port: 80, targetPort: 8080, nodePort: 30080}}]}}}}"
    )
}

/// A slice with these endpoints. Each endpoint is its last number and its conditions.
fn slice(name: &str, is_ipv6: bool, port_name: &str, protocol: &str, endpoints: &[(u8, &str)]) -> String {
    let (family, prefix) = if is_ipv6 {
        ("IPv6", "fd00:1::")
    } else {
        ("IPv4", "10.65.1.")
    };
    let endpoint = |(number, conditions): &(u8, &str)| {
        format!("{{addresses: ['{prefix}{number}'], conditions: {{{conditions}}}, nodeName: node-a}}")
    };
    let endpoints: Vec<String> = endpoints.iter().map(endpoint).collect();
    format!(
        "{{metadata: {{name: {name}, namespace: t, labels: {{kubernetes.io/service-name: web}}}}, addressType: {family}, \
          ports: [{{name: {port_name}, protocol: {protocol}, port: 8080}}], endpoints: [{}]}}",
        endpoints.join(", ")
    )
}

use BackendState::{Absent, Active, Gone};

#[test]
fn a_renamed_port_keeps_its_backends() {
    for protocol in ["TCP", "UDP"] {
        let slices = |name: &str| {
            [false, true]
                .map(|is_ipv6| slice(&format!("web-{is_ipv6}"), is_ipv6, name, protocol, &[(11, "")]))
        };
        let [v4, v6] = slices("http");
        let mut bench = Bench::new(&[&service("http", protocol), &v4, &v6]);
        let before = bench.rows();
        bench.apply(&service("web", protocol));
        assert_eq!(bench.states(), [Absent, Absent]);
        bench.pass(MOMENT);
        for slice in slices("web") {
            bench.apply(&slice);
        }
        assert_eq!(bench.rows(), before);
        // Rename the port in the slices first.
        for slice in slices("http") {
            bench.apply(&slice);
        }
        assert_eq!(bench.states(), [Absent, Absent]);
        bench.pass(MOMENT);
        bench.apply(&service("http", protocol));
        bench.pass(2 * GRACE);
        assert_eq!(bench.rows(), before);
    }
}

#[test]
fn an_endpoint_that_moves_between_slices_keeps_its_row() {
    for is_ipv6 in [false, true] {
        let slice = |name, endpoints| slice(name, is_ipv6, "http", "TCP", endpoints);
        let mut bench = Bench::new(&[&service("http", "TCP"), &slice("a", &[(11, ""), (12, "")])]);
        let before = bench.rows();
        bench.apply(&slice("a", &[(12, "")]));
        assert_eq!(bench.states(), [Absent, Active]);
        bench.pass(MOMENT);
        bench.apply(&slice("b", &[(11, "")]));
        bench.pass(2 * GRACE);
        assert_eq!(bench.rows(), before);
        // The endpoint is deleted for good.
        bench.delete(&slice("b", &[]));
        assert!(bench.controller.next_due().unwrap() <= bench.now + GRACE);
        bench.pass(GRACE - MOMENT);
        assert_eq!(bench.states(), [Absent, Active]);
        bench.pass(MOMENT);
        assert_eq!(bench.states(), [Gone, Active]);
    }
}

#[test]
fn a_recreated_service_keeps_its_backends() {
    let slices =
        [false, true].map(|is_ipv6| slice(&format!("web-{is_ipv6}"), is_ipv6, "http", "TCP", &[(11, "")]));
    let service = service("http", "TCP");
    let mut bench = Bench::new(&[&service, &slices[0], &slices[1]]);
    let before = bench.rows();
    bench.delete(&service);
    assert_eq!(bench.states(), [Absent, Absent]);
    bench.pass(MOMENT);
    bench.apply(&service);
    bench.pass(2 * GRACE);
    assert_eq!(bench.rows(), before);
    // The same with its slices, in either order.
    for first in [0, 1] {
        bench.delete(&service);
        slices.iter().for_each(|slice| bench.delete(slice));
        bench.pass(MOMENT);
        bench.apply(&slices[first]);
        bench.apply(&service);
        bench.apply(&slices[1 - first]);
        assert_eq!(bench.rows(), before);
    }
    bench.delete(&service);
    bench.pass(GRACE);
    assert_eq!(bench.states(), [Gone, Gone]);
    assert_eq!(bench.controller.maps().image().unwrap().names, [].into());
}

#[test]
fn terminating_endpoints_are_gone_immediately() {
    for is_ipv6 in [false, true] {
        let slice =
            |protocol: &str, endpoints: &[(u8, &str)]| slice("a", is_ipv6, "http", protocol, endpoints);
        for (protocol, conditions, then, expected) in [
            (
                "TCP",
                "ready: false, serving: true, terminating: true",
                None,
                Gone,
            ),
            ("TCP", "ready: true, terminating: true", None, Gone),
            ("TCP", "ready: false", None, Absent),
            ("TCP", "", None, Absent),
            (
                "UDP",
                "ready: false, serving: true, terminating: true",
                None,
                Gone,
            ),
            // UDP flows leave an endpoint that exists but is not serving.
            ("UDP", "", Some("ready: false, serving: false"), Gone),
            (
                "TCP",
                "",
                Some("ready: false, serving: false"),
                BackendState::Draining,
            ),
        ] {
            let mut bench = Bench::new(&[
                &service("http", protocol),
                &slice(protocol, &[(11, conditions), (12, "")]),
            ]);
            let then: Vec<(u8, &str)> = then
                .map(|conditions| (11, conditions))
                .into_iter()
                .chain([(12, "")])
                .collect();
            bench.apply(&slice(protocol, &then));
            assert_eq!(
                bench.states(),
                [expected, Active],
                "{protocol} {conditions} {then:?}"
            );
        }
    }
}

fn pod(name: &str, number: u8, rest: &str) -> String {
    format!(
        "{{kind: Pod, metadata: {{name: {name}, namespace: t, labels: {{app: web}}}}, spec: {{containers: []}}, \
          status: {{podIPs: [{{ip: 10.65.1.{number}}}, {{ip: 'fd00:1::{number}'}}]{rest}}}}}"
    )
}

#[test]
fn pods_that_ended_are_gone_immediately() {
    let first = pod("web-1", 11, "");
    let service = service("http", "TCP");
    let start = || Bench::new(&[&service, &first, &pod("web-2", 12, "")]);
    type Change = fn(&mut Bench);
    for (what, change, expected) in [
        (
            "the Pod is deleted",
            (|bench| bench.delete(&pod("web-1", 11, ""))) as Change,
            Gone,
        ),
        (
            "the Pod has ended",
            |bench| bench.apply(&pod("web-1", 11, ", phase: Succeeded")),
            Gone,
        ),
        (
            "the Pod has other addresses",
            |bench| bench.apply(&pod("web-1", 13, "")),
            Gone,
        ),
        // The Pod may still run, or be selected again.
        (
            "the Pod is not selected",
            |bench| bench.apply(&pod("web-1", 11, "").replace("app: web", "app: other")),
            Absent,
        ),
    ] {
        let mut bench = start();
        change(&mut bench);
        let rows = bench.rows();
        let of_first = rows
            .iter()
            .filter(|((address, _), _)| address.to_string().ends_with("11"));
        let states: Vec<BackendState> = of_first.map(|(_, (_, row))| row.state).collect();
        assert_eq!(states, [expected; 2], "{what}");
    }
}
