//! The desired rows of a Service: the result of [`crate::model`] and the input of
//! [`crate::install`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::layout::frontend_flags;

use crate::maps::{FrontendKey, Protocol};
use crate::network::{Cidr, Family};

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// The identity of a port within its Service. The number is not part of it: flows survive a change
/// of the number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortName {
    /// The port's name; empty if it has none.
    pub name: String,
    /// The port's protocol.
    pub protocol: Protocol,
}

/// Where a Service is reachable: `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub enum ServiceType {
    /// Only inside the cluster, and at external IPs.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Also a port of every node.
    NodePort,
    /// Also addresses that a load balancer controller assigned.
    LoadBalancer,
}

/// Which endpoints clients use: `spec.internalTrafficPolicy` or `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrafficPolicy {
    /// The endpoints of the whole cluster.
    Cluster,
    /// The endpoints of this node.
    Local,
}

/// Where an address of a Service comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontendKind {
    /// `spec.clusterIPs`
    ClusterIp,
    /// An address of the node
    NodePort,
    /// `status.loadBalancer`
    LoadBalancer,
    /// `spec.externalIPs`
    ExternalIp,
}

/// The desired rows of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    /// The Service's type.
    pub service_type: ServiceType,
    /// The time of its creation in seconds since 1970. If two Services have the same address and
    /// port, the older one wins.
    pub created: Option<i64>,
    /// Its ports, in their order.
    pub ports: Vec<DesiredPort>,
    /// Addresses that get a wildcard row, each once.
    pub vips: Vec<DesiredVip>,
    /// Which clients may use its load balancer addresses.
    pub source_ranges: SourceRanges,
    /// Data for health checks and metrics.
    pub health: ServiceHealth,
}

/// Data of a Service for health checks and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceHealth {
    /// The health check for load balancers.
    pub check: Option<HealthCheck>,
    /// The number of ports with `internalTrafficPolicy: Local` that have endpoints, but none on
    /// this node.
    pub without_local_internal: PerFamily,
    /// The same for `externalTrafficPolicy`.
    pub without_local_external: PerFamily,
}

/// A `healthCheckNodePort`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The port, host byte order.
    pub port: u16,
    /// The families of the Service. At the node's addresses of other families, there is no server.
    pub families: PerFamily<bool>,
    /// The number of addresses of ready endpoints on this node.
    pub local_endpoints: PerFamily,
}

/// A value for each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerFamily<T = usize> {
    /// The value for IPv4.
    pub ipv4: T,
    /// The value for IPv6.
    pub ipv6: T,
}

impl<T> PerFamily<T> {
    /// Calls `value` for each family.
    pub fn of(value: impl Fn(Family) -> T) -> Self {
        Self {
            ipv4: value(Family::V4),
            ipv6: value(Family::V6),
        }
    }

    /// Returns the value for a family.
    pub fn get(self, family: Family) -> T {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

/// Which clients may use the load balancer addresses of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SourceRanges {
    /// Families whose clients must be in one of the networks. Clients of other families are all
    /// allowed.
    pub filtered: BTreeSet<Family>,
    /// The networks of these families.
    pub networks: BTreeSet<Cidr>,
    /// Families in which a network contains an address of the node. The node's own processes are
    /// allowed.
    pub node_allowed: BTreeSet<Family>,
}

/// The desired wildcard row of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredVip {
    /// The address.
    pub address: IpAddr,
    /// The source of the address.
    pub kind: FrontendKind,
    /// Whether packets to unknown ports are passed to the node instead of rejected.
    pub passes_unknown: bool,
    /// Whether any port of the Service has a usable endpoint for it.
    pub has_endpoints: bool,
}

/// The desired rows of one port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredPort {
    /// The name and protocol of the port.
    pub port: PortName,
    /// Its frontends, cluster IPs first. Each key occurs once.
    pub frontends: Vec<DesiredFrontend>,
    /// Seconds that a client stays with its backend; 0 without session affinity.
    pub affinity_seconds: u32,
    /// Its backends, sorted by address, so IPv4 comes first. Each address occurs once.
    pub backends: Vec<DesiredBackend>,
    /// Endpoints that exist but keep no flow, sorted.
    pub released: Vec<SocketAddr>,
}

/// One frontend row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredFrontend {
    /// The key.
    pub key: FrontendKey,
    /// The source of the address.
    pub kind: FrontendKind,
    /// Bits of [`lb_common::layout::frontend_flags`].
    pub flags: u32,
}

/// One backend row, and the regions that contain it. A backend in no region is draining.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    /// Address and port of the endpoint.
    pub address: SocketAddr,
    /// Whether the endpoint is on this node.
    pub local: bool,
    /// Whether the `cluster` region contains it.
    pub in_cluster: bool,
    /// Whether the `local` region contains it.
    pub in_local: bool,
    /// Whether the endpoint is terminating. If it disappears, it does not come back.
    pub leaving: bool,
}

impl SourceRanges {
    /// Whether clients of an address of this kind must be in one of the networks.
    pub fn filter(&self, kind: FrontendKind, family: Family) -> bool {
        kind == FrontendKind::LoadBalancer && self.filtered.contains(&family)
    }

    /// Flags of the rows with these source ranges: bits of [`frontend_flags`].
    pub fn flags(&self, family: Family) -> u32 {
        match self.node_allowed.contains(&family) {
            true => frontend_flags::NODE_ALLOWED,
            false => 0,
        }
    }
}

impl DesiredPort {
    /// Returns the backend with this address.
    pub fn backend(&self, address: SocketAddr) -> Option<&DesiredBackend> {
        let position = self
            .backends
            .binary_search_by_key(&address, |backend| backend.address);
        self.backends.get(position.ok()?)
    }

    /// Whether the endpoint with this address keeps no flow.
    pub fn is_released(&self, address: SocketAddr) -> bool {
        self.released.binary_search(&address).is_ok()
    }
}

impl DesiredFrontend {
    /// Returns which endpoints clients outside use; `None` for cluster IPs. Frontends of other
    /// addresses use a Maglev table.
    pub fn external_policy(&self) -> Option<TrafficPolicy> {
        let policy = match self.flags & frontend_flags::OUTSIDE_LOCAL {
            0 => TrafficPolicy::Cluster,
            _ => TrafficPolicy::Local,
        };
        (self.kind != FrontendKind::ClusterIp).then_some(policy)
    }
}

impl DesiredBackend {
    /// Whether the region of a policy contains it.
    pub fn is_in(&self, policy: TrafficPolicy) -> bool {
        match policy {
            TrafficPolicy::Cluster => self.in_cluster,
            TrafficPolicy::Local => self.in_local,
        }
    }

    /// Whether it gets new flows.
    pub fn is_active(&self) -> bool {
        self.in_cluster || self.in_local
    }
}
