//! Tests which Services a change affects.

use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, NodeAddress, NodeSpec, NodeStatus, ServiceSpec, ServiceStatus,
    Taint,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, Time};

use super::*;
use crate::network::Family;

const KINDS: [ObjectKind; 2] = [ObjectKind::Service, ObjectKind::EndpointSlice];

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        resource_version: Some(name.len().to_string()),
        ..ObjectMeta::default()
    }
}

fn service(name: &str) -> Service {
    Service {
        metadata: metadata(name),
        spec: Some(ServiceSpec::default()),
        status: None,
    }
}

fn slice(name: &str, service: Option<&str>) -> EndpointSlice {
    let labels = service.map(|service| [(SERVICE_NAME_LABEL.to_owned(), service.to_owned())].into());
    EndpointSlice {
        metadata: ObjectMeta {
            labels,
            ..metadata(name)
        },
        address_type: "IPv4".to_owned(),
        ..EndpointSlice::default()
    }
}

fn apply_service(state: &mut ClusterState, service: Service) {
    state.apply(Change::Apply(Object::Service(Box::new(service))));
}

fn apply_slice(state: &mut ClusterState, slice: EndpointSlice) {
    state.apply(Change::Apply(Object::EndpointSlice(Box::new(slice))));
}

fn dirty(state: &mut ClusterState) -> Vec<String> {
    state.take_dirty().into_iter().map(|name| name.name).collect()
}

#[test]
fn irrelevant_fields_are_not_a_change() {
    let mut state = ClusterState::new(NodeConfig::default(), KINDS);
    apply_service(&mut state, service("web"));
    assert_eq!(dirty(&mut state), ["web"]);

    let mut same = service("web");
    same.metadata.resource_version = Some("2".to_owned());
    same.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
    apply_service(&mut state, same);
    assert_eq!(dirty(&mut state), [""; 0]);

    let mut other = service("web");
    other.spec = Some(ServiceSpec {
        cluster_ip: Some("10.96.0.1".to_owned()),
        ..ServiceSpec::default()
    });
    apply_service(&mut state, other);
    assert_eq!(dirty(&mut state), ["web"]);
}

#[test]
fn a_slice_that_moves_to_another_service_affects_both() {
    let mut state = ClusterState::new(NodeConfig::default(), KINDS);
    apply_slice(&mut state, slice("one", Some("web")));
    apply_slice(&mut state, slice("one", Some("web")));
    assert_eq!(dirty(&mut state), ["web"]);
    apply_slice(&mut state, slice("one", Some("api")));
    assert_eq!(dirty(&mut state), ["api", "web"]);
    apply_slice(&mut state, slice("one", None));
    assert_eq!(dirty(&mut state), ["api"]);
    assert_eq!(state.problems().len(), 1);
    let reference = ObjectReference {
        kind: ObjectKind::EndpointSlice,
        namespace: "default".to_owned(),
        name: "one".to_owned(),
    };
    state.apply(Change::Delete(reference));
    assert_eq!(dirty(&mut state), [""; 0]);
    assert_eq!(state.problems(), []);
    assert!(state.slices.is_empty() && state.slice_owners.is_empty());
}

#[test]
fn a_complete_list_removes_missing_objects() {
    let mut state = ClusterState::new(NodeConfig::default(), KINDS);
    apply_service(&mut state, service("old"));
    apply_service(&mut state, service("kept"));
    dirty(&mut state);
    let objects = ["kept", "new"]
        .map(|name| Object::Service(Box::new(service(name))))
        .into();
    state.apply(Change::Replace {
        kind: ObjectKind::Service,
        objects,
    });
    assert_eq!(dirty(&mut state), ["new", "old"]);
    assert!(!state.ready());
    state.apply(Change::Replace {
        kind: ObjectKind::EndpointSlice,
        objects: Vec::new(),
    });
    assert!(state.ready());
}

const TRIGGER: &str = "2026-01-02T03:04:05.678Z";

fn triggered(name: &str, family: &str, time: &str) -> EndpointSlice {
    let mut slice = slice(name, Some("web"));
    slice.address_type = family.to_owned();
    let key = "endpoints.kubernetes.io/last-change-trigger-time".to_owned();
    slice.metadata.annotations = Some([(key, time.to_owned())].into());
    slice
}

