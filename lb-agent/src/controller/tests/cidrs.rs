//! Tests the order in which Service CIDRs and the rows of their addresses are written.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::de::DeserializeOwned;

use super::*;
use crate::maps::{FrontendKey, MapImage, MapOp, service_cidrs};

/// Maps that reject a number of operations on Service CIDRs. They check that packets to a Service
/// of another proxy are never dropped.
struct Strict {
    maps: FakeMaps,
    refusals: u32,
    held: Vec<std::net::IpAddr>,
}

impl Maps for Strict {
    fn capacity(&self) -> Capacity {
        self.maps.capacity()
    }

    fn apply(&mut self, operation: &MapOp) -> Result<(), MapError> {
        let is_cidr = matches!(operation, MapOp::AddSourceRange { set, .. } | MapOp::DeleteSourceRange { set, .. } if *set == 0);
        if is_cidr && self.refusals > 0 {
            self.refusals -= 1;
            let source = "refused".into();
            let operation = "change a Service CIDR".to_owned();
            return Err(MapError::Kernel {
                map: "SOURCE_RANGES4",
                operation,
                source,
            });
        }
        self.maps.apply(operation)?;
        let image = self.maps.image()?;
        for address in &self.held {
            let has_row = image.frontends.contains_key(&FrontendKey::Wildcard(*address));
            let is_in_cidr = service_cidrs(&image.source_ranges).any(|cidr| cidr.contains(*address));
            assert!(has_row || !is_in_cidr, "{address} is dropped after {operation:?}");
        }
        Ok(())
    }

    fn image(&self) -> Result<MapImage, MapError> {
        self.maps.image()
    }
}

const HELD: &str = "10.96.0.7";

fn from<T: DeserializeOwned>(text: &str) -> Box<T> {
    Box::new(serde_norway::from_str(text).unwrap())
}

fn held_service(label: &str) -> Object {
    let labels = format!("{{service.kubernetes.io/service-proxy-name: {label}}}");
    let metadata = format!("{{name: held, namespace: t, labels: {labels}}}");
    let ports = "[{name: http, port: 80}]";
    Object::Service(from(&format!(
        "{{metadata: {metadata}, spec: {{clusterIP: {HELD}, ports: {ports}}}}}"
    )))
}

fn cidr(name: &str, cidrs: &str) -> Object {
    Object::ServiceCidr(from::<ServiceCIDR>(&format!(
        "{{metadata: {{name: {name}}}, spec: {{cidrs: [{cidrs}]}}}}"
    )))
}

fn node(pods: &str) -> Object {
    Object::Node(from::<Node>(&format!(
        "{{metadata: {{name: b}}, spec: {{podCIDR: {pods}}}}}"
    )))
}

struct Fixture {
    controller: Controller<Strict>,
    now: Instant,
}

impl Fixture {
    fn new(maps: FakeMaps) -> Self {
        let maps = Strict {
            maps,
            refusals: 0,
            held: vec![HELD.parse().unwrap()],
        };
        Self {
            controller: Controller::new(maps, NodeConfig::default(), KINDS, GRACE).unwrap(),
            now: Instant::now(),
        }
    }

    fn list(&mut self, kind: ObjectKind, objects: Vec<Object>) {
        self.change(Change::Replace { kind, objects });
    }

    fn change(&mut self, change: Change) {
        self.controller.change(change);
        self.controller.tick(self.now);
    }

    fn in_force(&self) -> Vec<String> {
        let image = self.controller.maps().image().unwrap();
        service_cidrs(&image.source_ranges)
            .map(|cidr| cidr.to_string())
            .collect()
    }

    fn holds(&self) -> bool {
        let image = self.controller.maps().image().unwrap();
        image
            .frontends
            .contains_key(&FrontendKey::Wildcard(HELD.parse().unwrap()))
    }
}

/// A fixture that has listed everything: a Service of another proxy, and the Service CIDR of its
/// address.
fn synced() -> Fixture {
    let mut fixture = Fixture::new(FakeMaps::new(CAPACITY));
    fixture.list(
        ObjectKind::ServiceCidr,
        vec![cidr("kubernetes", "10.96.0.0/16, 'fd00:96::/112'")],
    );
    fixture.list(ObjectKind::EndpointSlice, Vec::new());
    fixture.list(ObjectKind::Node, Vec::new());
    fixture.list(ObjectKind::Pod, Vec::new());
    assert_eq!(fixture.in_force(), [""; 0], "before all is listed");
    fixture.list(ObjectKind::Service, vec![held_service("other")]);
    fixture
}

