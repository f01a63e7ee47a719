//! Writes the allocated values into the fields of a Service that an API server fills.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::asked::{cluster_ips, gives_node_ports, is_open, is_sctp, number, written_node_port};
use super::state::Given;
use crate::network::{Family, parse_address};

/// Fills in the fields that the manifest leaves open. `families` are the families of the allocated
/// addresses, in order.
pub(super) fn fill(service: &mut Service, given: &Given, families: &[Family]) {
    let Some(spec) = &mut service.spec else { return };
    fill_addresses(spec, given, families);
    if gives_node_ports(spec) {
        fill_node_ports(spec, given);
    }
    if is_open(spec.health_check_node_port) {
        spec.health_check_node_port = given.health_check().map(i32::from);
    }
}

fn fill_addresses(spec: &mut ServiceSpec, given: &Given, families: &[Family]) {
    let given = families.iter().filter_map(|family| given.address(*family));
    let given: Vec<String> = given.map(|address| address.to_string()).collect();
    if given.is_empty() {
        return;
    }
    let mut all: Vec<String> = cluster_ips(spec).map(str::to_owned).collect();
    all.extend(given);
    let families = all.iter().filter_map(|text| parse_address(text)).map(Family::of);
    spec.ip_families = Some(families.map(|family| family.to_string()).collect());
    spec.cluster_ip = all.first().cloned();
    spec.cluster_ips = Some(all);
    spec.ip_family_policy
        .get_or_insert_with(|| "SingleStack".to_owned());
}

fn fill_node_ports(spec: &mut ServiceSpec, given: &Given) {
    let node_port = |port: u16| written_node_port(spec, port).or_else(|| given.node_port(port));
    let node_ports: Vec<Option<u16>> = spec
        .ports
        .iter()
        .flatten()
        .map(|port| node_port(number(Some(port.port))?))
        .collect();
    for (port, node_port) in spec.ports.iter_mut().flatten().zip(node_ports) {
        if is_open(port.node_port) && !is_sctp(port) {
            port.node_port = node_port.map(i32::from);
        }
    }
}