#[test]
fn pending_changes_are_counted_until_they_are_taken() {
    let mut state = ClusterState::new(NodeConfig::default(), KINDS);
    apply_service(&mut state, service("web"));
    apply_service(&mut state, service("web"));
    apply_slice(&mut state, slice("one", Some("web")));
    apply_slice(&mut state, slice("one", Some("api")));
    let changes = |total, pending| Changes { total, pending };
    assert_eq!(state.observed().service_changes, changes(1, 1));
    // The last change affects the endpoints of two Services.
    assert_eq!(state.observed().endpoint_changes, changes(3, 3));
    state.take_dirty();
    assert_eq!(state.observed().service_changes, changes(1, 0));
    assert_eq!(state.observed().endpoint_changes, changes(3, 0));
}

#[test]
fn a_changed_slice_reports_the_time_of_its_cause() {
    let mut state = ClusterState::new(NodeConfig::default(), KINDS);
    apply_slice(&mut state, triggered("one", "IPv4", TRIGGER));
    apply_slice(&mut state, triggered("two", "IPv6", TRIGGER));
    apply_slice(&mut state, triggered("names", "FQDN", TRIGGER));
    apply_slice(&mut state, triggered("broken", "IPv4", "yesterday"));
    apply_slice(&mut state, slice("silent", Some("web")));
    let found: Vec<_> = state
        .take_triggers()
        .into_iter()
        .map(|trigger| (trigger.service.name, trigger.family, trigger.time.to_string()))
        .collect();
    let expected = [Family::V4, Family::V6].map(|family| ("web".to_owned(), family, TRIGGER.to_owned()));
    assert_eq!(found, expected);

    // Only the annotation changed.
    state.take_dirty();
    apply_slice(&mut state, triggered("one", "IPv4", "2026-01-02T03:04:06Z"));
    assert_eq!(state.take_triggers(), []);
    assert_eq!(dirty(&mut state), [""; 0]);
}

#[test]
fn a_deleted_or_tainted_node_is_leaving() {
    let config = NodeConfig {
        name: "node-a".to_owned(),
        ..NodeConfig::default()
    };
    let mut state = ClusterState::new(config, KINDS);
    let node = |name: &str, taint: Option<&str>| Node {
        metadata: metadata(name),
        spec: Some(NodeSpec {
            taints: taint.map(|key| {
                vec![Taint {
                    key: key.to_owned(),
                    ..Taint::default()
                }]
            }),
            ..NodeSpec::default()
        }),
        status: None,
    };
    let mut deleted = node("node-a", None);
    deleted.metadata.deletion_timestamp = Some(Time(TRIGGER.parse().unwrap()));
    let autoscaler = Some("ToBeDeletedByClusterAutoscaler");
    for (object, expected) in [
        (node("node-a", None), false),
        (node("node-b", autoscaler), false),
        (node("node-a", autoscaler), true),
        (node("node-a", Some("node.kubernetes.io/not-ready")), false),
        (deleted, true),
    ] {
        state.apply(Change::Apply(Object::Node(Box::new(object))));
        assert_eq!(state.observed().node_is_leaving, expected);
    }
    let mut reference = Object::Node(Box::new(node("node-a", None))).reference();
    reference.namespace = String::new();
    state.apply(Change::Delete(reference));
    assert!(state.observed().node_is_leaving);
}

#[test]
fn new_node_addresses_affect_services_that_may_have_them() {
    let mut state = ClusterState::new(NodeConfig::default(), KINDS);
    let typed = |name: &str, type_: &str| {
        let mut service = service(name);
        service.spec.as_mut().unwrap().type_ = Some(type_.to_owned());
        service
    };
    let mut external = service("external");
    external.spec.as_mut().unwrap().external_ips = Some(vec!["203.0.113.1".to_owned()]);
    for service in [
        service("internal"),
        typed("ports", "NodePort"),
        typed("balanced", "LoadBalancer"),
        external,
    ] {
        apply_service(&mut state, service);
    }
    dirty(&mut state);
    let node = NodeConfig {
        device_addresses: ["203.0.113.1".parse().unwrap()].into(),
        ..NodeConfig::default()
    };
    state.set_node(node.clone());
    assert_eq!(dirty(&mut state), ["balanced", "external", "ports"]);
    state.set_node(node);
    assert_eq!(dirty(&mut state), [""; 0]);
}

