//! The agent's view of the maps: rows whose types do not depend on the address family, operations,
//! and the trait that the kernel's maps and the test maps implement.

mod dump;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use dump::dump;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::cidr;
use lb_common::layout::{BackendId, Frontend, Region, ServiceId, Slot};

use crate::network::{Cidr, Family};

/// A transport protocol that a Service port may have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::net::protocol::TCP,
            Self::Udp => lb_common::net::protocol::UDP,
            Self::Sctp => lb_common::net::protocol::SCTP,
        }
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Port(address, port, protocol) => {
                write!(formatter, "{}/{protocol}", SocketAddr::new(address, port))
            }
            Self::Wildcard(address) => address.fmt(formatter),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Key of a frontend row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKey {
    /// An address, port (host byte order) and protocol that clients connect to.
    Port(IpAddr, u16, Protocol),
    /// The wildcard row of a VIP.
    Wildcard(IpAddr),
}

impl FrontendKey {
    /// The address.
    pub fn address(&self) -> IpAddr {
        match *self {
            Self::Port(address, ..) | Self::Wildcard(address) => address,
        }
    }
}

/// State of a backend row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// No endpoint. Flows to it end.
    Gone,
    /// Accepts new flows.
    Active,
    /// Keeps existing flows.
    Draining,
    /// Keeps existing connections for a while. Its endpoint is missing from the objects and may
    /// come back.
    Absent,
}

impl fmt::Display for BackendState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gone => "gone",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Absent => "absent",
        })
    }
}

/// A backend row. The family of the address is the family of the array that contains the row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend {
    /// Address of the Pod.
    pub address: IpAddr,
    /// Port of the Pod, host byte order.
    pub port: u16,
    /// Whether the backend accepts or keeps flows.
    pub state: BackendState,
    /// Whether the endpoint is on this node.
    pub local: bool,
    /// Whether the `cluster` region of its service port contains it.
    pub in_cluster: bool,
    /// Whether the `local` region of its service port contains it.
    pub in_local: bool,
    /// The number of endpoints that this row has held. See [`lb_common::layout::Backend`].
    pub generation: u32,
    /// The service port it belongs to.
    pub service: ServiceId,
}

/// The regions that a frontend row names, including empty ones.
pub fn regions(frontend: &Frontend) -> [Region; 3] {
    [frontend.cluster, frontend.local, frontend.maglev]
}

/// One write to the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapOp {
    /// Sets the name of a service id, as `NAMESPACE/NAME/PORT/PROTOCOL`, and resets its counters to
    /// 0.
    SetName {
        /// The id.
        service: ServiceId,
        /// The name.
        name: String,
    },
    /// Deletes the name of a service id. A missing name is not an error.
    DeleteName {
        /// The id.
        service: ServiceId,
    },
    /// Writes one backend row.
    SetBackend {
        /// Index of the row, starting at 1.
        id: BackendId,
        /// The row.
        backend: Backend,
    },
    /// Writes consecutive slots.
    SetSlots {
        /// Index of the first.
        base: u32,
        /// The slots.
        slots: Vec<Slot>,
    },
    /// Writes one frontend row. This makes a change visible to packets.
    SetFrontend {
        /// Key of the row.
        key: FrontendKey,
        /// Value of the row.
        value: Frontend,
    },
    /// Adds a network to a set. Frontend rows that name the set allow clients in the network.
    AddSourceRange {
        /// The set. [`cidr::SET`] contains the Service CIDRs.
        set: u32,
        /// The network.
        network: Cidr,
    },
    /// Removes a network from a set. A missing network is not an error.
    DeleteSourceRange {
        /// The set.
        set: u32,
        /// The network.
        network: Cidr,
    },
    /// Deletes one frontend row. A missing row is not an error.
    DeleteFrontend {
        /// Key of the row.
        key: FrontendKey,
    },
}

/// The Service CIDRs among the rows of source ranges.
pub fn service_cidrs(ranges: &BTreeSet<(u32, Cidr)>) -> impl Iterator<Item = Cidr> {
    let cidrs = ranges.iter().filter(|(set, _)| *set == cidr::SET);
    cidrs.map(|(_, network)| *network)
}

/// Capacities of the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Frontend rows per family.
    pub frontends: u32,
    /// Slots, shared by both families.
    pub slots: u32,
    /// Backend rows per family, including row 0, which is never used.
    pub backends: u32,
    /// Service ids, including id 0, which is never used.
    pub services: u32,
    /// Source ranges per family.
    pub source_ranges: u32,
}

/// The contents of the maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapImage {
    /// The names of service ids.
    pub names: BTreeMap<ServiceId, String>,
    /// All frontend rows.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// The networks of each set of source ranges, including the Service CIDRs ([`service_cidrs`]).
    pub source_ranges: BTreeSet<(u32, Cidr)>,
    /// The slots of every region that a frontend row points to, by index.
    pub slots: BTreeMap<u32, Slot>,
    /// All backend rows of IPv4 that were ever written (generation not 0), by id.
    pub backends4: BTreeMap<BackendId, Backend>,
    /// All backend rows of IPv6 that were ever written (generation not 0), by id.
    pub backends6: BTreeMap<BackendId, Backend>,
}

impl MapImage {
    /// The backend rows of a family.
    pub fn backends(&self, family: Family) -> &BTreeMap<BackendId, Backend> {
        match family {
            Family::V4 => &self.backends4,
            Family::V6 => &self.backends6,
        }
    }
}

/// Why a map operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The map is full.
    #[error("map {map} is full ({capacity} entries): start the agent with a larger {flag}")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its capacity.
        capacity: u32,
        /// The option that enlarges it.
        flag: &'static str,
    },
    /// The kernel refused the operation.
    #[error("map {map}: {operation}")]
    Kernel {
        /// Name of the map.
        map: &'static str,
        /// The operation, with its operands.
        operation: String,
        /// The kernel's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The maps: the kernel's (`datapath`), or those of a test.
pub trait Maps {
    /// The capacities.
    fn capacity(&self) -> Capacity;

    /// Executes one operation. If it fails, nothing is written. `SetSlots` is an exception: a
    /// prefix of the slots may be written.
    fn apply(&mut self, operation: &MapOp) -> Result<(), MapError>;

    /// Writes backend rows of one family, with the same result as single operations. If this fails,
    /// returns how many rows, from the first on, are written.
    fn set_backends(&mut self, rows: &[(BackendId, Backend)]) -> Result<(), (usize, MapError)> {
        for (written, (id, backend)) in rows.iter().copied().enumerate() {
            self.apply(&MapOp::SetBackend { id, backend })
                .map_err(|error| (written, error))?;
        }
        Ok(())
    }

    /// Reads all maps.
    fn image(&self) -> Result<MapImage, MapError>;
}
