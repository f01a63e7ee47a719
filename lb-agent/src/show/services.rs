//! `lb-agent services`: shows the Services in the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use lb_common::layout::{ServiceId, ServiceStats, frontend_flags};
use serde::Serialize;

use crate::arguments::ShowArguments;
use crate::datapath::counters::Counters;
use crate::datapath::maps::KernelMaps;
use crate::datapath::pins::Pins;
use crate::maps::{BackendState, FrontendKey, MapImage, Maps as _};
use crate::network::Family;
use crate::output::{self, Table};
use crate::privileges;

/// A service port in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct ServicePort {
    id: ServiceId,
    namespace: String,
    name: String,
    /// Empty if the port has no name.
    port: String,
    protocol: String,
    frontends: Vec<Frontend>,
    backends: Vec<Backend>,
    /// Connections and first packets of UDP flows that were sent to a backend.
    connections: u64,
    /// First packets for which there was no usable backend.
    rejected: u64,
}

/// An address and port that clients connect to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Frontend {
    address: String,
    /// Whether clients inside use only backends of this node.
    inside_local: bool,
    /// Whether clients outside use only backends of this node.
    outside_local: bool,
    #[serde(skip_serializing_if = "is_zero")]
    affinity_seconds: u32,
    /// Clients must be in one of these networks; absent if all clients are allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_ranges: Option<BTreeSet<String>>,
}

/// A backend of a service port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
struct Backend {
    address: SocketAddr,
    state: BackendState,
    /// Whether it is on this node.
    local: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}

/// Prints the Services.
pub fn run(arguments: &ShowArguments) -> anyhow::Result<ExitCode> {
    privileges::require("services", &privileges::MAPS)?;
    let pins = Pins::new(&arguments.pins.pin_path);
    let directory = pins.maps();
    let counters = Counters::open(&directory).with_context(|| pins.no_agent_message())?;
    let mut services = service_ports(&KernelMaps::open(&directory)?.image()?);
    for service in &mut services {
        let ServiceStats {
            connections,
            rejected,
        } = counters.service(service.id)?;
        service.connections = connections;
        service.rejected = rejected;
    }
    output::print(arguments.output, &services, |services| table(services))?;
    Ok(ExitCode::SUCCESS)
}

/// The service ports of an image, sorted by name, without counters.
fn service_ports(image: &MapImage) -> Vec<ServicePort> {
    let mut ports: BTreeMap<ServiceId, ServicePort> = BTreeMap::new();
    for (id, name) in &image.names {
        ports.insert(*id, named(*id, name));
    }
    for (key, value) in &image.frontends {
        if let FrontendKey::Port(address, port, _) = key {
            let frontend = Frontend {
                address: SocketAddr::new(*address, *port).to_string(),
                inside_local: value.flags & frontend_flags::INSIDE_LOCAL != 0,
                outside_local: value.flags & frontend_flags::OUTSIDE_LOCAL != 0,
                affinity_seconds: value.affinity_seconds,
                source_ranges: source_ranges(image, Family::of(*address), value.source_ranges),
            };
            ports
                .entry(value.service)
                .or_insert_with(|| named(value.service, ""))
                .frontends
                .push(frontend);
        }
    }
    for row in Family::ALL
        .iter()
        .flat_map(|family| image.backends(*family).values())
    {
        if row.state != BackendState::Gone {
            let backend = Backend {
                address: SocketAddr::new(row.address, row.port),
                state: row.state,
                local: row.local,
            };
            ports
                .entry(row.service)
                .or_insert_with(|| named(row.service, ""))
                .backends
                .push(backend);
        }
    }
    let mut ports: Vec<ServicePort> = ports.into_values().collect();
    for port in &mut ports {
        port.backends.sort();
    }
    ports.sort_by(|a, b| (&a.namespace, &a.name, &a.port, a.id).cmp(&(&b.namespace, &b.name, &b.port, b.id)));
    ports
}

/// The networks of a set; `None` for set 0, which allows all clients.
fn source_ranges(image: &MapImage, family: Family, set: u32) -> Option<BTreeSet<String>> {
    let rows = image.source_ranges.iter();
    let networks = rows.filter(|(other, network)| *other == set && network.family() == family);
    (set != 0).then(|| networks.map(|(_, network)| network.to_string()).collect())
}

