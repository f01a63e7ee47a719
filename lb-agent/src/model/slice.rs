//! The endpoints and ports of an EndpointSlice. A slice is read when it changes, not with every
//! change of its Service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointHints, EndpointSlice};

use super::NodeConfig;
use super::values::{port_number, protocol, quoted, unicast_address};
use crate::desired::PortName;
use crate::network::Family;

/// The usable endpoints and ports of an EndpointSlice.
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    family: Option<Family>,
    pub(super) endpoints: Box<[Endpoint]>,
    /// The numbers of ports. Each name and protocol occurs once.
    ports: Box<[(PortName, u16)]>,
    /// The unusable parts, and why they are unusable.
    pub(super) faults: Box<[String]>,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    /// Whether its `nodeName` is this node.
    pub(super) names_node: bool,
    /// Whether its `nodeName` is another node.
    names_other_node: bool,
    /// The nodes and zones that it is for. Few endpoints have hints.
    hints: Option<Box<EndpointHints>>,
}

impl Slice {
    /// Reads a slice; `node_name` is the name of this node.
    pub fn read(slice: &EndpointSlice, node_name: &str) -> Self {
        let mut faults = Vec::new();
        let family = match slice.address_type.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            // Host names. The agent ignores them.
            "FQDN" => None,
            other => {
                faults.push(format!(
                    "addressType {} is unknown: use IPv4 or IPv6",
                    quoted(other)
                ));
                None
            }
        };
        let mut endpoints = Vec::new();
        let mut ports = Vec::new();
        if let Some(family) = family {
            for endpoint in slice.endpoints.iter().flatten() {
                match Endpoint::read(endpoint, family, node_name) {
                    Ok(endpoint) => endpoints.push(endpoint),
                    Err(fault) => faults.push(fault),
                }
            }
            ports = read_ports(slice, &mut faults);
        }
        Self {
            family,
            endpoints: endpoints.into(),
            ports: ports.into(),
            faults: faults.into(),
        }
    }

    /// The family of its addresses; `None` if they are not IP addresses.
    pub fn family(&self) -> Option<Family> {
        self.family
    }

    /// Whether any endpoint has hints.
    pub fn has_hints(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.hints.is_some())
    }

    /// Whether any endpoint has one of these addresses.
    pub fn is_at(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| addresses.contains(&endpoint.address))
    }

    /// The addresses of endpoints whose `nodeName` is not another node.
    pub fn addresses_here(&self) -> impl Iterator<Item = IpAddr> {
        let endpoints = self.endpoints.iter();
        let here = endpoints.filter(|endpoint| !endpoint.names_other_node);
        here.map(|endpoint| endpoint.address)
    }

    /// The number of a port.
    pub(super) fn port(&self, name: &PortName) -> Option<u16> {
        let mut ports = self.ports.iter();
        ports.find(|(port, _)| port == name).map(|(_, number)| *number)
    }
}

impl Endpoint {
    fn read(endpoint: &SliceEndpoint, family: Family, node_name: &str) -> Result<Self, String> {
        // Other addresses have no meaning, according to the documentation of the field.
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
        Ok(Self {
            address,
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            serving: conditions
                .and_then(|conditions| conditions.serving)
                .unwrap_or(true),
            terminating: conditions
                .and_then(|conditions| conditions.terminating)
                .unwrap_or(false),
            names_node: endpoint.node_name.as_deref() == Some(node_name),
            names_other_node: endpoint
                .node_name
                .as_deref()
                .is_some_and(|name| name != node_name),
            hints: endpoint.hints.clone().map(Box::new),
        })
    }

    /// Whether it is on this node: its `nodeName` is this node, or its address is the node's. The
    /// latter includes endpoints that are processes and not Pods.
    pub(super) fn is_local(&self, node: &NodeConfig) -> bool {
        self.names_node || node.owns(self.address)
    }

    /// The nodes that it is for.
    pub(super) fn for_nodes(&self) -> impl Iterator<Item = &str> {
        let hints = self.hints.iter();
        hints
            .flat_map(|hints| hints.for_nodes.iter().flatten())
            .map(|node| node.name.as_str())
    }

    /// The zones that it is for.
    pub(super) fn for_zones(&self) -> impl Iterator<Item = &str> {
        let hints = self.hints.iter();
        hints
            .flat_map(|hints| hints.for_zones.iter().flatten())
            .map(|zone| zone.name.as_str())
    }
}

fn read_ports(slice: &EndpointSlice, faults: &mut Vec<String>) -> Vec<(PortName, u16)> {
    let mut ports: Vec<(PortName, u16)> = Vec::new();
    for port in slice.ports.iter().flatten() {
        let name = port.name.clone().unwrap_or_default();
        // A port without a number means all ports. A port with another protocol belongs to a
        // Service port that is rejected. Neither can be used, and neither is an error.
        let (Some(number), Some(protocol)) = (port.port, protocol(port.protocol.as_deref())) else {
            continue;
        };
        match port_number(number) {
            Ok(number) => {
                let name = PortName { name, protocol };
                match ports.iter_mut().find(|(port, _)| *port == name) {
                    None => ports.push((name, number)),
                    Some((_, listed)) => {
                        *listed = number;
                        faults.push(format!(
                            "port {}: it is listed twice: remove one",
                            quoted(&name.name)
                        ));
                    }
                }
            }
            Err(fault) => faults.push(format!("port {}: {fault}", quoted(&name))),
        }
    }
    ports
}