#[test]
fn node_addresses_affect_services_with_endpoints_at_them() {
    let mut state = ClusterState::new(NodeConfig::default(), KINDS);
    for name in ["web", "other"] {
        apply_service(&mut state, service(name));
    }
    let mut slice = slice("web-1", Some("web"));
    slice.endpoints = Some(vec![Endpoint {
        addresses: vec!["203.0.113.1".to_owned()],
        ..Endpoint::default()
    }]);
    apply_slice(&mut state, slice);
    dirty(&mut state);
    for (addresses, concerned) in [
        (&["203.0.113.2"][..], &[][..]),
        (&["203.0.113.2", "203.0.113.1"], &["web"]),
        (&["203.0.113.1"], &[]),
        (&[], &["web"]),
    ] {
        state.set_node(NodeConfig {
            device_addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..NodeConfig::default()
        });
        assert_eq!(dirty(&mut state), concerned, "{addresses:?}");
    }
}

fn node_at(name: &str, addresses: &[(&str, &str)]) -> Object {
    let address = |(type_, address): &(&str, &str)| NodeAddress {
        type_: (*type_).to_owned(),
        address: (*address).to_owned(),
    };
    Object::Node(Box::new(Node {
        metadata: ObjectMeta {
            namespace: None,
            ..metadata(name)
        },
        spec: None,
        status: Some(NodeStatus {
            addresses: Some(addresses.iter().map(address).collect()),
            ..NodeStatus::default()
        }),
    }))
}

/// Services with one external IP or load balancer address each, and one Service with neither.
fn services_at(addresses: &[(&str, &str)]) -> impl Iterator<Item = Service> {
    let services = addresses.iter().map(|(name, address)| {
        let mut service = service(name);
        let address = (*address).to_owned();
        if name.starts_with("balanced") {
            service.status = Some(ServiceStatus {
                load_balancer: Some(LoadBalancerStatus {
                    ingress: Some(vec![LoadBalancerIngress {
                        ip: Some(address),
                        ..LoadBalancerIngress::default()
                    }]),
                }),
                conditions: None,
            });
        } else {
            service.spec.as_mut().unwrap().external_ips = Some(vec![address]);
        }
        service
    });
    services.chain([service("plain")])
}

