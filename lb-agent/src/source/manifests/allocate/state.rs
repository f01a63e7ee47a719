//! The values that are allocated to Services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::pool::Value;
use crate::network::Family;

/// A value that a Service requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Wish {
    /// The cluster IP of a family.
    Address(Family),
    /// The NodePort of all ports with this number, regardless of protocol.
    NodePort(u16),
    /// The port for the health checks of load balancers.
    HealthCheck,
}

impl Wish {
    /// The text whose hash chooses the value. It must never change.
    pub(super) fn text(self, service: &str) -> String {
        match self {
            Self::Address(family) => format!("{service}/{family}"),
            Self::NodePort(port) => format!("{service}/{port}"),
            Self::HealthCheck => format!("{service}/healthCheckNodePort"),
        }
    }

    /// Describes a value in messages.
    pub(super) fn describe(self, value: Value) -> String {
        match self {
            Self::Address(_) => format!("clusterIP {value}"),
            Self::NodePort(port) => format!("nodePort {value} for port {port}"),
            Self::HealthCheck => format!("healthCheckNodePort {value}"),
        }
    }
}

/// The values of one Service.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Given {
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<Ipv6Addr>,
    /// The NodePorts by port number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    node_ports: BTreeMap<u16, u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check_node_port: Option<u16>,
}

impl Given {
    pub(super) fn get(&self, wish: Wish) -> Option<Value> {
        match wish {
            Wish::Address(Family::V4) => self.ipv4.map(|address| Value::Address(address.into())),
            Wish::Address(Family::V6) => self.ipv6.map(|address| Value::Address(address.into())),
            Wish::NodePort(port) => self.node_ports.get(&port).copied().map(Value::Port),
            Wish::HealthCheck => self.health_check_node_port.map(Value::Port),
        }
    }

    pub(super) fn set(&mut self, wish: Wish, value: Value) {
        match (wish, value) {
            (Wish::Address(_), Value::Address(IpAddr::V4(address))) => self.ipv4 = Some(address),
            (Wish::Address(_), Value::Address(IpAddr::V6(address))) => self.ipv6 = Some(address),
            (Wish::NodePort(port), Value::Port(node_port)) => {
                self.node_ports.insert(port, node_port);
            }
            (Wish::HealthCheck, Value::Port(port)) => self.health_check_node_port = Some(port),
            (Wish::Address(_), Value::Port(_)) | (_, Value::Address(_)) => {}
        }
    }

    /// The address of a family.
    pub(super) fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(IpAddr::V4),
            Family::V6 => self.ipv6.map(IpAddr::V6),
        }
    }

    /// The NodePort of the ports with this number.
    pub(super) fn node_port(&self, port: u16) -> Option<u16> {
        self.node_ports.get(&port).copied()
    }

    /// The port for the health checks of load balancers.
    pub(super) fn health_check(&self) -> Option<u16> {
        self.health_check_node_port
    }

    /// All values.
    pub(super) fn values(&self) -> impl Iterator<Item = Value> {
        let addresses = Family::ALL.into_iter().filter_map(|family| self.address(family));
        let ports = self
            .node_ports
            .values()
            .copied()
            .chain(self.health_check_node_port);
        addresses.map(Value::Address).chain(ports.map(Value::Port))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values().next().is_none()
    }
}

/// The values of all Services, including deleted ones.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AllocationState {
    /// By `NAMESPACE/NAME`.
    pub(super) services: BTreeMap<String, Given>,
    /// Services whose manifest is missing, in the order in which they disappeared. A manifest may
    /// come back, for example after a change of branches.
    pub(super) gone: Vec<(String, Given)>,
}

impl AllocationState {
    /// The maximum number of missing Services.
    pub(super) const GONE_MAX: usize = 10_000;

    /// The values of every Service, including missing ones.
    pub(super) fn by_service(&self) -> BTreeMap<&str, &Given> {
        let gone = self.gone.iter().map(|(service, given)| (service.as_str(), given));
        let services = self.services.iter();
        gone.chain(services.map(|(service, given)| (service.as_str(), given)))
            .collect()
    }
}
