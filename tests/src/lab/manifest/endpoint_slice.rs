//! Manifests of EndpointSlices.

use std::fmt::{self, Display};
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{NAMESPACE, ServicePort, write_yaml};
use crate::lab::Machine;

/// The label with the name of a slice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The EndpointSlices of a Service: one document for each IP version that has endpoints. While a
/// slice exists, the agents do not derive the Service's endpoints from Pods.
///
/// ```
/// use lb_tests::lab::{EndpointManifest, EndpointSliceManifest, ServicePort};
///
/// let port = ServicePort {
///     name: "http",
///     protocol: "TCP",
///     port: 80,
///     target_port: 8080,
///     node_port: None,
/// };
/// let endpoint = EndpointManifest::new(&["10.244.1.2".parse()?]).node("node-1").terminating(true);
/// let slices = EndpointSliceManifest::new("web-1", "web", &[port]).endpoint(endpoint);
/// assert!(slices.to_string().contains("terminating: true"));
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct EndpointSliceManifest {
    name: String,
    service: String,
    ports: Vec<ServicePort>,
    endpoints: Vec<EndpointManifest>,
}

/// An endpoint in [`EndpointSliceManifest`]. Unset fields are not in the manifest.
#[derive(Clone, PartialEq, Debug)]
pub struct EndpointManifest {
    addresses: Vec<IpAddr>,
    endpoint: Endpoint,
}

impl EndpointSliceManifest {
    /// Slices of a Service, without endpoints. Only name, protocol and target port of the ports are
    /// used.
    pub fn new(name: &str, service: &str, ports: &[ServicePort]) -> Self {
        Self {
            name: name.to_owned(),
            service: service.to_owned(),
            ports: ports.to_owned(),
            endpoints: Vec::new(),
        }
    }

    /// Adds an endpoint to the slices of the IP versions in which it has addresses.
    pub fn endpoint(mut self, endpoint: EndpointManifest) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// The slice of one IP version, if it has endpoints.
    fn slice(&self, ipv4: bool) -> Option<EndpointSlice> {
        let endpoints: Vec<Endpoint> = self
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.of_version(ipv4))
            .collect();
        let version = if ipv4 { "IPv4" } else { "IPv6" };
        (!endpoints.is_empty()).then(|| EndpointSlice {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", self.name, version.to_lowercase())),
                namespace: Some(NAMESPACE.to_owned()),
                labels: Some([(SERVICE_LABEL.to_owned(), self.service.clone())].into()),
                ..ObjectMeta::default()
            },
            address_type: version.to_owned(),
            endpoints: Some(endpoints),
            ports: Some(self.ports.iter().map(endpoint_port).collect()),
        })
    }
}

impl EndpointManifest {
    /// An endpoint with these addresses, at most one of each IP version.
    pub fn new(addresses: &[IpAddr]) -> Self {
        Self {
            addresses: addresses.to_owned(),
            endpoint: Endpoint::default(),
        }
    }

    /// The endpoint of a Pod.
    pub fn of(pod: &Machine) -> Self {
        Self::new(&pod.addresses().both())
    }

    /// Condition `ready`.
    pub fn ready(self, ready: bool) -> Self {
        self.with_conditions(|conditions| conditions.ready = Some(ready))
    }

    /// Condition `serving`.
    pub fn serving(self, serving: bool) -> Self {
        self.with_conditions(|conditions| conditions.serving = Some(serving))
    }

    /// Condition `terminating`.
    pub fn terminating(self, terminating: bool) -> Self {
        self.with_conditions(|conditions| conditions.terminating = Some(terminating))
    }

    /// The name of its node.
    pub fn node(mut self, name: &str) -> Self {
        self.endpoint.node_name = Some(name.to_owned());
        self
    }

    /// Hints: the nodes that should use it.
    pub fn for_nodes(self, names: &[&str]) -> Self {
        let nodes = names.iter().map(|&name| ForNode {
            name: name.to_owned(),
        });
        let nodes = nodes.collect();
        self.with_hints(|hints| hints.for_nodes = Some(nodes))
    }

    /// Hints: the zones that should use it.
    pub fn for_zones(self, names: &[&str]) -> Self {
        let zones = names.iter().map(|&name| ForZone {
            name: name.to_owned(),
        });
        let zones = zones.collect();
        self.with_hints(|hints| hints.for_zones = Some(zones))
    }

