//! Parses objects from YAML.

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_agent::object::Object;
use serde::Deserialize;
use serde_norway::Value;

/// Returns the objects of several documents.
pub(crate) fn parse(text: &str) -> Vec<Object> {
    let documents = serde_norway::Deserializer::from_str(text);
    documents
        .map(|document| object(Value::deserialize(document).unwrap()))
        .collect()
}

fn object(value: Value) -> Object {
    match value.get("kind").and_then(Value::as_str) {
        Some("Service") => Object::Service(Box::new(from::<Service>(value))),
        Some("EndpointSlice") => Object::EndpointSlice(Box::new(from::<EndpointSlice>(value))),
        Some("Node") => Object::Node(Box::new(from::<Node>(value))),
        Some("Pod") => Object::Pod(Box::new(from::<Pod>(value))),
        kind => panic!("kind {kind:?}"),
    }
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_norway::from_value(value).unwrap()
}
