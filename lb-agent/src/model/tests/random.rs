//! Properties of all slices, tested with random ones.

use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::EndpointPort;
use proptest::prelude::*;

use super::*;
use crate::desired::TrafficPolicy;
use crate::network::Family;

/// The properties of an endpoint.
#[derive(Clone, Debug)]
struct RandomEndpoint {
    address: u8,
    node: Option<u8>,
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
    zones: Vec<u8>,
    nodes: Vec<u8>,
}

/// A slice: whether it is of IPv6, the offset of its port, and its endpoints.
type RandomSlice = (bool, u8, Vec<RandomEndpoint>);

fn random_endpoint() -> impl Strategy<Value = RandomEndpoint> {
    let condition = || prop::option::of(any::<bool>());
    let hints = || prop_oneof![Just(Vec::new()), prop::collection::vec(0..2_u8, 1..3)];
    (
        (0..5_u8, prop::option::of(0..2_u8)),
        (condition(), condition(), condition()),
        (hints(), hints()),
    )
        .prop_map(
            |((address, node), (ready, serving, terminating), (zones, nodes))| RandomEndpoint {
                address,
                node,
                ready,
                serving,
                terminating,
                zones,
                nodes,
            },
        )
}

fn random_slices() -> impl Strategy<Value = Vec<RandomSlice>> {
    let slice = (
        any::<bool>(),
        0..2_u8,
        prop::collection::vec(random_endpoint(), 0..5),
    );
    prop::collection::vec(slice, 0..4)
}

fn node_name(number: u8) -> String {
    ["node-a", "node-b"][usize::from(number)].to_owned()
}

fn zone_name(number: u8) -> String {
    ["zone-a", "zone-b"][usize::from(number)].to_owned()
}

impl RandomEndpoint {
    fn build(&self, is_v6: bool) -> Endpoint {
        let address = match is_v6 {
            true => format!("fd00:1::{}", self.address + 1),
            false => format!("10.1.0.{}", self.address + 1),
        };
        let zones = self.zones.iter().map(|zone| ForZone {
            name: zone_name(*zone),
        });
        let nodes = self.nodes.iter().map(|node| ForNode {
            name: node_name(*node),
        });
        Endpoint {
            addresses: vec![address],
            conditions: Some(EndpointConditions {
                ready: self.ready,
                serving: self.serving,
                terminating: self.terminating,
            }),
            hints: Some(EndpointHints {
                for_nodes: Some(nodes.collect()),
                for_zones: Some(zones.collect()),
            }),
            node_name: self.node.map(node_name),
            ..Endpoint::default()
        }
    }

    fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    fn is_usable(&self) -> bool {
        self.is_ready() || self.serving.unwrap_or(true) && self.terminating.unwrap_or(false)
    }
}

fn build(slices: &[RandomSlice]) -> Vec<EndpointSlice> {
    let build = |(is_v6, port, endpoints): &RandomSlice| EndpointSlice {
        address_type: if *is_v6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(endpoints.iter().map(|endpoint| endpoint.build(*is_v6)).collect()),
        metadata: ObjectMeta::default(),
        ports: Some(vec![EndpointPort {
            port: Some(8080 + i32::from(*port)),
            ..EndpointPort::default()
        }]),
    };
    slices.iter().map(build).collect()
}

fn backends(slices: &[RandomSlice]) -> Vec<DesiredBackend> {
    let (desired, problems) = desired_of(&service(spec("TCP")), &build(slices));
    assert_eq!(problems, []);
    desired.unwrap().ports.remove(0).backends
}

/// The endpoints of the slices, with their address and port.
fn all(slices: &[RandomSlice]) -> impl Iterator<Item = (SocketAddr, &RandomEndpoint)> {
    slices.iter().flat_map(|(is_v6, port, endpoints)| {
        endpoints.iter().map(|endpoint| {
            let address = endpoint.build(*is_v6).addresses[0].parse().unwrap();
            (SocketAddr::new(address, 8080 + u16::from(*port)), endpoint)
        })
    })
}

fn of_family(backends: &[DesiredBackend], family: Family) -> impl Iterator<Item = &DesiredBackend> {
    let is_of = move |backend: &&DesiredBackend| Family::of(backend.address.ip()) == family;
    backends.iter().filter(is_of)
}