    fn of_version(&self, ipv4: bool) -> Option<Endpoint> {
        let mut addresses = self.addresses.iter();
        let address = addresses.find(|address| address.is_ipv4() == ipv4)?;
        Some(Endpoint {
            addresses: vec![address.to_string()],
            ..self.endpoint.clone()
        })
    }

    fn with_conditions(mut self, change: impl FnOnce(&mut EndpointConditions)) -> Self {
        change(self.endpoint.conditions.get_or_insert_default());
        self
    }

    fn with_hints(mut self, change: impl FnOnce(&mut EndpointHints)) -> Self {
        change(self.endpoint.hints.get_or_insert_default());
        self
    }
}

impl Display for EndpointSliceManifest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slice in [true, false].into_iter().filter_map(|ipv4| self.slice(ipv4)) {
            formatter.write_str("---\n")?;
            write_yaml(&slice, formatter)?;
        }
        Ok(())
    }
}

fn endpoint_port(port: &ServicePort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.to_owned()),
        protocol: Some(port.protocol.to_owned()),
        port: Some(port.target_port.into()),
        ..EndpointPort::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: ServicePort = ServicePort {
        name: "http",
        protocol: "TCP",
        port: 80,
        target_port: 8080,
        node_port: None,
    };

    fn read(manifest: &EndpointSliceManifest) -> Vec<EndpointSlice> {
        let text = manifest.to_string();
        let documents = text.split("---\n").filter(|document| !document.is_empty());
        documents
            .map(|document| serde_norway::from_str(document).unwrap())
            .collect()
    }

    #[test]
    fn one_slice_for_each_ip_version() {
        let both = ["10.244.1.2", "fd00:244:1::2"].map(|address| address.parse().unwrap());
        let only = ["10.244.2.2"].map(|address| address.parse().unwrap());
        let manifest = EndpointSliceManifest::new("web-1", "web", &[PORT])
            .endpoint(EndpointManifest::new(&both).ready(true).node("node-1"))
            .endpoint(EndpointManifest::new(&only));
        let slices = read(&manifest);
        let [ipv4, ipv6] = &slices[..] else {
            panic!("{slices:?}")
        };
        assert_eq!(ipv4.metadata.name.as_deref(), Some("web-1-ipv4"));
        assert_eq!(ipv4.metadata.labels.as_ref().unwrap()[SERVICE_LABEL], "web");
        let endpoints = ipv4.endpoints.as_ref().unwrap();
        assert_eq!(endpoints[0].addresses, ["10.244.1.2"]);
        assert_eq!(endpoints[0].node_name.as_deref(), Some("node-1"));
        assert_eq!(endpoints[0].conditions.as_ref().unwrap().ready, Some(true));
        assert_eq!(endpoints[1].conditions, None);
        assert_eq!(ipv6.address_type, "IPv6");
        assert_eq!(ipv6.endpoints.as_ref().unwrap().len(), 1);
        assert_eq!(ipv6.ports.as_ref().unwrap()[0].port, Some(8080));
        assert!(read(&EndpointSliceManifest::new("web-1", "web", &[PORT])).is_empty());
    }

    #[test]
    fn conditions_and_hints_are_written() {
        let endpoint = EndpointManifest::new(&["10.244.1.2".parse().unwrap()])
            .ready(false)
            .serving(true)
            .terminating(true)
            .for_nodes(&["node-1", "node-2"])
            .for_zones(&["a"]);
        let manifest = EndpointSliceManifest::new("web-1", "web", &[PORT]).endpoint(endpoint);
        let slices = read(&manifest);
        let endpoint = &slices[0].endpoints.as_ref().unwrap()[0];
        let conditions = endpoint.conditions.as_ref().unwrap();
        assert_eq!(
            [conditions.ready, conditions.serving, conditions.terminating],
            [Some(false), Some(true), Some(true)]
        );
        let hints = endpoint.hints.as_ref().unwrap();
        assert_eq!(hints.for_nodes.as_ref().unwrap()[1].name, "node-2");
        assert_eq!(hints.for_zones.as_ref().unwrap()[0].name, "a");
    }
}
