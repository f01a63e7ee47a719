//! The pinned maps row by row, for the commands that show what the programs see and remember.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError as KernelError};
use lb_common::address::Address;
use lb_common::cidr;
use lb_common::filter::Position;
use lb_common::layout::{
    Address4, Address6, Affinity, AffinityKey, Backend, BackendId, Device, Flow, FlowKey, Frontend,
    FrontendKey, LoadedSettings, PlainAddress, Port, Region, ServiceId, ServiceName, Slot, Socket, SocketKey,
    SourceRange, flow_flags, map,
};

use super::batch::BatchArray;
use super::maps::{kernel, open, open_batch, source_range, text_of, typed};
use crate::maps::MapError;
use crate::network::Network;

/// The pinned maps.
pub struct LiveMaps {
    v4: LiveRows<Address4>,
    v6: LiveRows<Address6>,
    slots: BatchArray<Slot>,
    filter: Array<MapData, u64>,
    reply_filter: Array<MapData, u64>,
    service_cidrs: Array<MapData, cidr::Networks>,
    devices: HashMap<MapData, u32, Device>,
    names: HashMap<MapData, ServiceId, ServiceName>,
    settings: LoadedSettings,
}

/// The maps of one IP version.
pub struct LiveRows<A: PlainAddress> {
    names: &'static FamilyMaps,
    frontends: HashMap<MapData, FrontendKey<A>, Frontend>,
    backends: Array<MapData, Backend<A>>,
    flows: HashMap<MapData, FlowKey<A>, Flow<A>>,
    sockets: HashMap<MapData, SocketKey<A>, Socket<A>>,
    affinity: HashMap<MapData, AffinityKey<A>, Affinity>,
    source_ranges: LpmTrie<MapData, SourceRange<A>, u32>,
}

/// Names of the maps of one IP version.
#[derive(Debug)]
pub struct FamilyMaps {
    frontends: &'static str,
    backends: &'static str,
    flows: &'static str,
    sockets: &'static str,
    affinity: &'static str,
    source_ranges: &'static str,
}

/// An address of the IP version whose maps hold it.
pub trait LiveFamily: PlainAddress + Hash + Ord + Into<IpAddr> {
    /// Names of its maps.
    const MAPS: &'static FamilyMaps;
    /// Its maps.
    fn rows(maps: &LiveMaps) -> &LiveRows<Self>;
    /// Its maps, to write.
    fn rows_mut(maps: &mut LiveMaps) -> &mut LiveRows<Self>;
    /// An address of this IP version.
    fn of(address: IpAddr) -> Option<Self>;
    /// The address of this IP version in a device's row.
    fn of_device(device: &Device) -> Self;
    /// The node's address of this IP version.
    fn of_node(settings: &LoadedSettings) -> Self;
}

impl LiveFamily for Address4 {
    const MAPS: &'static FamilyMaps = &FamilyMaps {
        frontends: map::FRONTENDS4,
        backends: map::BACKENDS4,
        flows: map::FLOWS4,
        sockets: map::SOCKETS4,
        affinity: map::AFFINITY4,
        source_ranges: map::SOURCE_RANGES4,
    };

    fn rows(maps: &LiveMaps) -> &LiveRows<Self> {
        &maps.v4
    }

    fn rows_mut(maps: &mut LiveMaps) -> &mut LiveRows<Self> {
        &mut maps.v4
    }

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn of_device(device: &Device) -> Self {
        device.address4
    }

    fn of_node(settings: &LoadedSettings) -> Self {
        settings.node_address4
    }
}

impl LiveFamily for Address6 {
    const MAPS: &'static FamilyMaps = &FamilyMaps {
        frontends: map::FRONTENDS6,
        backends: map::BACKENDS6,
        flows: map::FLOWS6,
        sockets: map::SOCKETS6,
        affinity: map::AFFINITY6,
        source_ranges: map::SOURCE_RANGES6,
    };

    fn rows(maps: &LiveMaps) -> &LiveRows<Self> {
        &maps.v6
    }

    fn rows_mut(maps: &mut LiveMaps) -> &mut LiveRows<Self> {
        &mut maps.v6
    }

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    fn of_device(device: &Device) -> Self {
        device.address6
    }

    fn of_node(settings: &LoadedSettings) -> Self {
        settings.node_address6
    }
}

