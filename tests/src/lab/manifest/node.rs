//! Manifests of Nodes.

use std::fmt::{self, Display};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node as NodeObject, NodeAddress, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::write_yaml;
use crate::lab::Node;

/// A Node's manifest.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeManifest(NodeObject);

impl Node {
    /// Its Node object.
    pub fn manifest(&self) -> NodeManifest {
        let name = self.name().to_owned();
        let (cidr4, cidr6) = self.pod_cidrs();
        let [ipv4, ipv6] = self.host().addresses().both();
        let address = |type_: &str, address: String| NodeAddress {
            type_: type_.to_owned(),
            address,
        };
        let manifest = NodeManifest(NodeObject {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                pod_cidr: Some(cidr4.clone()),
                pod_cidrs: Some(vec![cidr4, cidr6]),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                addresses: Some(vec![
                    address("InternalIP", ipv4.to_string()),
                    address("InternalIP", ipv6.to_string()),
                    address("Hostname", name.clone()),
                ]),
                ..NodeStatus::default()
            }),
        });
        manifest.label("kubernetes.io/hostname", &name)
    }
}

impl NodeManifest {
    /// Adds a label, as in `topology.kubernetes.io/zone`.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        let labels = self.0.metadata.labels.get_or_insert_default();
        labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Replaces its internal addresses by these, in this order.
    pub fn addresses(mut self, addresses: &[IpAddr]) -> Self {
        let status = self.0.status.get_or_insert_default();
        let internal = addresses.iter().map(|address| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: address.to_string(),
        });
        status.addresses = Some(internal.collect());
        self
    }

    /// Adds a taint with this key and the effect `NoSchedule`.
    pub fn taint(mut self, key: &str) -> Self {
        let spec = self.0.spec.get_or_insert_default();
        spec.taints.get_or_insert_default().push(Taint {
            key: key.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
        self
    }
}

impl Display for NodeManifest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_yaml(&self.0, formatter)
    }
}
