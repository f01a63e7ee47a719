//! The addresses of a Service, which clients connect to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use lb_common::layout::frontend_flags;

use super::ports::PortSpec;
use super::values::{quoted, unicast_address};
use super::{NodeConfig, Problems, UnknownPort};
use crate::desired::{
    DesiredBackend, DesiredFrontend, DesiredPort, DesiredVip, FrontendKind, PerFamily, ServiceType,
    TrafficPolicy,
};
use crate::maps::FrontendKey;
use crate::network::Family;

/// The field in which load balancer controllers write addresses.
const INGRESS: &str = "status.loadBalancer.ingress";

/// The addresses of a Service.
pub(super) struct Addresses {
    service_type: ServiceType,
    /// The families in which the Service has addresses.
    families: PerFamily<bool>,
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    load_balancer: Vec<IpAddr>,
    internal: TrafficPolicy,
    external_policy: TrafficPolicy,
}

impl Addresses {
    pub(super) fn of(service: &Service, problems: &mut Problems) -> Self {
        let default = ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&default);
        let service_type = match spec.type_.as_deref() {
            None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
            Some("NodePort") => ServiceType::NodePort,
            Some("LoadBalancer") => ServiceType::LoadBalancer,
            Some(other) => {
                problems.add(format!(
                    "spec.type {} is unknown and treated as ClusterIP: use ClusterIP, NodePort or LoadBalancer",
                    quoted(other)
                ));
                ServiceType::ClusterIp
            }
        };
        let cluster = addresses("spec.clusterIPs", cluster_ips(spec), problems);
        let families = families(spec, &cluster);
        let external = spec.external_ips.iter().flatten().map(String::as_str);
        let external = addresses("spec.externalIPs", external, problems);
        let load_balancer = load_balancer(service, service_type, problems);
        Self {
            service_type,
            families,
            cluster,
            external: of_families("spec.externalIPs", external, families, problems),
            load_balancer: of_families(INGRESS, load_balancer, families, problems),
            internal: policy(
                "spec.internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
                problems,
            ),
            external_policy: policy(
                "spec.externalTrafficPolicy",
                spec.external_traffic_policy.as_deref(),
                problems,
            ),
        }
    }

    pub(super) fn service_type(&self) -> ServiceType {
        self.service_type
    }

    /// The families in which the Service has addresses.
    pub(super) fn families(&self) -> PerFamily<bool> {
        self.families
    }

    /// The addresses that a load balancer controller assigned.
    pub(super) fn load_balancer(&self) -> &[IpAddr] {
        &self.load_balancer
    }

    /// Returns the frontends of one port. Each key occurs once.
    pub(super) fn frontends(&self, port: &PortSpec, node: &NodeConfig) -> Vec<DesiredFrontend> {
        let number = Some(port.number);
        let node_port = port
            .node_port
            .filter(|_| self.service_type != ServiceType::ClusterIp);
        let mut node_addresses: Vec<IpAddr> = node.node_ports_at().into_iter().collect();
        node_addresses.retain(|address| self.families.get(Family::of(*address)));
        let sources = [
            (FrontendKind::ClusterIp, number, &self.cluster),
            (FrontendKind::NodePort, node_port, &node_addresses),
            (FrontendKind::LoadBalancer, number, &self.load_balancer),
            (FrontendKind::ExternalIp, number, &self.external),
        ];
        let mut seen = BTreeSet::new();
        let mut frontends = Vec::new();
        for (kind, number, addresses) in sources {
            let flags = self.flags(kind);
            let keys = addresses
                .iter()
                .filter_map(|address| Some(FrontendKey::Port(*address, number?, port.name.protocol)));
            let new = keys.filter(|key| seen.insert(*key));
            frontends.extend(new.map(|key| DesiredFrontend {
                key,
                kind,
                flags: flags | node_flags(node, kind, key.address()),
            }));
        }
        frontends
    }

    fn flags(&self, kind: FrontendKind) -> u32 {
        match kind {
            // The policy of a cluster IP does not depend on where the client is.
            FrontendKind::ClusterIp if self.internal == TrafficPolicy::Local => {
                frontend_flags::INSIDE_LOCAL | frontend_flags::OUTSIDE_LOCAL
            }
            FrontendKind::ClusterIp => 0,
            // Clients inside use the endpoints of the whole cluster under either policy. Otherwise
            // their traffic would depend on which node they are on.
            _ if self.external_policy == TrafficPolicy::Local => frontend_flags::OUTSIDE_LOCAL,
            _ => 0,
        }
    }

    /// Returns the addresses that get a wildcard row: cluster IPs, and other addresses that no node
    /// has. At a node's address, the Service only has its own ports. The other ports belong to the
    /// node.
    pub(super) fn vips(&self, ports: &[DesiredPort], node: &NodeConfig) -> Vec<DesiredVip> {
        let sources = [
            (FrontendKind::ClusterIp, &self.cluster),
            (FrontendKind::LoadBalancer, &self.load_balancer),
            (FrontendKind::ExternalIp, &self.external),
        ];
        let mut vips: BTreeMap<IpAddr, FrontendKind> = BTreeMap::new();
        for (kind, addresses) in sources {
            // A cluster IP is never a node's address, even if it is on a device, for example for a
            // DNS cache.
            let is_a_nodes =
                |address: &&IpAddr| kind != FrontendKind::ClusterIp && node.is_a_nodes(**address);
            for address in addresses.iter().filter(|address| !is_a_nodes(address)) {
                vips.entry(*address).or_insert(kind);
            }
        }
        vips.into_iter()
            .map(|(address, kind)| DesiredVip {
                address,
                kind,
                passes_unknown: kind != FrontendKind::ClusterIp && node.unknown_port == UnknownPort::Pass,
                has_endpoints: ports.iter().any(|port| has_endpoints(port, address)),
            })
            .collect()
    }
}