impl LiveMaps {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    /// If a map is missing or of another kind.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let settings: Array<_, LoadedSettings> = typed(open(directory, map::SETTINGS)?, map::SETTINGS)?;
        Ok(Self {
            v4: LiveRows::open(directory)?,
            v6: LiveRows::open(directory)?,
            slots: open_batch(directory, map::SLOTS)?,
            filter: typed(open(directory, map::FILTER)?, map::FILTER)?,
            reply_filter: typed(open(directory, map::REPLY_FILTER)?, map::REPLY_FILTER)?,
            service_cidrs: typed(open(directory, map::SERVICE_CIDRS)?, map::SERVICE_CIDRS)?,
            devices: typed(open(directory, map::DEVICES)?, map::DEVICES)?,
            names: typed(open(directory, map::SERVICE_NAMES)?, map::SERVICE_NAMES)?,
            settings: settings
                .get(&0, 0)
                .map_err(|error| kernel(map::SETTINGS, "read the settings".to_owned(), error))?,
        })
    }

    /// The maps of IPv4.
    pub fn ipv4(&self) -> &LiveRows<Address4> {
        &self.v4
    }

    /// The maps of IPv6.
    pub fn ipv6(&self) -> &LiveRows<Address6> {
        &self.v6
    }

    /// What the programs were loaded with.
    pub fn settings(&self) -> &LoadedSettings {
        &self.settings
    }

    /// What service ids stand for: `NAMESPACE/NAME/PORT/PROTOCOL`.
    ///
    /// # Errors
    /// If the map cannot be read, as with all functions below.
    pub fn names(&self) -> Result<BTreeMap<ServiceId, String>, MapError> {
        let names = read_all(&self.names, map::SERVICE_NAMES)?.into_iter();
        Ok(names.map(|(service, name)| (service, text_of(&name))).collect())
    }

    /// The slots of a region.
    pub fn slots(&self, region: Region) -> Result<Vec<Slot>, MapError> {
        let Region { base, length } = region;
        let failed = |error| kernel(map::SLOTS, format!("read {length} slots from {base} on"), error);
        self.slots.read(base, length).map_err(failed)
    }

    /// Whether packets to this address are looked up.
    pub fn is_in_filter(&self, address: impl Address) -> Result<bool, MapError> {
        is_set(&self.filter, map::FILTER, Position::of(address))
    }

    /// Whether packets from this address and port are looked up as replies.
    pub fn is_in_reply_filter(&self, address: impl Address, port: Port) -> Result<bool, MapError> {
        is_set(
            &self.reply_filter,
            map::REPLY_FILTER,
            Position::of_replies(address, port),
        )
    }

    /// Whether an address may be of a Service CIDR.
    pub fn may_be_service(&self, address: impl Address) -> Result<bool, MapError> {
        let networks = found(self.service_cidrs.get(&0, 0), map::SERVICE_CIDRS)?;
        Ok(networks.is_some_and(|networks| networks.may_hold(address)))
    }

    /// What is known of a device.
    pub fn device(&self, index: u32) -> Result<Option<Device>, MapError> {
        found(self.devices.get(&index, 0), map::DEVICES)
    }
}

fn is_set(filter: &Array<MapData, u64>, name: &'static str, position: Position) -> Result<bool, MapError> {
    let Position { word, bit } = position;
    let failed = |error| kernel(name, format!("read word {word}"), error);
    Ok(filter.get(&word, 0).map_err(failed)? & bit != 0)
}

impl<A: LiveFamily> LiveRows<A> {
    fn open(directory: &Path) -> Result<Self, MapError> {
        let names = A::MAPS;
        Ok(Self {
            names,
            frontends: typed(open(directory, names.frontends)?, names.frontends)?,
            backends: typed(open(directory, names.backends)?, names.backends)?,
            flows: typed(open(directory, names.flows)?, names.flows)?,
            sockets: typed(open(directory, names.sockets)?, names.sockets)?,
            affinity: typed(open(directory, names.affinity)?, names.affinity)?,
            source_ranges: typed(open(directory, names.source_ranges)?, names.source_ranges)?,
        })
    }

    /// All frontend rows.
    ///
    /// # Errors
    /// If the map cannot be read, as with all functions below.
    pub fn frontends(&self) -> Result<BTreeMap<FrontendKey<A>, Frontend>, MapError> {
        read_all(&self.frontends, self.names.frontends)
    }

    /// The frontend row with this key.
    pub fn frontend(&self, key: &FrontendKey<A>) -> Result<Option<Frontend>, MapError> {
        found(self.frontends.get(key, 0), self.names.frontends)
    }

    /// All backend rows that were ever written, by id.
    pub fn backends(&self) -> Result<BTreeMap<BackendId, Backend<A>>, MapError> {
        let mut rows = BTreeMap::new();
        for (id, row) in (0..).zip(self.backends.iter()) {
            let failed = |error| kernel(self.names.backends, format!("read backend {id}"), error);
            let row = row.map_err(failed)?;
            if row.generation != 0 {
                rows.insert(id, row);
            }
        }
        Ok(rows)
    }

    /// The backend row with this id.
    pub fn backend(&self, id: BackendId) -> Result<Option<Backend<A>>, MapError> {
        match self.backends.get(&id, 0) {
            Err(KernelError::OutOfBounds { .. }) => Ok(None),
            row => found(row, self.names.backends),
        }
    }

