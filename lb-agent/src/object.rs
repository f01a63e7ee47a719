//! The Kubernetes objects that the agent reads, and the changes that a source reports.

use std::fmt;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

/// The kinds of objects that the agent reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectKind {
    /// `v1/Service`
    Service,
    /// `discovery.k8s.io/v1/EndpointSlice`
    EndpointSlice,
    /// `v1/Node`
    Node,
    /// `networking.k8s.io/v1/ServiceCIDR`
    ServiceCidr,
    /// `v1/Pod`. Pods only occur in manifests; the agent may derive a Service's endpoints from
    /// them.
    Pod,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::ServiceCidr,
    ];
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Pod => "Pod",
        })
    }
}

/// The identity of an object: kind, namespace (empty for a Node and a ServiceCIDR) and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectReference {
    /// The object's kind.
    pub kind: ObjectKind,
    /// The object's namespace; empty if its kind has none.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl fmt::Display for ObjectReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(formatter, "{} {}", self.kind, self.name),
            namespace => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// An object from a source.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// A part of a Service's endpoints.
    EndpointSlice(Box<EndpointSlice>),
    /// A Node.
    Node(Box<Node>),
    /// Networks of cluster IPs.
    ServiceCidr(Box<ServiceCIDR>),
    /// A Pod.
    Pod(Box<Pod>),
}

impl Object {
    /// Returns the kind, namespace and name. A namespaced object without a namespace is in
    /// `default`.
    pub fn reference(&self) -> ObjectReference {
        let (kind, namespace, name) = match self {
            Self::Service(object) => (ObjectKind::Service, object.namespace(), object.name_any()),
            Self::EndpointSlice(object) => (ObjectKind::EndpointSlice, object.namespace(), object.name_any()),
            Self::Node(object) => (ObjectKind::Node, Some(String::new()), object.name_any()),
            Self::ServiceCidr(object) => (ObjectKind::ServiceCidr, Some(String::new()), object.name_any()),
            Self::Pod(object) => (ObjectKind::Pod, object.namespace(), object.name_any()),
        };
        ObjectReference {
            kind,
            namespace: namespace.unwrap_or_else(|| "default".to_owned()),
            name,
        }
    }
}

/// Removes the parts of endpoints that the agent does not read, and unused capacity. Endpoints need
/// most of the agent's memory for objects, and a complete list of them is in memory at the same
/// time.
pub fn trim_endpoints(slice: &mut EndpointSlice) {
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.target_ref = None;
        endpoint.hostname = None;
        endpoint.deprecated_topology = None;
        endpoint.addresses.shrink_to_fit();
    }
    if let Some(endpoints) = &mut slice.endpoints {
        endpoints.shrink_to_fit();
    }
}

/// Removes the parts of a Node that the agent does not read. Images and conditions are most of a
/// Node, and there are many Nodes.
pub fn trim_node(node: &mut Node) {
    let metadata = std::mem::take(&mut node.metadata);
    node.metadata = ObjectMeta {
        name: metadata.name,
        labels: metadata.labels,
        deletion_timestamp: metadata.deletion_timestamp,
        ..ObjectMeta::default()
    };
    let spec = node.spec.take().map(|spec| NodeSpec {
        taints: spec.taints,
        pod_cidr: spec.pod_cidr,
        pod_cidrs: spec.pod_cidrs,
        ..NodeSpec::default()
    });
    node.spec = spec.filter(|spec| *spec != NodeSpec::default());
    let addresses = node.status.take().and_then(|status| status.addresses);
    node.status = addresses.map(|addresses| NodeStatus {
        addresses: Some(addresses),
        ..NodeStatus::default()
    });
}

/// A change that a source reports.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// The object is new or changed.
    Apply(Object),
    /// The object is deleted.
    Delete(ObjectReference),
    /// These are all objects of the kind; all others are deleted. The first `Replace` of a kind is
    /// its first complete list. Nothing is removed from the maps before each kind of the source has
    /// had one.
    Replace {
        /// The kind.
        kind: ObjectKind,
        /// All objects of the kind.
        objects: Vec<Object>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimmed_nodes_keep_the_fields_that_the_agent_reads() {
        let mut node: Node = serde_norway::from_str(
            "{metadata: {name: node-b, uid: u, labels: {topology.kubernetes.io/zone: zone-a}, annotations: {a: b}}, \
              spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24], providerID: p, taints: [{key: k, effect: NoSchedule}]}, \
              status: {addresses: [{type: InternalIP, address: 192.0.2.2}], capacity: {cpu: '2'}, \
                       images: [{names: [example.com/image], sizeBytes: 5}], conditions: [{type: Ready, status: 'True'}]}}",
        )
        .unwrap();
        let kept: Node = serde_norway::from_str(
            "{metadata: {name: node-b, labels: {topology.kubernetes.io/zone: zone-a}}, \
              spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24], taints: [{key: k, effect: NoSchedule}]}, \
              status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}",
        )
        .unwrap();
        trim_node(&mut node);
        assert_eq!(node, kept);
    }
}