#[test]
fn addresses_of_other_nodes_affect_services_that_have_them() {
    let config = NodeConfig {
        name: "node-a".to_owned(),
        ..NodeConfig::default()
    };
    let mut state = ClusterState::new(config, KINDS);
    for service in services_at(&[
        ("balanced4", "192.0.2.2"),
        ("external4", "192.0.2.2"),
        ("external6", "2001:db8::2"),
        ("elsewhere", "192.0.2.9"),
    ]) {
        apply_service(&mut state, service);
    }
    dirty(&mut state);
    let known = |state: &ClusterState| {
        let addresses = state.node().other_nodes.iter();
        addresses.map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut apply = |object: Object| {
        state.apply(Change::Apply(object));
        (dirty(&mut state), known(&state))
    };
    let both = [
        ("InternalIP", "192.0.2.2"),
        ("ExternalIP", "2001:db8::2"),
        ("Hostname", "192.0.2.9"),
    ];
    let at4 = ["balanced4", "external4"];
    let (changed, addresses) = apply(node_at("node-b", &both));
    assert_eq!(changed, ["balanced4", "external4", "external6"]);
    assert_eq!(addresses, ["192.0.2.2", "2001:db8::2"]);
    assert_eq!(apply(node_at("node-b", &both)).0, [""; 0]);
    // Addresses of this node are not among those of other Nodes.
    assert_eq!(
        apply(node_at("node-a", &[("InternalIP", "192.0.2.1")])).1,
        addresses
    );
    // While an address moves, two objects contain it.
    assert_eq!(apply(node_at("node-c", &both[..1])).0, [""; 0]);
    let (changed, addresses) = apply(node_at("node-b", &[("InternalIP", "192.0.2.3")]));
    assert_eq!(
        (changed, addresses),
        (
            vec!["external6".to_owned()],
            vec!["192.0.2.2".to_owned(), "192.0.2.3".to_owned()]
        )
    );

    let delete = |name: &str| {
        Change::Delete(ObjectReference {
            kind: ObjectKind::Node,
            namespace: String::new(),
            name: name.to_owned(),
        })
    };
    state.apply(delete("node-c"));
    assert_eq!(
        (&dirty(&mut state)[..], &known(&state)[..]),
        (&at4.map(str::to_owned)[..], &["192.0.2.3".to_owned()][..])
    );
    // A Service changes its address, and then a complete list lacks Nodes.
    state.apply(Change::Apply(node_at("node-c", &both)));
    dirty(&mut state);
    let mut moved = services_at(&[("external4", "192.0.2.9")]);
    apply_service(&mut state, moved.next().unwrap());
    dirty(&mut state);
    state.apply(Change::Replace {
        kind: ObjectKind::Node,
        objects: vec![node_at("node-a", &[("InternalIP", "192.0.2.1")])],
    });
    assert_eq!(dirty(&mut state), ["balanced4", "external6"]);
    assert_eq!(known(&state), [""; 0]);
}

#[test]
fn addresses_of_local_pods_are_known_while_an_object_contains_them() {
    let node = NodeConfig {
        name: "here".to_owned(),
        ..NodeConfig::default()
    };
    let mut state = ClusterState::new(node, KINDS);
    let is_known = |state: &ClusterState, text: &str| state.is_pod_address(text.parse().unwrap());
    let endpoint = |address: &str, node: Option<&str>| Endpoint {
        addresses: vec![address.to_owned()],
        node_name: node.map(str::to_owned),
        ..Endpoint::default()
    };
    let with = |name, endpoints: Vec<Endpoint>| EndpointSlice {
        endpoints: Some(endpoints),
        ..slice(name, Some("web"))
    };
    let [first, second, third] = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
    apply_slice(
        &mut state,
        with(
            "one",
            vec![
                endpoint(first, Some("here")),
                endpoint(second, None),
                endpoint(third, Some("elsewhere")),
            ],
        ),
    );
    assert!(is_known(&state, first) && is_known(&state, second) && !is_known(&state, third));
    apply_slice(&mut state, with("two", vec![endpoint(first, Some("here"))]));
    apply_slice(&mut state, with("one", vec![endpoint(second, Some("here"))]));
    assert!(is_known(&state, first) && is_known(&state, second));
    let reference = |kind, name: &str| ObjectReference {
        kind,
        namespace: "default".to_owned(),
        name: name.to_owned(),
    };
    state.apply(Change::Delete(reference(ObjectKind::EndpointSlice, "two")));
    assert!(!is_known(&state, first) && is_known(&state, second));
    // The slice belongs to another Service now.
    let mut moved = with("one", vec![endpoint(first, Some("here"))]);
    moved.metadata.labels = Some([(SERVICE_NAME_LABEL.to_owned(), "api".to_owned())].into());
    apply_slice(&mut state, moved);
    assert!(is_known(&state, first) && !is_known(&state, second));
    state.apply(Change::Delete(reference(ObjectKind::EndpointSlice, "one")));
    assert!(!is_known(&state, first));

    for (node, is_here) in [("here", true), ("elsewhere", false)] {
        let pod: Pod = serde_norway::from_str(&format!(
            "{{metadata: {{name: p, namespace: default}}, spec: {{nodeName: {node}, containers: []}}, \
             status: {{podIPs: [{{ip: {first}}}, {{ip: 'fd00::1'}}]}}}}"
        ))
        .unwrap();
        state.apply(Change::Apply(Object::Pod(Box::new(pod))));
        assert_eq!(is_known(&state, first), is_here);
        assert_eq!(is_known(&state, "fd00::1"), is_here);
        state.apply(Change::Delete(reference(ObjectKind::Pod, "p")));
        assert!(!is_known(&state, first) && !is_known(&state, "fd00::1"));
    }
}

#[test]
fn addresses_in_the_nodes_pod_cidrs_are_pod_addresses() {
    let node = NodeConfig {
        name: "here".to_owned(),
        ..NodeConfig::default()
    };
    let mut state = ClusterState::new(node, KINDS);
    let is_known = |state: &ClusterState, text: &str| state.is_pod_address(text.parse().unwrap());
    for name in ["elsewhere", "here"] {
        assert!(!is_known(&state, "10.244.1.9"));
        let object: Node = serde_norway::from_str(&format!(
            "{{metadata: {{name: {name}}}, spec: {{podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}}}}"
        ))
        .unwrap();
        state.apply(Change::Apply(Object::Node(Box::new(object))));
    }
    assert!(is_known(&state, "10.244.1.9") && is_known(&state, "fd00:1::9"));
    assert!(!is_known(&state, "10.244.2.9") && !is_known(&state, "fd00:2::9"));
    state.apply(Change::Delete(ObjectReference {
        kind: ObjectKind::Node,
        namespace: String::new(),
        name: "here".to_owned(),
    }));
    assert!(!is_known(&state, "10.244.1.9"));
}