    /// All flow entries. Those that come or go meanwhile may be among them or not.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey<A>, Flow<A>>, MapError> {
        read_all(&self.flows, self.names.flows)
    }

    /// The flow entry with this key.
    pub fn flow(&self, key: &FlowKey<A>) -> Result<Option<Flow<A>>, MapError> {
        found(self.flows.get(key, 0), self.names.flows)
    }

    /// The flow entries that pass (`flow_flags::PASS`) although they are a Service's, as [`Self::flows`].
    pub fn passing_flows(&self) -> Result<Vec<FlowKey<A>>, MapError> {
        let mut passing = Vec::new();
        for row in self.flows.iter() {
            let failed = |error| kernel(self.names.flows, "read all rows".to_owned(), error);
            let (key, flow) = row.map_err(failed)?;
            if flow.flags & flow_flags::PASS != 0 && flow.service != 0 {
                passing.push(key);
            }
        }
        Ok(passing)
    }

    /// Writes a flow entry.
    pub fn set_flow(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), MapError> {
        let failed = |error| {
            let operation = format!("write a flow of service {}", flow.service);
            kernel(self.names.flows, operation, error)
        };
        self.flows.insert(key, flow, 0).map_err(failed)
    }

    /// Removes a flow entry. One that is gone already is success.
    pub fn remove_flow(&mut self, key: &FlowKey<A>) -> Result<(), MapError> {
        let name = self.names.flows;
        found(self.flows.remove(key).map_err(not_found), name).map(|_| ())
    }

    /// All translated sockets, as [`Self::flows`].
    pub fn sockets(&self) -> Result<BTreeMap<SocketKey<A>, Socket<A>>, MapError> {
        read_all(&self.sockets, self.names.sockets)
    }

    /// Which clients stay with which backends, as [`Self::flows`].
    pub fn affinities(&self) -> Result<BTreeMap<AffinityKey<A>, Affinity>, MapError> {
        read_all(&self.affinity, self.names.affinity)
    }

    /// The backend that a client stays with.
    pub fn affinity(&self, key: &AffinityKey<A>) -> Result<Option<Affinity>, MapError> {
        found(self.affinity.get(key, 0), self.names.affinity)
    }

    /// Says which backend a client stays with.
    pub fn set_affinity(&mut self, key: &AffinityKey<A>, affinity: &Affinity) -> Result<(), MapError> {
        let failed = |error| {
            let operation = format!("write the row of a client of service {}", key.service);
            kernel(self.names.affinity, operation, error)
        };
        self.affinity.insert(key, affinity, 0).map_err(failed)
    }

    /// Forgets which backend a client stays with. A row that is gone already is success.
    pub fn remove_affinity(&mut self, key: &AffinityKey<A>) -> Result<(), MapError> {
        let name = self.names.affinity;
        found(self.affinity.remove(key).map_err(not_found), name).map(|_| ())
    }

    /// The longest prefix of an address that a set of source ranges has.
    pub fn range_of(&self, set: u32, address: A) -> Result<Option<Network>, MapError> {
        let mut found: Option<Network> = None;
        for row in self.source_ranges.keys() {
            let key =
                row.map_err(|error| kernel(self.names.source_ranges, "read all rows".to_owned(), error))?;
            let network =
                source_range(&key).filter(|(its, network)| *its == set && network.contains(address.into()));
            let Some((_, network)) = network else { continue };
            if found.is_none_or(|found| found.prefix() < network.prefix()) {
                found = Some(network);
            }
        }
        Ok(found)
    }

    /// Whether a set of source ranges holds a client.
    pub fn allows(&self, set: u32, client: A) -> Result<bool, MapError> {
        let bits = SourceRange::<A>::SET_BITS + u32::BITS * words::<A>();
        let range = SourceRange { set, network: client };
        let row = found(
            self.source_ranges.get(&Key::new(bits, range), 0),
            self.names.source_ranges,
        );
        Ok(row?.is_some())
    }
}

/// How many words an address has.
const fn words<A: Address>() -> u32 {
    if A::IS_IPV6 { 4 } else { 1 }
}

fn read_all<K: Pod + Ord, V: Pod>(
    rows: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, MapError> {
    rows.iter()
        .collect::<Result<_, _>>()
        .map_err(|error| kernel(name, "read all rows".to_owned(), error))
}

/// A row that may not be there.
fn found<V>(row: Result<V, KernelError>, name: &'static str) -> Result<Option<V>, MapError> {
    match row {
        Ok(row) => Ok(Some(row)),
        Err(KernelError::KeyNotFound) => Ok(None),
        Err(error) => Err(kernel(name, "look up a row".to_owned(), error)),
    }
}

/// Removing a row that is not there fails otherwise than looking it up.
fn not_found(error: KernelError) -> KernelError {
    match error {
        KernelError::SyscallError(error)
            if error.io_error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) =>
        {
            KernelError::KeyNotFound
        }
        error => error,
    }
}
