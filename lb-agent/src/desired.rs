//! What a Service asks of the maps: the result of [`crate::model`] and the order to
//! [`crate::install`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::layout::frontend_flags;

use crate::maps::{FrontendKey, Protocol};
use crate::network::{Family, Network};

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

/// What tells the ports of one Service apart. The number does not: flows outlive its change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortName {
    /// The port's name; empty if it has none.
    pub name: String,
    /// The port's protocol.
    pub protocol: Protocol,
}

/// How far a Service reaches: `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub enum ServiceType {
    /// Only inside the cluster (and external IPs).
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Also a port of every node.
    NodePort,
    /// Also addresses that a load balancer controller assigned.
    LoadBalancer,
}

/// Which endpoints clients see: `spec.internalTrafficPolicy` or `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrafficPolicy {
    /// Those of the whole cluster.
    Cluster,
    /// Those of this node.
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

/// All that a Service asks of the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    /// The Service's type.
    pub service_type: ServiceType,
    /// Seconds since 1970 at its creation: of two Services with the same address and port the older
    /// one wins.
    pub created: Option<i64>,
    /// Its ports, in their order.
    pub ports: Vec<DesiredPort>,
    /// Addresses that get a wildcard row, each once.
    pub vips: Vec<DesiredVip>,
    /// Which clients may use its load balancer addresses.
    pub source_ranges: SourceRanges,
    /// What health checks and metrics tell of it.
    pub health: ServiceHealth,
}

/// What health checks and metrics tell of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceHealth {
    /// What a load balancer may ask at a port of the node.
    pub check: Option<HealthCheck>,
    /// Ports whose `internalTrafficPolicy` is `Local` and that have endpoints, but none here.
    pub without_local_internal: PerFamily,
    /// The same of `externalTrafficPolicy`.
    pub without_local_external: PerFamily,
}

/// A `healthCheckNodePort`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The port, host byte order.
    pub port: u16,
    /// Families in which the Service has addresses: at the node's addresses of others nobody
    /// answers.
    pub families: PerFamily<bool>,
    /// Addresses of ready endpoints on this node, each once.
    pub local_endpoints: PerFamily,
}

/// A number, or something else, for each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerFamily<T = usize> {
    /// That of IPv4.
    pub ipv4: T,
    /// That of IPv6.
    pub ipv6: T,
}

impl<T> PerFamily<T> {
    /// What `value` gives for each family.
    pub fn of(value: impl Fn(Family) -> T) -> Self {
        Self {
            ipv4: value(Family::V4),
            ipv6: value(Family::V6),
        }
    }

    /// That of a family.
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
    /// Families whose clients must be in one of the networks. Clients of the others may all come.
    pub filtered: BTreeSet<Family>,
    /// The networks of these families.
    pub networks: BTreeSet<Network>,
    /// Families of which a network holds an address of the node: its own processes may come.
    pub node_allowed: BTreeSet<Family>,
}

/// What a Service asks of the wildcard row of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredVip {
    /// The address.
    pub address: IpAddr,
    /// Where it comes from.
    pub kind: FrontendKind,
    /// Whether packets to ports of no Service are left to the node, instead of rejected.
    pub passes_unknown: bool,
    /// Whether any port of the Service has a usable endpoint for it.
    pub has_endpoints: bool,
}

/// What one port of a Service asks of the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredPort {
    /// Which port of the Service.
    pub port: PortName,
    /// Its frontends, each key once, cluster IPs first.
    pub frontends: Vec<DesiredFrontend>,
    /// Seconds that a client stays with its backend; 0 without session affinity.
    pub affinity_seconds: u32,
    /// Its backends, sorted by address (so IPv4 comes first), each address once.
    pub backends: Vec<DesiredBackend>,
    /// Endpoints that there are and that keep no flow, sorted.
    pub released: Vec<SocketAddr>,
}

/// One frontend row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredFrontend {
    /// The key.
    pub key: FrontendKey,
    /// Where the address comes from.
    pub kind: FrontendKind,
    /// Bits of [`lb_common::layout::frontend_flags`].
    pub flags: u32,
}

/// One backend row, and which regions name it. One that no region names is draining.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    /// Address and port of the endpoint.
    pub address: SocketAddr,
    /// Whether the endpoint is on this node.
    pub local: bool,
    /// Whether the `cluster` region names it.
    pub in_cluster: bool,
    /// Whether the `local` region names it.
    pub in_local: bool,
    /// Whether its Pod ends: once the endpoint is missing, it does not come back.
    pub leaving: bool,
}

impl SourceRanges {
    /// Whether clients of such an address must be in one of the networks.
    pub fn filter(&self, kind: FrontendKind, family: Family) -> bool {
        kind == FrontendKind::LoadBalancer && self.filtered.contains(&family)
    }

    /// What rows that name the networks say beside them: bits of [`frontend_flags`].
    pub fn flags(&self, family: Family) -> u32 {
        match self.node_allowed.contains(&family) {
            true => frontend_flags::NODE_ALLOWED,
            false => 0,
        }
    }
}

impl DesiredPort {
    /// The backend with this address.
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
    /// Which endpoints clients outside see. Those of all addresses but cluster IPs choose by a
    /// Maglev table.
    pub fn external_policy(&self) -> Option<TrafficPolicy> {
        let policy = match self.flags & frontend_flags::OUTSIDE_LOCAL {
            0 => TrafficPolicy::Cluster,
            _ => TrafficPolicy::Local,
        };
        (self.kind != FrontendKind::ClusterIp).then_some(policy)
    }
}

impl DesiredBackend {
    /// Whether the region of a policy names it.
    pub fn is_in(&self, policy: TrafficPolicy) -> bool {
        match policy {
            TrafficPolicy::Cluster => self.in_cluster,
            TrafficPolicy::Local => self.in_local,
        }
    }

    /// Whether new flows may go to it.
    pub fn is_active(&self) -> bool {
        self.in_cluster || self.in_local
    }
}
