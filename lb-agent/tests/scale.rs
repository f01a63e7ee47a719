//! Tests that the number of writes of a change does not depend on the size of the cluster.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic too")]

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_agent::controller::Controller;
use lb_agent::maps::Capacity;
use lb_agent::maps::testing::FakeMaps;
use lb_agent::model::NodeConfig;
use lb_agent::object::{Change, Object, ObjectKind};

const N_ENDPOINTS: u32 = 10;
const CAPACITY: Capacity = Capacity {
    frontends: 200_000,
    slots: 2_000_000,
    backends: 1_000_000,
    services: 100_000,
    source_ranges: 16_384,
};

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some("default".to_owned()),
        ..ObjectMeta::default()
    }
}

fn address(network: u32, number: u32) -> String {
    std::net::Ipv4Addr::from(network + number).to_string()
}

fn service(number: u32) -> Object {
    let spec = ServiceSpec {
        cluster_ip: Some(address(0x0a60_0000, number + 1)),
        ports: Some(vec![ServicePort {
            port: 80,
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    };
    let metadata = metadata(format!("service-{number}"));
    Object::Service(Box::new(Service {
        metadata,
        spec: Some(spec),
        status: None,
    }))
}

fn slice(number: u32, n_endpoints: u32) -> Object {
    let endpoint = |index| Endpoint {
        addresses: vec![address(0x0b00_0000, number * N_ENDPOINTS + index)],
        node_name: Some("node-b".to_owned()),
        ..Endpoint::default()
    };
    let mut metadata = metadata(format!("service-{number}-abcde"));
    metadata.labels = Some(
        [(
            "kubernetes.io/service-name".to_owned(),
            format!("service-{number}"),
        )]
        .into(),
    );
    Object::EndpointSlice(Box::new(EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some((0..n_endpoints).map(endpoint).collect()),
        metadata,
        ports: Some(vec![EndpointPort {
            port: Some(8080),
            ..EndpointPort::default()
        }]),
    }))
}

fn load(maps: FakeMaps, n_services: u32) -> Controller<FakeMaps> {
    let mut controller = Controller::new(
        maps,
        NodeConfig::default(),
        [ObjectKind::Service, ObjectKind::EndpointSlice],
        Duration::ZERO,
    )
    .unwrap();
    controller.change(Change::Replace {
        kind: ObjectKind::Service,
        objects: (0..n_services).map(service).collect(),
    });
    controller.change(Change::Replace {
        kind: ObjectKind::EndpointSlice,
        objects: (0..n_services).map(|number| slice(number, N_ENDPOINTS)).collect(),
    });
    controller.tick(Instant::now());
    assert_eq!(controller.status().failed, 0);
    controller
}

/// Returns the number of writes when one Service of this many loses an endpoint.
fn writes_of_a_change(n_services: u32) -> usize {
    let mut controller = load(FakeMaps::new(CAPACITY), n_services);
    let before = controller.maps().log.len();
    controller.change(Change::Apply(slice(n_services / 2, N_ENDPOINTS - 1)));
    controller.tick(Instant::now());
    controller.maps().log.len() - before
}

#[test]
fn the_number_of_services_does_not_affect_the_writes_of_a_change() {
    let among_few = writes_of_a_change(10);
    // The slots of the new region, the frontend row, and the row of the removed backend.
    assert_eq!(among_few, 3);
    assert_eq!(writes_of_a_change(3000), among_few);
}

#[test]
fn a_new_agent_writes_nothing_with_many_services() {
    let mut maps = load(FakeMaps::new(CAPACITY), 3000).maps().clone();
    maps.log.clear();
    let mut controller = load(maps, 3000);
    assert_eq!(controller.maps().log, []);
    assert_eq!(controller.repair().unwrap().faults(), 0);
}
