//! The ports of a Service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Problems;
use super::values::{is_dns_label, port_number, protocol, quoted};
use crate::desired::PortName;
use crate::maps::Protocol;

/// The remedy for different ports. Translating the port of an SCTP packet would require a CRC32c
/// over the whole packet.
pub(super) const SCTP_REMEDY: &str = "SCTP needs equal ports: set port and targetPort to the same number";

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PortSpec {
    /// Its name and protocol.
    pub(super) name: PortName,
    /// The number at cluster IPs, load balancer addresses and external IPs.
    pub(super) number: u16,
    /// The number at the node's addresses.
    pub(super) node_port: Option<u16>,
}

/// The usable ports of a Service.
pub(super) fn ports(service: &Service, problems: &mut Problems) -> Vec<PortSpec> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    if ports.is_empty() {
        problems.add("it has no ports: list at least one in spec.ports".to_owned());
    }
    let mut by_name = BTreeMap::new();
    let mut usable = Vec::new();
    for port in ports {
        match check_port(port) {
            Ok(mut port) => {
                let PortSpec { name, number, .. } = &port;
                if let Some(other) = by_name.insert(name.clone(), *number) {
                    problems.add(format!(
                        "port {number}: port {other} has the same name {}: give each port its own name",
                        quoted(&name.name)
                    ));
                    continue;
                }
                refuse_node_port_of_sctp(&mut port, problems);
                usable.push(port);
            }
            Err(fault) => {
                let name = quoted(port.name.as_deref().unwrap_or_default());
                problems.add(format!("port {name}: {fault}"));
            }
        }
    }
    usable
}

fn refuse_node_port_of_sctp(port: &mut PortSpec, problems: &mut Problems) {
    let PortSpec { name, number, .. } = &*port;
    if let Some(node_port) = port.node_port
        && name.protocol == Protocol::Sctp
        && node_port != *number
    {
        problems.add(format!(
            "port {}: nodePort {node_port} does not work, since SCTP needs equal ports: set port and targetPort to \
             {node_port} too, or use an address with port {number}",
            quoted(&name.name)
        ));
        port.node_port = None;
    }
}

fn check_port(port: &ServicePort) -> Result<PortSpec, String> {
    let name = port.name.clone().unwrap_or_default();
    if !name.is_empty() && !is_dns_label(&name) {
        return Err(
            "its name is not a DNS label: use at most 63 lower-case letters, digits and '-'".to_owned(),
        );
    }
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        let protocol = quoted(port.protocol.as_deref().unwrap_or_default());
        return Err(format!(
            "protocol {protocol} is not supported: use TCP, UDP or SCTP"
        ));
    };
    let number = port_number(port.port)?;
    let node_port = match port.node_port {
        None | Some(0) => None,
        Some(number) => Some(port_number(number).map_err(|fault| format!("nodePort: {fault}"))?),
    };
    match port.target_port {
        // Some clients write 0 for a missing targetPort.
        Some(IntOrString::Int(target)) if protocol == Protocol::Sctp && ![0, port.port].contains(&target) => {
            return Err(format!(
                "port {number} is not targetPort {target}, and {SCTP_REMEDY}"
            ));
        }
        _ => {}
    }
    Ok(PortSpec {
        name: PortName { name, protocol },
        number,
        node_port,
    })
}
