//! How long large states take: `cargo test --release -p lb-agent --test scale -- --ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic too")]

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_agent::controller::Controller;
use lb_agent::maps::testing::FakeMaps;
use lb_agent::maps::{Capacity, Maps};
use lb_agent::model::NodeConfig;
use lb_agent::object::{Change, Kind, Object};

const N_ENDPOINTS: u32 = 10;
const CAPACITY: Capacity = Capacity {
    frontends: 200_000,
    slots: 2_000_000,
    backends: 1_000_000,
    services: 100_000,
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

fn load<M: Maps>(maps: M, n_services: u32) -> (Controller<M>, Duration) {
    let services: Vec<Object> = (0..n_services).map(service).collect();
    let slices: Vec<Object> = (0..n_services).map(|number| slice(number, N_ENDPOINTS)).collect();
    let start = Instant::now();
    let mut controller =
        Controller::new(maps, NodeConfig::default(), [Kind::Service, Kind::EndpointSlice]).unwrap();
    controller.change(Change::Replace {
        kind: Kind::Service,
        objects: services,
    });
    controller.change(Change::Replace {
        kind: Kind::EndpointSlice,
        objects: slices,
    });
    controller.tick(start);
    let elapsed = start.elapsed();
    assert_eq!(controller.status().failed, 0);
    (controller, elapsed)
}

#[test]
#[ignore = "measures"]
fn large_states() {
    for n_services in [10_000, 30_000] {
        let (mut controller, elapsed) = load(FakeMaps::new(CAPACITY), n_services);
        println!("{n_services} Services, {N_ENDPOINTS} endpoints each: loaded in {elapsed:?}");

        let now = Instant::now();
        let n_changes = 1000;
        for number in 0..n_changes {
            controller.change(Change::Apply(slice(number * 7 % n_services, N_ENDPOINTS - 1)));
            controller.tick(now);
        }
        println!(
            "one endpoint of one Service less: {:?}",
            now.elapsed() / n_changes
        );

        let start = Instant::now();
        assert_eq!(controller.repair().unwrap().faults(), 0);
        println!("comparison with the maps: {:?}", start.elapsed());

        let (mut controller, _) = load(FakeMaps::new(CAPACITY), n_services);
        let mut maps = controller.maps_mut().clone();
        maps.log.clear();
        let (controller, elapsed) = load(maps, n_services);
        assert_eq!(controller.maps().log, []);
        println!("a new agent finds nothing to do: {elapsed:?}");
    }
}
