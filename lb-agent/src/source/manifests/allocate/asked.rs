//! What a Service requests, by the rules of the API server, and which values its manifest names.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};

use super::pool::Value;
use super::range::ServiceCidrs;
use super::state::Wish;
use crate::maps::Protocol;
use crate::model::{protocol, quoted};
use crate::network::{Family, parse_address};

/// The requests of a Service.
#[derive(Default, Debug)]
pub(super) struct Asked {
    pub(super) wishes: Vec<Wish>,
    /// The values that its manifest names. No other Service gets them.
    pub(super) claims: Vec<Value>,
    /// Requests that cannot be satisfied, and why.
    pub(super) faults: Vec<String>,
}

impl Asked {
    /// Returns `None` for a Service that gets no values: ExternalName or headless. A Service
    /// without ports, which an API server rejects, requests nothing, but the values that it names
    /// are claimed.
    pub(super) fn of(service: &Service, cidrs: &ServiceCidrs) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if is_type(spec, "ExternalName") || cluster_ips(spec).any(|text| text == "None") {
            return None;
        }
        let mut asked = Self::default();
        if spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
            asked.ask(spec, cidrs);
        }
        asked.claim(service, spec);
        Some(asked)
    }

    fn ask(&mut self, spec: &ServiceSpec, cidrs: &ServiceCidrs) {
        self.request_addresses(spec, cidrs);
        self.request_node_ports(spec);
        if needs_health_check(spec) && is_open(spec.health_check_node_port) {
            self.wishes.push(Wish::HealthCheck);
        }
    }

    /// The families of the requested addresses, in the order of the requests.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        self.wishes.iter().filter_map(|wish| match wish {
            Wish::Address(family) => Some(*family),
            Wish::NodePort(_) | Wish::HealthCheck => None,
        })
    }

    fn request_addresses(&mut self, spec: &ServiceSpec, cidrs: &ServiceCidrs) {
        let written: Option<Vec<IpAddr>> = cluster_ips(spec).map(parse_address).collect();
        // A manifest with a malformed address requests no other address.
        let Some(written) = written else { return };
        let written: Vec<Family> = written.into_iter().map(Family::of).collect();
        for family in self.families_of(spec, &written, cidrs) {
            if written.contains(&family) {
                continue;
            }
            if cidrs.get(family).is_some() {
                self.wishes.push(Wish::Address(family));
            } else {
                self.faults.push(format!(
                    "no {family} address is allocated, since --service-cidr has no {family} network: add one, or take \
                     {family} out of spec.ipFamilies and spec.ipFamilyPolicy"
                ));
            }
        }
    }

    /// The families in which the Service needs addresses.
    fn families_of(&mut self, spec: &ServiceSpec, written: &[Family], cidrs: &ServiceCidrs) -> Vec<Family> {
        let mut families = written.to_owned();
        for name in spec.ip_families.iter().flatten() {
            match Family::ALL.into_iter().find(|family| family.to_string() == *name) {
                Some(family) if !families.contains(&family) => families.push(family),
                Some(_) => {}
                None => self.faults.push(format!(
                    "spec.ipFamilies {} is unknown and ignored: use IPv4 or IPv6",
                    quoted(name)
                )),
            }
        }
        if families.is_empty() {
            families.push(cidrs.default_family());
        }
        let others = Family::ALL
            .into_iter()
            .filter(|family| !families.contains(family))
            .collect::<Vec<_>>();
        match spec.ip_family_policy.as_deref() {
            // An API server rejects two families without a policy. Here the Service gets both.
            None | Some("") => {}
            Some("PreferDualStack") => {
                families.extend(others.into_iter().filter(|family| cidrs.get(*family).is_some()));
            }
            Some("RequireDualStack") => families.extend(others),
            Some("SingleStack") => families.truncate(written.len().max(1)),
            Some(other) => self.faults.push(format!(
                "spec.ipFamilyPolicy {} is unknown and ignored: use SingleStack, PreferDualStack or RequireDualStack",
                quoted(other)
            )),
        }
        families
    }

    fn request_node_ports(&mut self, spec: &ServiceSpec) {
        if !gives_node_ports(spec) {
            return;
        }
        let ports = spec.ports.as_deref().unwrap_or_default();
        for port in ports.iter().filter(|port| is_open(port.node_port)) {
            let Some(number) = number(Some(port.port)) else {
                continue;
            };
            if is_sctp(port) {
                if is_type(spec, "NodePort") {
                    self.faults.push(format!(
                        "no nodePort is allocated for port {number}, since SCTP needs equal ports: set port, targetPort \
                         and nodePort to the same number"
                    ));
                }
                continue;
            }
            let wish = Wish::NodePort(number);
            if written_node_port(spec, number).is_none() && !self.wishes.contains(&wish) {
                self.wishes.push(wish);
            }
        }
    }

    fn claim(&mut self, service: &Service, spec: &ServiceSpec) {
        let status = service.status.as_ref();
        let ingress = status
            .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
            .unwrap_or_default();
        let ingress = ingress.iter().filter_map(|ingress| ingress.ip.as_deref());
        let external = spec.external_ips.iter().flatten().map(String::as_str);
        let addresses = cluster_ips(spec).chain(external).chain(ingress);
        self.claims
            .extend(addresses.filter_map(parse_address).map(Value::Address));
        let ports = spec.ports.iter().flatten().map(|port| port.node_port);
        let ports = ports.filter(|_| has_node_ports(spec));
        let health_check = needs_health_check(spec).then_some(spec.health_check_node_port);
        self.claims
            .extend(ports.chain(health_check).filter_map(number).map(Value::Port));
    }
}

