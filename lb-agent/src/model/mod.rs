//! A pure function from a Service, its EndpointSlices and the node to the desired rows of the maps.

mod affinity;
mod endpoints;
mod frontends;
mod health;
mod node;
mod ports;
mod slice;
mod source_ranges;
mod values;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use lb_common::layout::frontend_flags;

use crate::desired::{
    DesiredPort, DesiredService, DesiredVip, FrontendKind, ServiceHealth, ServiceType, SourceRanges,
};
use crate::network::parse_address;
use crate::object::{ObjectKind, ObjectReference};

pub use node::{NodeConfig, NodePortAddresses, UnknownPort};
pub use slice::Slice;
pub(crate) use values::protocol;
pub use values::quoted;

/// The label with the name of the proxy that a Service is for.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label of EndpointSlices of headless Services. Their traffic does not pass through a proxy.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// A part of an object that cannot be used. The rest of the object is used.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
#[error("{object}: {message}")]
pub struct Problem {
    /// The object.
    pub object: ObjectReference,
    /// The value, what is wrong with it, and what to do.
    pub message: String,
}

/// A Service's EndpointSlices.
#[derive(Clone, Debug)]
pub struct Slices<'a> {
    /// The slices and their names.
    pub slices: Vec<(&'a str, Cow<'a, Slice>)>,
    /// The kind of the objects: `Pod` if the slices were derived from the Pods with these names.
    pub origin: ObjectKind,
}

/// Returns the desired rows for `service`, or `None` if there are none, and the parts of it and its
/// slices that cannot be used.
pub fn desired(
    service: &Service,
    slices: &Slices<'_>,
    node: &NodeConfig,
) -> (Option<DesiredService>, Vec<Problem>) {
    let mut problems = Problems::of(service);
    if !is_proxied(service, node) {
        return (held(service, node), problems.list);
    }
    for (what, name) in [("namespace", problems.namespace()), ("name", problems.name())] {
        if !values::is_dns_label(&name) {
            problems.add(format!(
                "its {what} {} is not a DNS label: use at most 63 lower-case letters, digits and '-'",
                quoted(&name)
            ));
            return (None, problems.list);
        }
    }
    let addresses = frontends::Addresses::of(service, &mut problems);
    let source_ranges = source_ranges::source_ranges(service, addresses.load_balancer(), node, &mut problems);
    let namespace = problems.namespace();
    let endpoints = endpoints::Endpoints::of(slices, &namespace);
    problems.list.extend(endpoints.problems());

    let affinity_seconds = affinity::seconds(service, &mut problems);
    let mut claimed = BTreeSet::new();
    let mut ports = Vec::new();
    for port in ports::ports(service, &mut problems) {
        let mut frontends = addresses.frontends(&port, node);
        frontends.retain(|frontend| {
            let is_new = claimed.insert(frontend.key);
            if !is_new {
                problems.add(format!(
                    "port {}: another port or address of this Service already uses {}: remove one of them",
                    quoted(&port.name.name),
                    frontend.key
                ));
            }
            is_new
        });
        let uses_local = frontends.iter().any(|frontend| {
            frontend.flags & (frontend_flags::INSIDE_LOCAL | frontend_flags::OUTSIDE_LOCAL) != 0
        });
        let (backends, released) = endpoints.select(&port, uses_local, node, &mut problems.list);
        ports.push(DesiredPort {
            port: port.name,
            frontends,
            affinity_seconds,
            backends,
            released,
        });
    }
    if !ports.is_empty() && ports.iter().all(|port| port.frontends.is_empty()) {
        problems.add(
            "it has no usable address: give it a spec.clusterIP, a nodePort, an external IP or a load balancer IP"
                .to_owned(),
        );
    }
    let desired = DesiredService {
        service_type: addresses.service_type(),
        health: health::of(
            service,
            addresses.families(),
            &ports,
            &endpoints,
            node,
            &mut problems,
        ),
        created: service
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0.as_second()),
        vips: addresses.vips(&ports, node),
        ports,
        source_ranges,
    };
    (Some(desired), problems.list)
}

/// Returns the desired rows for a Service of another proxy. They hold its cluster IPs, so that
/// packets to these are not dropped as packets to unused addresses of a Service CIDR.
fn held(service: &Service, node: &NodeConfig) -> Option<DesiredService> {
    let is_in_cidr = |address: &IpAddr| node.service_cidrs.iter().any(|cidr| cidr.contains(*address));
    if is_of_this_proxy(service, node) || !has_addresses(service) {
        return None;
    }
    let addresses: BTreeSet<IpAddr> = frontends::cluster_ips(service.spec.as_ref()?)
        .filter_map(parse_address)
        .filter(is_in_cidr)
        .collect();
    let vips = addresses.into_iter().map(|address| DesiredVip {
        address,
        kind: FrontendKind::ClusterIp,
        passes_unknown: true,
        has_endpoints: false,
    });
    let vips: Vec<DesiredVip> = vips.collect();
    (!vips.is_empty()).then(|| DesiredService {
        service_type: ServiceType::ClusterIp,
        created: None,
        ports: Vec::new(),
        vips,
        source_ranges: SourceRanges::default(),
        health: ServiceHealth::default(),
    })
}

/// Whether a Service is for this proxy. Headless and ExternalName Services, and those of another
/// proxy, are not.
fn is_proxied(service: &Service, node: &NodeConfig) -> bool {
    is_of_this_proxy(service, node) && has_addresses(service)
}

/// Whether a Service's label selects this proxy.
pub fn is_of_this_proxy(service: &Service, node: &NodeConfig) -> bool {
    service.labels().get(PROXY_NAME_LABEL) == node.service_proxy_name.as_ref()
}

/// Whether a Service is neither ExternalName nor headless.
fn has_addresses(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.type_.as_deref()) != Some("ExternalName")
        && spec.and_then(|spec| spec.cluster_ip.as_deref()) != Some("None")
        && !spec
            .and_then(|spec| spec.cluster_ips.as_deref())
            .is_some_and(|ips| ips.iter().any(|ip| ip == "None"))
}

/// The problems found in one Service.
struct Problems {
    object: ObjectReference,
    list: Vec<Problem>,
}

impl Problems {
    fn of(service: &Service) -> Self {
        let object = ObjectReference {
            kind: ObjectKind::Service,
            namespace: service.namespace().unwrap_or_else(|| "default".to_owned()),
            name: service.name_any(),
        };
        Self {
            object,
            list: Vec::new(),
        }
    }

    fn namespace(&self) -> String {
        self.object.namespace.clone()
    }

    fn name(&self) -> String {
        self.object.name.clone()
    }

    fn add(&mut self, message: String) {
        self.list.push(Problem {
            object: self.object.clone(),
            message,
        });
    }
}

#[cfg(test)]
mod tests;
