//! Manifests of Services.

use std::fmt::{self, Display};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort as PortSpec, ServiceSpec,
    ServiceStatus, SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{NAMESPACE, write_yaml};

/// A port of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name.
    pub name: &'static str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// The port to which clients connect.
    pub port: u16,
    /// The port on which the Pods listen.
    pub target_port: u16,
    /// The NodePort, if it has one.
    pub node_port: Option<u16>,
}

impl ServicePort {
    /// The same without a NodePort.
    pub const fn without_node_port(self) -> Self {
        Self {
            node_port: None,
            ..self
        }
    }
}

/// A Service's manifest.
///
/// ```
/// use lb_tests::lab::{ServiceManifest, ServicePort};
///
/// let port = ServicePort {
///     name: "http",
///     protocol: "TCP",
///     port: 80,
///     target_port: 8080,
///     node_port: None,
/// };
/// let manifest = ServiceManifest::new("web", &["10.96.0.10".parse()?], &[port])
///     .ingress(&["198.51.100.10".parse()?], None)
///     .external_traffic_policy("Local");
/// assert!(manifest.to_string().contains("type: LoadBalancer"));
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceManifest(Service);

impl ServiceManifest {
    /// A Service with these ClusterIPs that selects the Pods whose label `app` is its name. Its
    /// type is NodePort if one of the ports has a NodePort, otherwise ClusterIP. Without addresses
    /// it is headless.
    pub fn new(name: &str, addresses: &[IpAddr], ports: &[ServicePort]) -> Self {
        let service_type = match ports.iter().any(|port| port.node_port.is_some()) {
            true => "NodePort",
            false => "ClusterIP",
        };
        let families = addresses
            .iter()
            .map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" });
        let first = addresses.first().map_or("None".to_owned(), IpAddr::to_string);
        Self(Service {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceSpec {
                type_: Some(service_type.to_owned()),
                cluster_ip: Some(first),
                cluster_ips: Some(texts(addresses)),
                ip_families: Some(families.map(str::to_owned).collect()),
                selector: Some([("app".to_owned(), name.to_owned())].into()),
                ports: Some(ports.iter().map(port_spec).collect()),
                ..ServiceSpec::default()
            }),
            status: None,
        })
    }

    /// Sets its type, as in `LoadBalancer`.
    pub fn of_type(self, service_type: &str) -> Self {
        self.with_spec(|spec| spec.type_ = Some(service_type.to_owned()))
    }

    /// Makes it a LoadBalancer and adds these addresses to those that it already has. `ip_mode` is
    /// `VIP` or `Proxy`.
    pub fn ingress(self, addresses: &[IpAddr], ip_mode: Option<&str>) -> Self {
        let mut service = self.of_type("LoadBalancer");
        let status = service.0.status.get_or_insert_with(ServiceStatus::default);
        let balancer = status
            .load_balancer
            .get_or_insert_with(LoadBalancerStatus::default);
        let ingress = balancer.ingress.get_or_insert_default();
        ingress.extend(addresses.iter().map(|address| LoadBalancerIngress {
            ip: Some(address.to_string()),
            ip_mode: ip_mode.map(str::to_owned),
            ..LoadBalancerIngress::default()
        }));
        service
    }

    /// `externalIPs`
    pub fn external_ips(self, addresses: &[IpAddr]) -> Self {
        self.with_spec(|spec| spec.external_ips = Some(texts(addresses)))
    }

    /// `externalTrafficPolicy`: `Cluster` or `Local`.
    pub fn external_traffic_policy(self, policy: &str) -> Self {
        self.with_spec(|spec| spec.external_traffic_policy = Some(policy.to_owned()))
    }

    /// `internalTrafficPolicy`: `Cluster` or `Local`.
    pub fn internal_traffic_policy(self, policy: &str) -> Self {
        self.with_spec(|spec| spec.internal_traffic_policy = Some(policy.to_owned()))
    }

    /// Sets session affinity by the client's address, with a timeout in seconds or Kubernetes'
    /// default.
    pub fn client_ip_affinity(self, timeout_seconds: Option<i32>) -> Self {
        self.with_spec(|spec| {
            spec.session_affinity = Some("ClientIP".to_owned());
            spec.session_affinity_config = timeout_seconds.map(|seconds| SessionAffinityConfig {
                client_ip: Some(ClientIPConfig {
                    timeout_seconds: Some(seconds),
                }),
            });
        })
    }

    /// `loadBalancerSourceRanges`
    pub fn source_ranges(self, ranges: &[&str]) -> Self {
        let ranges = ranges.iter().map(|&range| range.to_owned()).collect();
        self.with_spec(|spec| spec.load_balancer_source_ranges = Some(ranges))
    }

    /// `healthCheckNodePort`
    pub fn health_check_node_port(self, port: u16) -> Self {
        self.with_spec(|spec| spec.health_check_node_port = Some(port.into()))
    }

    /// Adds a label to the Service.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        let labels = self.0.metadata.labels.get_or_insert_default();
        labels.insert(name.to_owned(), value.to_owned());
        self
    }

    fn with_spec(mut self, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        change(self.0.spec.get_or_insert_default());
        self
    }
}

