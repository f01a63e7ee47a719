//! The endpoints of a Service, and which of them new flows go to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use super::frontends::{Port, SCTP_REMEDY};
use super::values::{port_number, protocol, quoted, unicast_address};
use super::{NodeConfig, Problem, Slices};
use crate::desired::{DesiredBackend, PortName};
use crate::maps::{Family, Protocol};
use crate::object::ObjectReference;

/// The endpoints of a Service, by slice.
pub(super) struct Endpoints<'a> {
    slices: Vec<SliceEndpoints<'a>>,
    problems: Vec<Problem>,
}

/// The endpoints and ports of one slice.
struct SliceEndpoints<'a> {
    object: ObjectReference,
    endpoints: Vec<Endpoint<'a>>,
    ports: PortNumbers<'a>,
}

/// The ports of a slice by name and protocol.
type PortNumbers<'a> = HashMap<(&'a str, Protocol), u16>;

/// One endpoint of a slice.
#[derive(Clone, Copy)]
struct Endpoint<'a> {
    address: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    source: &'a SliceEndpoint,
}

impl Endpoint<'_> {
    /// Whether this one counts, of two with the same address and port. Their order does not matter, nor what else is
    /// in the slices.
    fn outranks(&self, other: &Self) -> bool {
        let rank = |endpoint: &Self| {
            (
                endpoint.ready,
                endpoint.serving,
                !endpoint.terminating,
                endpoint.local,
            )
        };
        let hints = |endpoint: &Self| -> (Vec<&str>, Vec<&str>) {
            (for_nodes(endpoint).collect(), for_zones(endpoint).collect())
        };
        let order = rank(self).cmp(&rank(other));
        order.then_with(|| hints(self).cmp(&hints(other))).is_gt()
    }

    /// Takes new flows if no endpoint is ready.
    fn is_fallback(&self) -> bool {
        self.serving && self.terminating
    }
}

impl<'a> Endpoints<'a> {
    pub(super) fn of(slices: &'a Slices<'_>, namespace: &str, node: &NodeConfig) -> Self {
        let mut problems = Vec::new();
        let read = |slice: &'a EndpointSlice| {
            let object = ObjectReference {
                kind: slices.origin,
                namespace: namespace.to_owned(),
                name: slice.metadata.name.clone().unwrap_or_default(),
            };
            let mut faults = Vec::new();
            let read = read_slice(slice, node, &mut faults);
            problems.extend(faults.into_iter().map(|message| Problem {
                object: object.clone(),
                message,
            }));
            let (endpoints, ports) = read?;
            Some(SliceEndpoints {
                object,
                endpoints,
                ports,
            })
        };
        let slices = slices
            .slices
            .iter()
            .map(|slice| slice.as_ref())
            .filter_map(read)
            .collect();
        Self { slices, problems }
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Addresses of the ready endpoints of one port on this node. One that is ready in one slice and terminating in
    /// another, as a terminating Pod's address that is already another Pod's, is ready.
    pub(super) fn ready_here(&self, port: &PortName) -> impl Iterator<Item = IpAddr> {
        let slices = self
            .slices
            .iter()
            .filter(|slice| slice.ports.contains_key(&(port.name.as_str(), port.protocol)));
        slices
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready && endpoint.local)
            .map(|endpoint| endpoint.address)
    }

    /// The backends of one port. `uses_local`: some frontend asks for the endpoints of this node.
    pub(super) fn select(
        &self,
        port: &Port,
        uses_local: bool,
        node: &NodeConfig,
        problems: &mut Vec<Problem>,
    ) -> Vec<DesiredBackend> {
        let PortName { name, protocol } = &port.name;
        let mut endpoints: Vec<(SocketAddr, Endpoint<'_>)> = Vec::new();
        for slice in &self.slices {
            let Some(number) = slice.ports.get(&(name.as_str(), *protocol)) else {
                continue;
            };
            if *protocol == Protocol::Sctp && *number != port.number {
                problems.push(Problem {
                    object: slice.object.clone(),
                    message: format!(
                        "port {}: number {number} is not the Service's {}, and {SCTP_REMEDY}",
                        quoted(name),
                        port.number
                    ),
                });
                continue;
            }
            let addressed = slice.endpoints.iter();
            endpoints
                .extend(addressed.map(|endpoint| (SocketAddr::new(endpoint.address, *number), *endpoint)));
        }
        endpoints.sort_by_key(|(address, _)| *address);
        endpoints.dedup_by(|(address, endpoint), (kept_address, kept)| {
            let is_same = address == kept_address;
            // A terminating Pod's address may already be another Pod's.
            if is_same && endpoint.outranks(kept) {
                *kept = *endpoint;
            }
            is_same
        });
        // Sorted: IPv4 comes first.
        let split = endpoints.partition_point(|(address, _)| address.is_ipv4());
        let (of_v4, of_v6) = endpoints.split_at(split);
        let mut backends = select_family(of_v4, *protocol, uses_local, node);
        backends.append(&mut select_family(of_v6, *protocol, uses_local, node));
        backends
    }
}

