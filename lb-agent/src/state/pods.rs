//! Derives the endpoints of a Service from its Pods, for manifests without EndpointSlices.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::{Problem, protocol, quoted};
use crate::network::{Family, parse_address};
use crate::object::{ObjectKind, ObjectReference};

/// Returns the slices of one Pod for a Service, one for each family. It does what the EndpointSlice
/// controller does, with one exception: a Pod without a `Ready` condition is ready, since manifests
/// contain no conditions from a kubelet.
pub(super) fn slices(service: &Service, pod: &Pod, problems: &mut Vec<Problem>) -> Vec<EndpointSlice> {
    if has_ended(pod) {
        return Vec::new();
    }
    let object = ObjectReference {
        kind: ObjectKind::Pod,
        namespace: pod
            .metadata
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        name: pod.metadata.name.clone().unwrap_or_default(),
    };
    let mut add = |message| {
        problems.push(Problem {
            object: object.clone(),
            message,
        })
    };
    let ports = endpoint_ports(service, pod, &mut add);
    let by_family = addresses(pod, &mut add);
    let conditions = conditions(service, pod);
    let slice = |(family, address): (Family, IpAddr)| EndpointSlice {
        address_type: match family {
            Family::V4 => "IPv4".to_owned(),
            Family::V6 => "IPv6".to_owned(),
        },
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.to_string()],
            conditions: Some(conditions.clone()),
            node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            ..Endpoint::default()
        }]),
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            ..ObjectMeta::default()
        },
        ports: Some(ports.clone()),
    };
    by_family.into_iter().map(slice).collect()
}

/// Whether all containers have terminated. Another Pod may already have the address.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Returns the addresses of a Pod; empty if the Pod has ended.
pub(super) fn addresses_of(pod: &Pod) -> BTreeMap<Family, IpAddr> {
    match has_ended(pod) {
        true => BTreeMap::new(),
        false => addresses(pod, &mut |_| {}),
    }
}

/// Returns the addresses of a Pod, unless it is on a node other than `node_name`.
pub(super) fn addresses_here(pod: &Pod, node_name: &str) -> impl Iterator<Item = IpAddr> + use<> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let is_here = node.is_none_or(|name| name == node_name);
    match is_here {
        true => addresses_of(pod).into_values(),
        false => BTreeMap::new().into_values(),
    }
}

fn conditions(service: &Service, pod: &Pod) -> EndpointConditions {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_none_or(|condition| condition.status == "True");
    let is_terminating = pod.metadata.deletion_timestamp.is_some();
    let publishes_all = service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false);
    EndpointConditions {
        ready: Some(publishes_all || is_ready && !is_terminating),
        serving: Some(is_ready),
        terminating: Some(is_terminating),
    }
}

/// Returns the Pod's first address of each family. A Pod in the host network has the node's
/// addresses.
fn addresses(pod: &Pod, add: &mut impl FnMut(String)) -> BTreeMap<Family, IpAddr> {
    let default = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&default);
    let mut texts: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    texts.extend(status.pod_ip.as_deref());
    let is_host_network = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false);
    if texts.is_empty() && is_host_network {
        texts.extend(status.host_ips.iter().flatten().map(|ip| ip.ip.as_str()));
        texts.extend(status.host_ip.as_deref());
    }
    let mut addresses = BTreeMap::new();
    for text in texts {
        match parse_address(text) {
            Some(address) => {
                addresses.entry(Family::of(address)).or_insert(address);
            }
            None => add(format!(
                "{} in status.podIPs is not an IP address: correct it",
                quoted(text)
            )),
        }
    }
    addresses
}

fn endpoint_ports(service: &Service, pod: &Pod, add: &mut impl FnMut(String)) -> Vec<EndpointPort> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    let mut endpoint_ports = Vec::new();
    for port in ports {
        let number = match &port.target_port {
            None => Some(port.port),
            // Some clients write 0 for a missing targetPort.
            Some(IntOrString::Int(0)) => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::String(name)) => {
                let number = container_port(pod, name, port);
                if number.is_none() {
                    let service = service.metadata.name.as_deref().unwrap_or_default();
                    add(format!(
                        "no container has a port named {}, which Service {service} needs: add the name to a port",
                        quoted(name)
                    ));
                }
                number
            }
        };
        if let Some(number) = number {
            endpoint_ports.push(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(number),
                protocol: port.protocol.clone(),
                app_protocol: None,
            });
        }
    }
    endpoint_ports
}

fn container_port(pod: &Pod, name: &str, port: &ServicePort) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    // Init containers with `restartPolicy: Always` are sidecars: they run as long as the Pod.
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let mut ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|found| {
            found.name.as_deref() == Some(name)
                && protocol(found.protocol.as_deref()) == protocol(port.protocol.as_deref())
        })
        .map(|found| found.container_port)
}