impl Display for ServiceManifest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_yaml(&self.0, formatter)
    }
}

fn port_spec(port: &ServicePort) -> PortSpec {
    PortSpec {
        name: Some(port.name.to_owned()),
        protocol: Some(port.protocol.to_owned()),
        port: port.port.into(),
        target_port: Some(IntOrString::Int(port.target_port.into())),
        node_port: port.node_port.map(i32::from),
        ..PortSpec::default()
    }
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: ServicePort = ServicePort {
        name: "signalling",
        protocol: "SCTP",
        port: 3868,
        target_port: 3868,
        node_port: Some(30_868),
    };

    fn read(manifest: &ServiceManifest) -> (Service, ServiceSpec) {
        let service: Service = serde_norway::from_str(&manifest.to_string()).unwrap();
        let spec = service.spec.clone().unwrap();
        (service, spec)
    }

    #[test]
    fn a_new_service_has_addresses_selector_and_ports() {
        let addresses = ["10.96.0.10", "fd00:96::10"].map(|address| address.parse().unwrap());
        let manifest = ServiceManifest::new("web", &addresses, &[PORT]);
        let (service, spec) = read(&manifest);
        assert_eq!(service.metadata.name.unwrap(), "web");
        assert_eq!(spec.type_.unwrap(), "NodePort");
        assert_eq!(spec.cluster_ip.unwrap(), "10.96.0.10");
        assert_eq!(spec.cluster_ips.unwrap(), ["10.96.0.10", "fd00:96::10"]);
        assert_eq!(spec.ip_families.unwrap(), ["IPv4", "IPv6"]);
        assert_eq!(spec.selector.unwrap()["app"], "web");
        let port = &spec.ports.unwrap()[0];
        assert_eq!((port.port, port.node_port), (3868, Some(30_868)));
        assert_eq!(port.protocol.as_deref(), Some("SCTP"));

        let (_, headless) = read(&ServiceManifest::new("web", &[], &[]));
        assert_eq!(headless.cluster_ip.unwrap(), "None");
        assert_eq!(headless.type_.unwrap(), "ClusterIP");
    }

    #[test]
    fn all_fields_can_be_set_together() {
        let [balancer, proxy, external] =
            ["198.51.100.1", "198.51.100.2", "198.51.100.3"].map(|address| address.parse().unwrap());
        let manifest = ServiceManifest::new("web", &[], &[PORT])
            .ingress(&[balancer], None)
            .ingress(&[proxy], Some("Proxy"))
            .external_ips(&[external])
            .external_traffic_policy("Local")
            .internal_traffic_policy("Local")
            .client_ip_affinity(Some(60))
            .source_ranges(&["203.0.113.0/24"])
            .health_check_node_port(32_000)
            .label("service.kubernetes.io/service-proxy-name", "other");
        let (service, spec) = read(&manifest);
        assert_eq!(spec.type_.unwrap(), "LoadBalancer");
        let ingress = service.status.unwrap().load_balancer.unwrap().ingress.unwrap();
        assert_eq!(ingress[0].ip.as_deref(), Some("198.51.100.1"));
        assert_eq!(ingress[0].ip_mode, None);
        assert_eq!(ingress[1].ip_mode.as_deref(), Some("Proxy"));
        assert_eq!(spec.external_ips.unwrap(), ["198.51.100.3"]);
        assert_eq!(spec.external_traffic_policy.unwrap(), "Local");
        assert_eq!(spec.internal_traffic_policy.unwrap(), "Local");
        assert_eq!(spec.session_affinity.unwrap(), "ClientIP");
        let affinity = spec.session_affinity_config.unwrap().client_ip.unwrap();
        assert_eq!(affinity.timeout_seconds, Some(60));
        assert_eq!(spec.load_balancer_source_ranges.unwrap(), ["203.0.113.0/24"]);
        assert_eq!(spec.health_check_node_port, Some(32_000));
        assert_eq!(service.metadata.labels.unwrap().len(), 1);
    }
}
