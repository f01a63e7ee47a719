//! The maps as the agent sees them: rows without address families in their types, the operations on
//! them, and the trait that the kernel's maps and the tests' maps implement.

mod dump;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use dump::dump;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::cidr;
use lb_common::layout::{BackendId, Frontend, Region, ServiceId, Slot};

use crate::network::{Family, Network};

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
    /// The wildcard row of an address: it is a VIP.
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
    /// No endpoint: flows to it end.
    Gone,
    /// Takes new flows.
    Active,
    /// Keeps the flows it has.
    Draining,
    /// Keeps the connections it has for a while: its endpoint is missing, and may come back.
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

/// A backend row. The family of the address is the family of the array it stands in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend {
    /// Address of the Pod.
    pub address: IpAddr,
    /// Port of the Pod, host byte order.
    pub port: u16,
    /// Whether it takes or keeps flows.
    pub state: BackendState,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether the `cluster` region of its service port names it.
    pub in_cluster: bool,
    /// Whether the `local` region of its service port names it.
    pub in_local: bool,
    /// Counts the endpoints that this row has held; see [`lb_common::layout::Backend`].
    pub generation: u32,
    /// The service port it belongs to.
    pub service: ServiceId,
}

/// The regions that a frontend row names, empty ones included.
pub fn regions(frontend: &Frontend) -> [Region; 3] {
    [frontend.cluster, frontend.local, frontend.maglev]
}

/// One write to the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapOp {
    /// Says which service port an id stands for, as `NAMESPACE/NAME/PORT/PROTOCOL`; its counters
    /// begin at 0.
    SetName {
        /// The id.
        service: ServiceId,
        /// The name.
        name: String,
    },
    /// Forgets what an id stands for; one that stands for nothing is success.
    DeleteName {
        /// The id.
        service: ServiceId,
    },
    /// Writes one backend row.
    SetBackend {
        /// Index of the row, from 1.
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
    /// Writes one frontend row: this publishes.
    SetFrontend {
        /// Key of the row.
        key: FrontendKey,
        /// Value of the row.
        value: Frontend,
    },
    /// Lets clients of a network in where a row names the set.
    AddSourceRange {
        /// The set; [`cidr::SET`] is the Service CIDRs.
        set: u32,
        /// The network.
        network: Network,
    },
    /// Takes a network out of a set; one that is not in it is success.
    DeleteSourceRange {
        /// The set.
        set: u32,
        /// The network.
        network: Network,
    },
    /// Deletes one frontend row; a row that does not exist is success.
    DeleteFrontend {
        /// Key of the row.
        key: FrontendKey,
    },
}

/// The Service CIDRs among the rows of source ranges.
pub fn service_cidrs(ranges: &BTreeSet<(u32, Network)>) -> impl Iterator<Item = Network> {
    let cidrs = ranges.iter().filter(|(set, _)| *set == cidr::SET);
    cidrs.map(|(_, network)| *network)
}

/// How much the maps hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Frontend rows per family.
    pub frontends: u32,
    /// Slots, shared by both families.
    pub slots: u32,
    /// Backend rows per family, row 0 (never used) included.
    pub backends: u32,
    /// Service ids, id 0 (never used) included.
    pub services: u32,
    /// Source ranges per family.
    pub source_ranges: u32,
}

/// What the maps hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapImage {
    /// What service ids stand for.
    pub names: BTreeMap<ServiceId, String>,
    /// All frontend rows.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// The networks of each set of source ranges, the Service CIDRs among them ([`service_cidrs`]).
    pub source_ranges: BTreeSet<(u32, Network)>,
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
    /// The kernel refused.
    #[error("map {map}: {operation}")]
    Kernel {
        /// Name of the map.
        map: &'static str,
        /// What was tried, with its operands.
        operation: String,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The maps: the kernel's (`datapath`), or those of a test.
pub trait Maps {
    /// How much they hold.
    fn capacity(&self) -> Capacity;

    /// Executes one operation. If it fails nothing is written, except that of `SetSlots` a first
    /// part may be.
    fn apply(&mut self, operation: &MapOp) -> Result<(), MapError>;

    /// Writes backend rows of a family, as one operation each would. If it fails, so many of the
    /// first are written.
    fn set_backends(&mut self, rows: &[(BackendId, Backend)]) -> Result<(), (usize, MapError)> {
        for (written, (id, backend)) in rows.iter().copied().enumerate() {
            self.apply(&MapOp::SetBackend { id, backend })
                .map_err(|error| (written, error))?;
        }
        Ok(())
    }

    /// Reads everything.
    fn image(&self) -> Result<MapImage, MapError>;
}