/// The cluster IPs that a manifest names. The text `None` means a headless Service.
pub(super) fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    let first = spec.cluster_ip.as_deref().filter(|_| all.is_empty());
    first
        .into_iter()
        .chain(all.iter().map(String::as_str))
        .filter(|text| !text.is_empty())
}

/// Whether ports without a NodePort get one.
pub(super) fn gives_node_ports(spec: &ServiceSpec) -> bool {
    let is_refused = is_type(spec, "LoadBalancer") && spec.allocate_load_balancer_node_ports == Some(false);
    has_node_ports(spec) && !is_refused
}

/// Whether the Service has a separate NodePort for the health checks of load balancers.
pub(super) fn needs_health_check(spec: &ServiceSpec) -> bool {
    is_type(spec, "LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local")
}

/// Returns the NodePort that the manifest names for ports with this number. It applies to all of
/// them. They differ in their protocol, for example UDP and TCP of a DNS server.
pub(super) fn written_node_port(spec: &ServiceSpec, port: u16) -> Option<u16> {
    let mut ports = spec.ports.iter().flatten();
    ports.find_map(|other| number(other.node_port).filter(|_| other.port == i32::from(port)))
}

/// Whether the protocol is SCTP, whose ports must all be equal.
pub(super) fn is_sctp(port: &ServicePort) -> bool {
    protocol(port.protocol.as_deref()) == Some(Protocol::Sctp)
}

/// Whether a manifest leaves a port to the API server. A port that is out of range is not open: it
/// is an error.
pub(super) fn is_open(port: Option<i32>) -> bool {
    matches!(port, None | Some(0))
}

/// Returns a valid port number; `None` if there is none.
pub(super) fn number(port: Option<i32>) -> Option<u16> {
    u16::try_from(port?).ok().filter(|port| *port != 0)
}

fn has_node_ports(spec: &ServiceSpec) -> bool {
    is_type(spec, "NodePort") || is_type(spec, "LoadBalancer")
}

fn is_type(spec: &ServiceSpec, name: &str) -> bool {
    spec.type_.as_deref() == Some(name)
}
