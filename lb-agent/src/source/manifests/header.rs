//! The apiVersion, kind and name of a document.

use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::Deserialize;

use crate::object::ObjectKind;

use super::fault::Reason;

/// The part of a document that every Kubernetes object has.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, expecting = "a Kubernetes object")]
pub(super) struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize, Default)]
#[serde(default, expecting = "the metadata of an object")]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
}

/// The headers of the items of a `List`.
#[derive(Deserialize, Default)]
#[serde(default, expecting = "a List")]
pub(super) struct ListHeader {
    pub(super) items: Option<Vec<Header>>,
}

/// The content of a document.
pub(super) enum Content {
    /// One object.
    Object(ObjectKind),
    /// A list of objects. If the list is typed, all have this kind.
    List(Option<ObjectKind>),
    /// An object that the agent does not use.
    Unknown(Reason),
}

impl Header {
    /// Returns the content of the document.
    pub(super) fn content(&self) -> Result<Content, Reason> {
        let api_version = self.api_version.as_deref().ok_or(Reason::Missing("apiVersion"))?;
        let kind = self.kind.as_deref().ok_or(Reason::Missing("kind"))?;
        if let Some(kind) = find(api_version, kind) {
            return Ok(Content::Object(kind));
        }
        if let Some(item) = kind.strip_suffix("List") {
            match find(api_version, item) {
                Some(kind) => return Ok(Content::List(Some(kind))),
                None if (api_version, item) == ("v1", "") => return Ok(Content::List(None)),
                None => {}
            }
        }
        Ok(Content::Unknown(Reason::UnknownKind {
            object: format!("{api_version} {}", self.describe(kind)),
        }))
    }

    /// Sets the apiVersion and kind of an item of a typed list, unless the item has them.
    pub(super) fn set_kind(&mut self, kind: ObjectKind) {
        self.api_version
            .get_or_insert_with(|| api_version(kind).to_owned());
        self.kind.get_or_insert_with(|| kind.to_string());
    }

    /// Describes the object for messages: its kind, and its namespace and name if it has them.
    pub(super) fn describe(&self, kind: &str) -> String {
        let metadata = self.metadata.as_ref();
        let name = metadata
            .and_then(|metadata| metadata.name.as_deref())
            .unwrap_or("without a name");
        match metadata.and_then(|metadata| metadata.namespace.as_deref()) {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        }
    }
}

fn api_version(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Service => Service::API_VERSION,
        ObjectKind::EndpointSlice => EndpointSlice::API_VERSION,
        ObjectKind::Node => Node::API_VERSION,
        ObjectKind::ServiceCidr => ServiceCIDR::API_VERSION,
        ObjectKind::Pod => Pod::API_VERSION,
    }
}

fn find(version: &str, name: &str) -> Option<ObjectKind> {
    ObjectKind::ALL
        .into_iter()
        .find(|&kind| api_version(kind) == version && kind.to_string() == name)
}