#[test]
fn service_cidrs_are_added_after_rows_and_deleted_before_them() {
    let mut fixture = synced();
    assert_eq!(fixture.in_force(), ["10.96.0.0/16", "fd00:96::/112"]);
    assert!(fixture.holds());
    fixture.change(Change::Apply(cidr("more", "10.97.0.0/16")));
    assert_eq!(fixture.in_force().len(), 3);
    fixture.change(Change::Delete(cidr("kubernetes", "").reference()));
    assert_eq!(fixture.in_force(), ["10.97.0.0/16"]);
    assert!(!fixture.holds(), "its address is in no Service CIDR");
    fixture.change(Change::Apply(cidr("kubernetes", "10.96.0.0/12")));
    assert!(fixture.holds());
}

#[test]
fn a_service_that_moves_to_another_proxy_keeps_its_row() {
    let mut fixture = synced();
    for label in ["other", "''", "third"] {
        fixture.change(Change::Apply(held_service(label)));
        assert!(fixture.holds(), "{label}");
    }
    let mut own = held_service("x");
    if let Object::Service(own) = &mut own {
        own.metadata.labels = None;
    }
    fixture.change(Change::Apply(own));
    assert!(fixture.holds());
    fixture.change(Change::Apply(held_service("other")));
    assert!(fixture.holds());
    assert_eq!(fixture.controller.services(), [], "no ports for this proxy");
    // After the deletion, the address is unused.
    fixture.controller.maps.held.clear();
    fixture.change(Change::Delete(held_service("other").reference()));
    assert!(!fixture.holds());
}

#[test]
fn a_new_agent_changes_service_cidrs_after_everything_is_listed() {
    let fixture = synced();
    let maps = fixture.controller.maps().maps.clone();
    let mut next = Fixture::new(maps);
    next.list(ObjectKind::Service, vec![held_service("other")]);
    for kind in [ObjectKind::Node, ObjectKind::EndpointSlice, ObjectKind::Pod] {
        next.list(kind, Vec::new());
    }
    assert_eq!(
        next.in_force(),
        ["10.96.0.0/16", "fd00:96::/112"],
        "Service CIDRs stay until everything is listed"
    );
    next.list(ObjectKind::ServiceCidr, vec![cidr("kubernetes", "10.98.0.0/16")]);
    assert_eq!(next.in_force(), ["10.98.0.0/16"]);
}

#[test]
fn failed_operations_are_retried() {
    let mut fixture = synced();
    fixture.controller.maps.refusals = 2;
    fixture.change(Change::Apply(cidr("kubernetes", "10.97.0.0/16")));
    let mut ticks = 0;
    while fixture.in_force() != ["10.97.0.0/16"] {
        let due = fixture.controller.next_due().expect("a retry is due");
        fixture.now = fixture.now.max(due);
        fixture.controller.tick(fixture.now);
        ticks += 1;
        assert!(ticks < 100, "{:?}", fixture.in_force());
    }
}

#[test]
fn a_service_cidr_that_overlaps_with_pods_is_deleted() {
    let mut fixture = synced();
    fixture.change(Change::Apply(node("10.96.3.0/24")));
    assert_eq!(fixture.in_force(), ["fd00:96::/112"]);
    let problems: Vec<String> = fixture
        .controller
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        problems[0].starts_with("Node b: its Pod network 10.96.3.0/24"),
        "{problems:?}"
    );
    fixture.change(Change::Apply(node("10.244.3.0/24")));
    assert_eq!(fixture.in_force(), ["10.96.0.0/16", "fd00:96::/112"]);
}

#[test]
fn foreign_changes_of_service_cidrs_are_repaired() {
    let mut fixture = synced();
    let maps = &mut fixture.controller.maps.maps;
    let ranges = &mut maps.rows_mut().source_ranges;
    assert!(ranges.remove(&(0, "10.96.0.0/16".parse().unwrap())));
    ranges.insert((0, "10.3.0.0/16".parse().unwrap()));
    assert_eq!(fixture.controller.repair().unwrap().source_ranges, 2);
    assert_eq!(fixture.in_force(), ["10.96.0.0/16", "fd00:96::/112"]);
}
