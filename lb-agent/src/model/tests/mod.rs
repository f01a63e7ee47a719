//! Tests which endpoints get new flows, as tables. Helpers for the other tests.

mod random;
mod services;

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::desired::DesiredBackend;

/// An endpoint from text: its last octet, and then words for its node, its conditions and its
/// hints.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let mut endpoint = Endpoint {
        addresses: vec![format!("10.1.0.{}", words.next().unwrap())],
        ..Endpoint::default()
    };
    let mut conditions = EndpointConditions::default();
    let mut hints = EndpointHints::default();
    for word in words {
        match word.split_once('=') {
            None if word == "here" => endpoint.node_name = Some("node-a".to_owned()),
            None if word == "there" => endpoint.node_name = Some("node-b".to_owned()),
            None if word == "unready" => conditions.ready = Some(false),
            None if word == "unserving" => conditions.serving = Some(false),
            None if word == "terminating" => conditions.terminating = Some(true),
            Some(("zone", name)) => {
                hints.for_zones.get_or_insert_default().push(ForZone {
                    name: name.to_owned(),
                });
            }
            Some(("node", name)) => {
                hints.for_nodes.get_or_insert_default().push(ForNode {
                    name: name.to_owned(),
                });
            }
            _ => panic!("{word}"),
        }
    }
    endpoint.conditions = Some(conditions);
    endpoint.hints = Some(hints);
    endpoint
}

pub(super) fn slice(protocol: &str, endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints.iter().map(|text| endpoint(text)).collect()),
        metadata: ObjectMeta {
            name: Some("slice".to_owned()),
            ..ObjectMeta::default()
        },
        ports: Some(vec![EndpointPort {
            name: Some(String::new()),
            port: Some(8080),
            protocol: Some(protocol.to_owned()),
            app_protocol: None,
        }]),
    }
}

