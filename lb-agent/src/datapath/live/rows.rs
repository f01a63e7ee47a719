//! Row-by-row access to the pinned maps of one IP version.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError as KernelError};
use lb_common::address::Address;
use lb_common::layout::{
    Affinity, AffinityKey, Backend, BackendId, Flow, FlowKey, Frontend, FrontendKey, Socket, SocketKey,
    SourceRange, flow_flags,
};

use crate::datapath::convert::source_range;
use crate::datapath::family::MapFamily;
use crate::datapath::pinned::{deleted, kernel, open, read_all, unread};
use crate::maps::MapError;
use crate::network::Cidr;

/// The maps of one IP version.
pub struct LiveRows<A: MapFamily> {
    frontends: HashMap<MapData, FrontendKey<A>, Frontend>,
    backends: Array<MapData, Backend<A>>,
    flows: HashMap<MapData, FlowKey<A>, Flow<A>>,
    sockets: HashMap<MapData, SocketKey<A>, Socket<A>>,
    affinity: HashMap<MapData, AffinityKey<A>, Affinity>,
    source_ranges: LpmTrie<MapData, SourceRange<A>, u32>,
}

impl<A: MapFamily + Ord> LiveRows<A> {
    /// Opens the maps pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            frontends: open(directory, &A::FRONTENDS)?,
            backends: open(directory, &A::BACKENDS)?,
            flows: open(directory, &A::FLOWS)?,
            sockets: open(directory, &A::SOCKETS)?,
            affinity: open(directory, &A::AFFINITY)?,
            source_ranges: open(directory, &A::SOURCE_RANGES)?,
        })
    }

    /// All frontend rows.
    ///
    /// # Errors
    /// If the map cannot be read. The same holds for all functions below.
    pub(crate) fn frontends(&self) -> Result<BTreeMap<FrontendKey<A>, Frontend>, MapError> {
        read_all(&self.frontends, A::FRONTENDS.name)
    }

    /// The frontend row with this key.
    pub(crate) fn frontend(&self, key: &FrontendKey<A>) -> Result<Option<Frontend>, MapError> {
        found(self.frontends.get(key, 0), A::FRONTENDS.name)
    }

    /// All backend rows that were ever written, by id.
    pub(crate) fn backends(&self) -> Result<BTreeMap<BackendId, Backend<A>>, MapError> {
        let mut rows = BTreeMap::new();
        for (id, row) in (0..).zip(self.backends.iter()) {
            let failed = |error| kernel(A::BACKENDS.name, format!("read backend {id}"), error);
            let row = row.map_err(failed)?;
            if row.generation != 0 {
                rows.insert(id, row);
            }
        }
        Ok(rows)
    }

    /// The backend row with this id.
    pub(crate) fn backend(&self, id: BackendId) -> Result<Option<Backend<A>>, MapError> {
        match self.backends.get(&id, 0) {
            Err(KernelError::OutOfBounds { .. }) => Ok(None),
            row => found(row, A::BACKENDS.name),
        }
    }

    /// All flow entries. Entries that are added or removed meanwhile may be missing.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey<A>, Flow<A>>, MapError> {
        read_all(&self.flows, A::FLOWS.name)
    }

    /// The flow entry with this key.
    pub(crate) fn flow(&self, key: &FlowKey<A>) -> Result<Option<Flow<A>>, MapError> {
        found(self.flows.get(key, 0), A::FLOWS.name)
    }

    /// The keys of flows that pass (`flow_flags::PASS`) although they are to a Service. Like
    /// [`Self::flows`], this may miss entries that change meanwhile.
    pub fn passing_flows(&self) -> Result<Vec<FlowKey<A>>, MapError> {
        let mut passing = Vec::new();
        for row in self.flows.iter() {
            let (key, flow) = row.map_err(unread(A::FLOWS.name))?;
            if flow.flags & flow_flags::PASS != 0 && flow.service != 0 {
                passing.push(key);
            }
        }
        Ok(passing)
    }

    /// Writes a flow entry.
    pub(in crate::datapath) fn set_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), MapError> {
        let failed = |error| {
            let operation = format!("write a flow of service {}", flow.service);
            kernel(A::FLOWS.name, operation, error)
        };
        self.flows.insert(key, flow, 0).map_err(failed)
    }

    /// Removes a flow entry. A missing entry is not an error.
    pub(in crate::datapath) fn remove_flow(&mut self, key: &FlowKey<A>) -> Result<(), MapError> {
        found(deleted(self.flows.remove(key)), A::FLOWS.name).map(drop)
    }

    /// All translated sockets. Like [`Self::flows`], this may miss entries that change meanwhile.
    pub fn sockets(&self) -> Result<BTreeMap<SocketKey<A>, Socket<A>>, MapError> {
        read_all(&self.sockets, A::SOCKETS.name)
    }

    /// All affinity rows. Like [`Self::flows`], this may miss entries that change meanwhile.
    pub fn affinities(&self) -> Result<BTreeMap<AffinityKey<A>, Affinity>, MapError> {
        read_all(&self.affinity, A::AFFINITY.name)
    }

    /// The backend that a client stays with.
    pub(crate) fn affinity(&self, key: &AffinityKey<A>) -> Result<Option<Affinity>, MapError> {
        found(self.affinity.get(key, 0), A::AFFINITY.name)
    }

    /// Sets the backend that a client stays with.
    pub(crate) fn set_affinity(&mut self, key: &AffinityKey<A>, affinity: &Affinity) -> Result<(), MapError> {
        let failed = |error| {
            let operation = format!("write the row of a client of service {}", key.service);
            kernel(A::AFFINITY.name, operation, error)
        };
        self.affinity.insert(key, affinity, 0).map_err(failed)
    }

    /// Removes the affinity of a client. A missing row is not an error.
    pub(crate) fn remove_affinity(&mut self, key: &AffinityKey<A>) -> Result<(), MapError> {
        found(deleted(self.affinity.remove(key)), A::AFFINITY.name).map(drop)
    }

    /// The longest matching prefix for an address in a set of source ranges.
    pub(crate) fn range_of(&self, set: u32, address: A) -> Result<Option<Cidr>, MapError> {
        let mut found: Option<Cidr> = None;
        for row in self.source_ranges.keys() {
            let key = row.map_err(unread(A::SOURCE_RANGES.name))?;
            let network =
                source_range(&key).filter(|(its, network)| *its == set && network.contains(address.into()));
            let Some((_, network)) = network else { continue };
            if found.is_none_or(|found| found.prefix() < network.prefix()) {
                found = Some(network);
            }
        }
        Ok(found)
    }

    /// Whether a set of source ranges contains a client.
    pub(crate) fn allows(&self, set: u32, client: A) -> Result<bool, MapError> {
        let bits = SourceRange::<A>::SET_BITS + u32::BITS * words::<A>();
        let range = SourceRange { set, network: client };
        let row = found(
            self.source_ranges.get(&Key::new(bits, range), 0),
            A::SOURCE_RANGES.name,
        );
        Ok(row?.is_some())
    }
}

/// The number of 32-bit words in an address.
const fn words<A: Address>() -> u32 {
    if A::IS_IPV6 { 4 } else { 1 }
}

/// A row, or `None` if it does not exist.
pub(super) fn found<V>(row: Result<V, KernelError>, name: &'static str) -> Result<Option<V>, MapError> {
    match row {
        Ok(row) => Ok(Some(row)),
        Err(KernelError::KeyNotFound) => Ok(None),
        Err(error) => Err(kernel(name, "look up a row".to_owned(), error)),
    }
}
