//! Which Services a change concerns.

use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};

use super::*;

const KINDS: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];

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

fn apply_service(state: &mut State, service: Service) {
    state.apply(Change::Apply(Object::Service(Box::new(service))));
}

fn apply_slice(state: &mut State, slice: EndpointSlice) {
    state.apply(Change::Apply(Object::EndpointSlice(Box::new(slice))));
}

fn dirty(state: &mut State) -> Vec<String> {
    state.take_dirty().into_iter().map(|name| name.name).collect()
}

#[test]
fn only_what_matters_is_a_change() {
    let mut state = State::new(NodeConfig::default(), KINDS);
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
fn a_slice_that_changes_its_service_concerns_both() {
    let mut state = State::new(NodeConfig::default(), KINDS);
    apply_slice(&mut state, slice("one", Some("web")));
    apply_slice(&mut state, slice("one", Some("web")));
    assert_eq!(dirty(&mut state), ["web"]);
    apply_slice(&mut state, slice("one", Some("api")));
    assert_eq!(dirty(&mut state), ["api", "web"]);
    apply_slice(&mut state, slice("one", None));
    assert_eq!(dirty(&mut state), ["api"]);
    assert_eq!(state.problems().len(), 1);
    let reference = ObjectReference {
        kind: Kind::EndpointSlice,
        namespace: "default".to_owned(),
        name: "one".to_owned(),
    };
    state.apply(Change::Delete(reference));
    assert_eq!(dirty(&mut state), [""; 0]);
    assert_eq!(state.problems(), []);
    assert!(state.slices.is_empty() && state.slice_owners.is_empty());
}

#[test]
fn replace_removes_what_is_not_listed_and_makes_ready() {
    let mut state = State::new(NodeConfig::default(), KINDS);
    apply_service(&mut state, service("old"));
    apply_service(&mut state, service("kept"));
    dirty(&mut state);
    let objects = ["kept", "new"]
        .map(|name| Object::Service(Box::new(service(name))))
        .into();
    state.apply(Change::Replace {
        kind: Kind::Service,
        objects,
    });
    assert_eq!(dirty(&mut state), ["new", "old"]);
    assert!(!state.ready());
    state.apply(Change::Replace {
        kind: Kind::EndpointSlice,
        objects: Vec::new(),
    });
    assert!(state.ready());
}