/// Number of networks that clients may come from; `-` if all clients are allowed.
fn range_count(service: &ServicePort) -> String {
    let frontends = service.frontends.iter();
    let sets: Vec<_> = frontends
        .filter_map(|frontend| frontend.source_ranges.as_ref())
        .collect();
    match sets.is_empty() {
        true => "-".to_owned(),
        false => sets
            .into_iter()
            .flatten()
            .collect::<BTreeSet<_>>()
            .len()
            .to_string(),
    }
}

/// A service port from its name `NAMESPACE/NAME/PORT/PROTOCOL`. A port without a name gets its id
/// as name.
fn named(id: ServiceId, text: &str) -> ServicePort {
    let mut parts = text.split('/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let (namespace, name, port, protocol) = (part(), part(), part(), part());
    let name = if name.is_empty() {
        format!("(service {id})")
    } else {
        name
    };
    ServicePort {
        id,
        namespace,
        name,
        port,
        protocol,
        frontends: Vec::new(),
        backends: Vec::new(),
        connections: 0,
        rejected: 0,
    }
}

fn table(services: &[ServicePort]) -> Table {
    let mut table = Table::new(&[
        "namespace",
        "name",
        "port",
        "protocol",
        "frontends",
        "ranges",
        "active",
        "draining",
        "absent",
        "local",
        "connections",
        "rejected",
    ]);
    for service in services {
        let count = |wanted: &dyn Fn(&Backend) -> bool| {
            service
                .backends
                .iter()
                .filter(|backend| wanted(backend))
                .count()
                .to_string()
        };
        let frontends: Vec<&str> = service
            .frontends
            .iter()
            .map(|frontend| frontend.address.as_str())
            .collect();
        table.row([
            service.namespace.clone(),
            service.name.clone(),
            if service.port.is_empty() {
                "-".to_owned()
            } else {
                service.port.clone()
            },
            service.protocol.clone(),
            frontends.join(","),
            range_count(service),
            count(&|backend| backend.state == BackendState::Active),
            count(&|backend| backend.state == BackendState::Draining),
            count(&|backend| backend.state == BackendState::Absent),
            count(&|backend| backend.local),
            service.connections.to_string(),
            service.rejected.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use lb_common::layout::Frontend as Row;

    use super::*;
    use crate::maps::{Backend as BackendRow, Protocol};

    #[test]
    fn names_frontends_and_backends_are_joined_by_service_id() {
        let mut image = MapImage::default();
        image.names.insert(3, "default/web/http/TCP".to_owned());
        let row = Row {
            service: 3,
            flags: frontend_flags::OUTSIDE_LOCAL,
            source_ranges: 7,
            ..Row::default()
        };
        for (set, network) in [(6, "10.0.0.0/8"), (7, "192.0.2.0/24"), (7, "fd00::/8")] {
            image.source_ranges.insert((set, network.parse().unwrap()));
        }
        let address = "10.96.0.1".parse().unwrap();
        image
            .frontends
            .insert(FrontendKey::Port(address, 80, Protocol::Tcp), row);
        image
            .frontends
            .insert(FrontendKey::Wildcard(address), Row::default());
        let backend = |state, generation| BackendRow {
            address: "10.1.0.2".parse().unwrap(),
            port: 8080,
            state,
            local: true,
            in_cluster: true,
            in_local: false,
            generation,
            service: 3,
        };
        image.backends4.insert(1, backend(BackendState::Active, 1));
        image.backends4.insert(2, backend(BackendState::Gone, 7));
        image.backends4.insert(3, backend(BackendState::Absent, 1));
        let services = service_ports(&image);
        assert_eq!(services.len(), 1, "{services:?}");
        assert_eq!(
            (
                services[0].namespace.as_str(),
                services[0].name.as_str(),
                services[0].port.as_str()
            ),
            ("default", "web", "http")
        );
        assert_eq!(services[0].frontends[0].address, "10.96.0.1:80");
        assert!(services[0].frontends[0].outside_local);
        let ranges = services[0].frontends[0].source_ranges.clone();
        assert_eq!(ranges, Some(["192.0.2.0/24".to_owned()].into()));
        assert_eq!(range_count(&services[0]), "1");
        assert_eq!(services[0].backends.len(), 2);
        assert_eq!(services[0].backends[1].state, BackendState::Absent);
        let text = table(&services).to_string();
        assert!(text.contains("default     web    http"), "{text}");
    }
}
