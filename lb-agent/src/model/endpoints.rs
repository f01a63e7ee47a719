//! The endpoints of a Service, and which of them get new flows.

use std::net::{IpAddr, SocketAddr};

use super::ports::{PortSpec, SCTP_REMEDY};
use super::slice::Endpoint;
use super::values::quoted;
use super::{NodeConfig, Problem, Slices};
use crate::desired::{DesiredBackend, PortName};
use crate::maps::Protocol;
use crate::object::ObjectReference;

/// The endpoints of a Service, by slice.
pub(super) struct Endpoints<'a> {
    slices: &'a Slices<'a>,
    namespace: &'a str,
}

impl Endpoint {
    /// Whether this endpoint is used instead of `other`, which has the same address and port. The
    /// result does not depend on the order of endpoints or on other endpoints.
    fn outranks(&self, other: &Self) -> bool {
        let rank = |endpoint: &Self| {
            (
                endpoint.ready,
                endpoint.serving,
                !endpoint.terminating,
                endpoint.names_node,
            )
        };
        let order = rank(self).cmp(&rank(other));
        let order = order.then_with(|| self.for_nodes().cmp(other.for_nodes()));
        order
            .then_with(|| self.for_zones().cmp(other.for_zones()))
            .is_gt()
    }

    /// Whether it takes new flows if no endpoint is ready.
    fn is_fallback(&self) -> bool {
        self.serving && self.terminating
    }
}

impl<'a> Endpoints<'a> {
    pub(super) fn of(slices: &'a Slices<'a>, namespace: &'a str) -> Self {
        Self { slices, namespace }
    }

    /// The problems of the slices.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let slices = self.slices.slices.iter();
        slices.flat_map(|(name, slice)| {
            let faults = slice.faults.iter();
            faults.map(|fault| Problem {
                object: self.object(name),
                message: fault.clone(),
            })
        })
    }

    fn object(&self, slice: &str) -> ObjectReference {
        ObjectReference {
            kind: self.slices.origin,
            namespace: self.namespace.to_owned(),
            name: slice.to_owned(),
        }
    }

    /// Returns the addresses of the ready endpoints of one port on this node. An endpoint that is
    /// ready in one slice and terminating in another is ready: a new Pod may already have the
    /// address of a terminating one.
    pub(super) fn ready_here(&self, port: &PortName, node: &NodeConfig) -> impl Iterator<Item = IpAddr> {
        let slices = self.slices.slices.iter().map(|(_, slice)| slice);
        slices
            .filter(|slice| slice.port(port).is_some())
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready && endpoint.is_local(node))
            .map(|endpoint| endpoint.address)
    }

    /// Returns the backends of one port, and the endpoints that keep no flow. `uses_local` is true
    /// if a frontend uses only the endpoints of this node.
    pub(super) fn select(
        &self,
        port: &PortSpec,
        uses_local: bool,
        node: &NodeConfig,
        problems: &mut Vec<Problem>,
    ) -> (Vec<DesiredBackend>, Vec<SocketAddr>) {
        let PortName { name, protocol } = &port.name;
        let mut endpoints: Vec<(SocketAddr, &Endpoint)> = Vec::new();
        for (slice_name, slice) in &self.slices.slices {
            let Some(number) = slice.port(&port.name) else {
                continue;
            };
            if *protocol == Protocol::Sctp && number != port.number {
                problems.push(Problem {
                    object: self.object(slice_name),
                    message: format!(
                        "port {}: number {number} is not the Service's {}, and {SCTP_REMEDY}",
                        quoted(name),
                        port.number
                    ),
                });
                continue;
            }
            let addressed = slice.endpoints.iter();
            endpoints.extend(addressed.map(|endpoint| (SocketAddr::new(endpoint.address, number), endpoint)));
        }
        endpoints.sort_by_key(|(address, _)| *address);
        endpoints.dedup_by(|(address, endpoint), (kept_address, kept)| {
            let is_same = address == kept_address;
            // A new Pod may already have the address of a terminating one.
            if is_same && endpoint.outranks(kept) {
                *kept = endpoint;
            }
            is_same
        });
        // The endpoints are sorted, and IPv4 comes first.
        let split = endpoints.partition_point(|(address, _)| address.is_ipv4());
        let (of_v4, of_v6) = endpoints.split_at(split);
        let (mut backends, mut released) = select_family(of_v4, *protocol, uses_local, node);
        let (mut backends6, mut released6) = select_family(of_v6, *protocol, uses_local, node);
        backends.append(&mut backends6);
        released.append(&mut released6);
        (backends, released)
    }
}

fn select_family(
    endpoints: &[(SocketAddr, &Endpoint)],
    protocol: Protocol,
    uses_local: bool,
    node: &NodeConfig,
) -> (Vec<DesiredBackend>, Vec<SocketAddr>) {
    let topology = Topology::of(endpoints, node);
    let any_ready = endpoints.iter().any(|(_, endpoint)| endpoint.ready);
    let any_ready_here = endpoints
        .iter()
        .any(|(_, endpoint)| endpoint.ready && endpoint.is_local(node));
    let mut backends = Vec::with_capacity(endpoints.len());
    let mut released = Vec::new();
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
        let local = endpoint.is_local(node);
        let in_local = uses_local && local && takes_local;
        // An endpoint without new flows keeps a row for its existing flows. Flows of TCP end with
        // the endpoint. Flows of UDP move to another endpoint as soon as this one is not serving.
        let keeps_flows = endpoint.ready || endpoint.serving || protocol == Protocol::Tcp;
        if in_cluster || in_local || keeps_flows {
            backends.push(DesiredBackend {
                address: *address,
                local,
                in_cluster,
                in_local,
                leaving: endpoint.terminating,
            });
        } else {
            released.push(*address);
        }
    }
    (backends, released)
}

/// Which hints apply. They only apply if every ready endpoint has them and at least one matches
/// this node.
enum Topology {
    All,
    SameNode,
    SameZone,
}

impl Topology {
    fn of(endpoints: &[(SocketAddr, &Endpoint)], node: &NodeConfig) -> Self {
        let (mut all_nodes, mut all_zones, mut this_node, mut this_zone) = (true, true, false, false);
        for (_, endpoint) in endpoints.iter().filter(|(_, endpoint)| endpoint.ready) {
            all_nodes &= endpoint.for_nodes().next().is_some();
            all_zones &= endpoint.for_zones().next().is_some();
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

    fn admits(&self, endpoint: &Endpoint, node: &NodeConfig) -> bool {
        match self {
            Self::All => true,
            Self::SameNode => endpoint.for_nodes().any(|name| name == node.name),
            Self::SameZone => endpoint
                .for_zones()
                .any(|zone| node.zone.as_deref() == Some(zone)),
        }
    }
}