/// Returns the flags of a row whose address the node has, too.
fn node_flags(node: &NodeConfig, kind: FrontendKind, address: IpAddr) -> u32 {
    let is_node_address = match kind {
        FrontendKind::ClusterIp => false,
        FrontendKind::NodePort => true,
        FrontendKind::LoadBalancer | FrontendKind::ExternalIp => node.owns(address),
    };
    if is_node_address {
        frontend_flags::NODE_ADDRESS
    } else {
        0
    }
}

/// Whether a port has an endpoint for flows to an address.
fn has_endpoints(port: &DesiredPort, address: IpAddr) -> bool {
    let is_active = |backend: &DesiredBackend| {
        backend.is_active() && Family::of(backend.address.ip()) == Family::of(address)
    };
    port.frontends
        .iter()
        .any(|frontend| frontend.key.address() == address)
        && port.backends.iter().any(is_active)
}

/// The cluster IPs of a Service as texts.
pub(super) fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    let all = match spec.cluster_ips.as_deref() {
        Some(ips) if !ips.is_empty() => ips,
        _ => spec.cluster_ip.as_slice(),
    };
    all.iter().map(String::as_str).filter(|ip| !ip.is_empty())
}

fn addresses<'a>(field: &str, texts: impl Iterator<Item = &'a str>, problems: &mut Problems) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        match unicast_address(text) {
            Ok(address) => addresses.push(address),
            Err(fault) => problems.add(format!("{field}: {fault}")),
        }
    }
    addresses
}

/// The families of a Service, as in kube-proxy: those of its cluster IPs. A Service without cluster
/// IPs, which an API server does not allow, has the families of `ipFamilies`, otherwise both.
fn families(spec: &ServiceSpec, cluster: &[IpAddr]) -> PerFamily<bool> {
    let listed = |family: Family| {
        let name = family.to_string();
        spec.ip_families.iter().flatten().any(|listed| *listed == name)
    };
    let assigned = |family| cluster.iter().any(|address| Family::of(*address) == family);
    let choices = [PerFamily::of(assigned), PerFamily::of(listed)];
    let choice = choices.into_iter().find(|choice| choice.ipv4 || choice.ipv6);
    choice.unwrap_or(PerFamily::of(|_| true))
}

/// Returns the addresses in the families of a Service. The others are problems.
fn of_families(
    field: &str,
    mut addresses: Vec<IpAddr>,
    families: PerFamily<bool>,
    problems: &mut Problems,
) -> Vec<IpAddr> {
    addresses.retain(|address| {
        let family = Family::of(*address);
        let is_taken = families.get(family);
        if !is_taken {
            problems.add(format!(
                "{field}: {address} is not used, since the Service has no {family} cluster IP: give it one \
                 (spec.ipFamilyPolicy), or remove the address"
            ));
        }
        is_taken
    });
    addresses
}

fn load_balancer(service: &Service, service_type: ServiceType, problems: &mut Problems) -> Vec<IpAddr> {
    let status = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status
        .and_then(|balancer| balancer.ingress.as_deref())
        .filter(|_| service_type == ServiceType::LoadBalancer)
        .unwrap_or_default();
    // With `ipMode: Proxy`, the load balancer handles the traffic itself. A host name is for DNS.
    let texts = ingress
        .iter()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref().filter(|ip| !ip.is_empty()));
    addresses(INGRESS, texts, problems)
}

fn policy(field: &str, value: Option<&str>, problems: &mut Problems) -> TrafficPolicy {
    match value {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.add(format!(
                "{field} {} is unknown and treated as Cluster: use Cluster or Local",
                quoted(other)
            ));
            TrafficPolicy::Cluster
        }
    }
}