pub(super) fn service(spec: ServiceSpec) -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("default".to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

pub(super) fn spec(protocol: &str) -> ServiceSpec {
    ServiceSpec {
        cluster_ip: Some("10.96.0.1".to_owned()),
        internal_traffic_policy: Some("Local".to_owned()),
        ports: Some(vec![ServicePort {
            port: 80,
            protocol: Some(protocol.to_owned()),
            node_port: Some(30080),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    }
}

fn node() -> NodeConfig {
    NodeConfig {
        name: "node-a".to_owned(),
        zone: Some("zone-a".to_owned()),
        addresses: ["192.168.0.1", "fd00:168::1"]
            .map(|text| text.parse().unwrap())
            .into(),
        node_port_addresses: vec![NodePortAddresses::Primary],
        ..NodeConfig::default()
    }
}

pub(super) fn desired_of(
    service: &Service,
    slices: &[EndpointSlice],
) -> (Option<DesiredService>, Vec<Problem>) {
    desired_on(&node(), service, slices)
}

fn desired_on(
    node: &NodeConfig,
    service: &Service,
    slices: &[EndpointSlice],
) -> (Option<DesiredService>, Vec<Problem>) {
    let read = |slice: &EndpointSlice| ("slice", Cow::Owned(Slice::read(slice, &node.name)));
    let slices = Slices {
        slices: slices.iter().map(read).collect(),
        origin: ObjectKind::EndpointSlice,
    };
    desired(service, &slices, node)
}

/// Returns the cluster, local and draining endpoints as text: "1 2|1|3".
fn selection(protocol: &str, slices: &[EndpointSlice]) -> String {
    let (desired, problems) = desired_of(&service(spec(protocol)), slices);
    assert_eq!(problems, []);
    let ports = desired.unwrap().ports;
    let list = |chosen: fn(&DesiredBackend) -> bool| {
        let chosen = ports[0].backends.iter().filter(|backend| chosen(backend));
        let octets = chosen.map(|backend| backend.address.ip().to_string().replace("10.1.0.", ""));
        octets.collect::<Vec<_>>().join(" ")
    };
    format!(
        "{}|{}|{}",
        list(|backend| backend.in_cluster),
        list(|backend| backend.in_local),
        list(|backend| !backend.is_active())
    )
}

/// The slice of a process that is not a Pod contains no node name.
#[test]
fn endpoints_at_an_address_of_the_node_are_local() {
    let slices = [slice("TCP", &["1", "2 there", "3 there", "4"])];
    let node = NodeConfig {
        device_addresses: ["10.1.0.1", "10.1.0.3"].map(|text| text.parse().unwrap()).into(),
        ..node()
    };
    let (desired, _) = desired_on(&node, &service(spec("TCP")), &slices);
    let port = desired.unwrap().ports.remove(0);
    let local: Vec<_> = port.backends.iter().map(|backend| backend.local).collect();
    assert_eq!(local, [true, false, true, false]);
}

#[test]
fn conditions_and_hints_select_the_endpoints_for_new_flows() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "||"),
        (&["1 here", "2 there"], "1 2|1|"),
        (&["2 there"], "2||"),
        // Not ready, or terminating.
        (&["1 here unready", "2 there"], "2||1"),
        (&["1 here unready terminating", "2 there"], "2|1|"),
        (&["1 here unready terminating", "2 there unready"], "1|1|2"),
        (
            &["1 here unready unserving terminating", "2 there unready"],
            "||1 2",
        ),
        (&["1 here terminating"], "1|1|"),
        // Ready takes precedence over the other conditions, as with publishNotReadyAddresses.
        (&["1 here unserving", "2 there"], "1 2|1|"),
        (&["1 here unserving terminating"], "1|1|"),
        (&["1 here unready terminating", "2 here"], "2|2|1"),
        // Zones.
        (&["1 here zone=zone-a", "2 there zone=zone-b"], "1|1|2"),
        (&["1 here zone=zone-b", "2 there zone=zone-b"], "1 2|1|"),
        (&["1 here zone=zone-b", "2 there zone=zone-b zone=zone-a"], "2|1|"),
        (&["1 here", "2 there zone=zone-a"], "1 2|1|"),
        (
            &["1 here unready", "2 there zone=zone-a", "3 there zone=zone-b"],
            "2||1 3",
        ),
        // Node hints take precedence over zone hints.
        (
            &[
                "1 here node=node-b zone=zone-a",
                "2 there node=node-a zone=zone-b",
            ],
            "2|1|",
        ),
        (
            &[
                "1 here node=node-b zone=zone-a",
                "2 there node=node-b zone=zone-b",
            ],
            "1|1|2",
        ),
        (&["1 here node=node-a", "2 there zone=zone-a"], "1 2|1|"),
        // The fallback ignores hints.
        (
            &[
                "1 here unready terminating zone=zone-b",
                "2 there unready terminating zone=zone-a",
            ],
            "1 2|1|",
        ),
        // A terminating endpoint with the address of a running Pod.
        (&["1 there unready terminating", "1 here"], "1|1|"),
        (&["1 here", "1 there unready terminating"], "1|1|"),
        (
            &["1 there unready unserving", "1 here unready terminating"],
            "1|1|",
        ),
    ];
    for (endpoints, expected) in cases {
        assert_eq!(
            selection("TCP", &[slice("TCP", endpoints)]),
            *expected,
            "{endpoints:?}"
        );
    }
}

/// Kubernetes has annotations and fields about when to use hints. The controller that writes hints
/// has already checked them.
#[test]
fn hints_apply_regardless_of_the_service() {
    let slices = [slice("TCP", &["1 here zone=zone-a", "2 there zone=zone-b"])];
    for (distribution, mode) in [
        (None, None),
        (Some("PreferClose"), None),
        (Some("PreferSameNode"), Some("Disabled")),
        (None, Some("Disabled")),
        (None, Some("Auto")),
    ] {
        let mut service = service(ServiceSpec {
            traffic_distribution: distribution.map(str::to_owned),
            ..spec("TCP")
        });
        service.metadata.annotations =
            mode.map(|mode| [("service.kubernetes.io/topology-mode".to_owned(), mode.to_owned())].into());
        let (desired, problems) = desired_of(&service, &slices);
        assert_eq!(problems, []);
        let backends = &desired.unwrap().ports[0].backends;
        let cluster: Vec<bool> = backends.iter().map(|backend| backend.in_cluster).collect();
        assert_eq!(cluster, [true, false], "{distribution:?} {mode:?}");
    }
}

#[test]
fn udp_flows_leave_endpoints_that_are_not_serving() {
    let endpoints = ["1 here", "2 there unready unserving", "3 there unready"];
    assert_eq!(selection("UDP", &[slice("UDP", &endpoints)]), "1|1|3");
    assert_eq!(selection("TCP", &[slice("TCP", &endpoints)]), "1|1|2 3");
}

#[test]
fn ports_of_another_protocol_do_not_match() {
    assert_eq!(selection("TCP", &[slice("UDP", &["1 here"])]), "||");
}