/// The same endpoints in one slice each, in random order.
fn split_and_shuffled(
    slices: Vec<RandomSlice>,
) -> impl Strategy<Value = (Vec<RandomSlice>, Vec<RandomSlice>)> {
    let split: Vec<RandomSlice> = slices
        .iter()
        .flat_map(|(is_v6, port, endpoints)| {
            endpoints
                .iter()
                .map(|endpoint| (*is_v6, *port, vec![endpoint.clone()]))
        })
        .collect();
    (Just(slices), Just(split).prop_shuffle())
}

proptest! {
    #[test]
    fn the_order_and_the_slices_of_endpoints_do_not_matter(
        (slices, others) in random_slices().prop_flat_map(split_and_shuffled),
    ) {
        prop_assert_eq!(backends(&slices), backends(&others));
    }

    #[test]
    fn duplicate_endpoints_change_nothing(slices in random_slices()) {
        let twice = [slices.clone(), slices.clone()].concat();
        prop_assert_eq!(backends(&slices), backends(&twice));
    }

    #[test]
    fn every_backend_is_an_endpoint_and_occurs_once(slices in random_slices()) {
        let backends = backends(&slices);
        prop_assert!(backends.is_sorted_by(|one, other| one.address < other.address));
        for backend in &backends {
            let mut said = all(&slices).filter(|(address, _)| *address == backend.address);
            let is_here = |endpoint: &RandomEndpoint| endpoint.node == Some(0);
            prop_assert!(said.any(|(_, endpoint)| is_here(endpoint) == backend.local), "{backend:?}");
            prop_assert!(backend.local || !backend.in_local, "{backend:?}");
        }
    }

    #[test]
    fn endpoints_that_are_not_ready_are_not_mixed_with_ready_ones(slices in random_slices()) {
        let backends = backends(&slices);
        for family in Family::ALL {
            let is_of = |address: &SocketAddr| Family::of(address.ip()) == family;
            let ready: BTreeSet<SocketAddr> = all(&slices)
                .filter(|(address, endpoint)| is_of(address) && endpoint.is_ready())
                .map(|(address, _)| address)
                .collect();
            for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
                let chosen: Vec<_> = of_family(&backends, family).filter(|backend| backend.is_in(policy)).collect();
                let n_ready = chosen.iter().filter(|backend| ready.contains(&backend.address)).count();
                prop_assert!([0, chosen.len()].contains(&n_ready), "{chosen:?}");
            }
            // If there is a ready endpoint, at least one is chosen. Without a usable endpoint, none
            // is chosen.
            let mut of_cluster = of_family(&backends, family).filter(|backend| backend.in_cluster);
            let mut usable = all(&slices).filter(|(address, endpoint)| is_of(address) && endpoint.is_usable());
            if !ready.is_empty() {
                prop_assert!(of_cluster.next().is_some());
            } else if usable.next().is_none() {
                prop_assert!(of_cluster.next().is_none());
            }
        }
    }

    #[test]
    fn the_local_region_ignores_hints(slices in random_slices()) {
        let mut without_hints = slices.clone();
        for endpoint in without_hints.iter_mut().flat_map(|(_, _, endpoints)| endpoints) {
            endpoint.zones.clear();
            endpoint.nodes.clear();
        }
        let (with, without) = (backends(&slices), backends(&without_hints));
        let local = |backends: &[DesiredBackend]| -> Vec<SocketAddr> {
            let local = backends.iter().filter(|backend| backend.in_local);
            local.map(|backend| backend.address).collect()
        };
        prop_assert_eq!(local(&with), local(&without));
        for family in Family::ALL {
            let any = |is_in: fn(&DesiredBackend) -> bool| of_family(&with, family).any(is_in);
            prop_assert!(any(|backend| backend.in_cluster) || !any(|backend| backend.in_local));
            // Hints only restrict the endpoints that are chosen without hints.
            let chosen = of_family(&without, family).filter(|backend| backend.in_cluster);
            let chosen: BTreeSet<SocketAddr> = chosen.map(|backend| backend.address).collect();
            for backend in of_family(&with, family).filter(|backend| backend.in_cluster) {
                prop_assert!(chosen.contains(&backend.address), "{backend:?}");
            }
        }
    }
}