fn select_family(
    endpoints: &[(SocketAddr, Endpoint<'_>)],
    protocol: Protocol,
    uses_local: bool,
    node: &NodeConfig,
) -> Vec<DesiredBackend> {
    let topology = Topology::of(endpoints, node);
    let any_ready = endpoints.iter().any(|(_, endpoint)| endpoint.ready);
    let any_ready_here = endpoints
        .iter()
        .any(|(_, endpoint)| endpoint.ready && endpoint.local);
    let mut backends = Vec::with_capacity(endpoints.len());
    for (address, endpoint) in endpoints {
        let in_cluster = match any_ready {
            true => endpoint.ready && topology.admits(endpoint, node),
            false => endpoint.is_fallback(),
        };
        let takes_local = if any_ready_here {
            endpoint.ready
        } else {
            endpoint.is_fallback()
        };
        let in_local = uses_local && endpoint.local && takes_local;
        // One that takes no new flows has a row for the flows it has: those of TCP end with the endpoint, those of
        // UDP are better off elsewhere as soon as it does not serve any more.
        let keeps_flows = endpoint.ready || endpoint.serving || protocol == Protocol::Tcp;
        if in_cluster || in_local || keeps_flows {
            backends.push(DesiredBackend {
                address: *address,
                local: endpoint.local,
                in_cluster,
                in_local,
            });
        }
    }
    backends
}

/// Which hints count: they do only if every ready endpoint has them and some name this node.
enum Topology {
    All,
    SameNode,
    SameZone,
}

impl Topology {
    fn of(endpoints: &[(SocketAddr, Endpoint<'_>)], node: &NodeConfig) -> Self {
        let (mut all_nodes, mut all_zones, mut this_node, mut this_zone) = (true, true, false, false);
        for (_, endpoint) in endpoints.iter().filter(|(_, endpoint)| endpoint.ready) {
            all_nodes &= for_nodes(endpoint).next().is_some();
            all_zones &= for_zones(endpoint).next().is_some();
            this_node |= Self::SameNode.admits(endpoint, node);
            this_zone |= Self::SameZone.admits(endpoint, node);
        }
        if all_nodes && this_node {
            Self::SameNode
        } else if all_zones && this_zone {
            Self::SameZone
        } else {
            Self::All
        }
    }

    fn admits(&self, endpoint: &Endpoint<'_>, node: &NodeConfig) -> bool {
        match self {
            Self::All => true,
            Self::SameNode => for_nodes(endpoint).any(|name| name == node.name),
            Self::SameZone => for_zones(endpoint).any(|zone| node.zone.as_deref() == Some(zone)),
        }
    }
}

fn for_nodes<'a>(endpoint: &Endpoint<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    let hints = endpoint.source.hints.as_ref();
    hints
        .into_iter()
        .flat_map(|hints| hints.for_nodes.iter().flatten())
        .map(|node| node.name.as_str())
}

fn for_zones<'a>(endpoint: &Endpoint<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    let hints = endpoint.source.hints.as_ref();
    hints
        .into_iter()
        .flat_map(|hints| hints.for_zones.iter().flatten())
        .map(|zone| zone.name.as_str())
}

fn read_slice<'a>(
    slice: &'a EndpointSlice,
    node: &NodeConfig,
    faults: &mut Vec<String>,
) -> Option<(Vec<Endpoint<'a>>, PortNumbers<'a>)> {
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return None,
        other => {
            faults.push(format!(
                "addressType {} is unknown: use IPv4 or IPv6",
                quoted(other)
            ));
            return None;
        }
    };
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        match read_endpoint(endpoint, family, node) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(fault) => faults.push(fault),
        }
    }
    Some((endpoints, read_ports(slice, faults)))
}

fn read_ports<'a>(slice: &'a EndpointSlice, faults: &mut Vec<String>) -> PortNumbers<'a> {
    let mut ports = HashMap::new();
    for port in slice.ports.iter().flatten() {
        let name = port.name.as_deref().unwrap_or_default();
        // A port without a number stands for all ports, one of another protocol belongs to a Service port that is
        // refused: neither is of use here, nor wrong.
        let (Some(number), Some(protocol)) = (port.port, protocol(port.protocol.as_deref())) else {
            continue;
        };
        match port_number(number) {
            Ok(number) => {
                if ports.insert((name, protocol), number).is_some() {
                    faults.push(format!("port {}: it is listed twice: remove one", quoted(name)));
                }
            }
            Err(fault) => faults.push(format!("port {}: {fault}", quoted(name))),
        }
    }
    ports
}

fn read_endpoint<'a>(
    endpoint: &'a SliceEndpoint,
    family: Family,
    node: &NodeConfig,
) -> Result<Endpoint<'a>, String> {
    // Further addresses have no meaning (documentation of the field).
    let Some(text) = endpoint.addresses.first() else {
        return Err("an endpoint has no address: give it one".to_owned());
    };
    let address = unicast_address(text).map_err(|fault| format!("endpoint {fault}"))?;
    if Family::of(address) != family {
        return Err(format!(
            "endpoint {address} is not of the slice's addressType: move it to a slice of its own type"
        ));
    }
    let conditions = endpoint.conditions.as_ref();
    Ok(Endpoint {
        address,
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions
            .and_then(|conditions| conditions.serving)
            .unwrap_or(true),
        terminating: conditions
            .and_then(|conditions| conditions.terminating)
            .unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(node.name.as_str()),
        source: endpoint,
    })
}
