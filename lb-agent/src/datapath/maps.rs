//! The kernel's maps as [`Maps`], opened where they are pinned.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::cidr;
use lb_common::layout::{
    self, Address4, Address6, BackendId, Frontend, Port, Region, ServiceId, ServiceName, ServiceStats, Slot,
    SourceRange, backend_flags, backend_state, frontend_flags, map, protocol,
};
use lb_common::reason::Reason;

use super::batch::BatchArray;
use super::filter::{Ends, Filter, ReplyFilter};
use crate::maps::{
    Backend, BackendState, Capacity, FrontendKey, MapError, MapImage, MapOp, Maps, Protocol, service_cidrs,
};
use crate::network::Network;

/// The maps that hold Services.
pub struct KernelMaps {
    frontends4: HashMap<MapData, layout::FrontendKey<Address4>, Frontend>,
    frontends6: HashMap<MapData, layout::FrontendKey<Address6>, Frontend>,
    filter: Filter,
    reply_filter: ReplyFilter,
    slots: BatchArray<Slot>,
    backends4: BatchArray<layout::Backend<Address4>>,
    backends6: BatchArray<layout::Backend<Address6>>,
    source_ranges4: LpmTrie<MapData, SourceRange<Address4>, u32>,
    source_ranges6: LpmTrie<MapData, SourceRange<Address6>, u32>,
    service_cidrs: Array<MapData, cidr::Networks>,
    names: HashMap<MapData, ServiceId, ServiceName>,
    counters: Counters,
    capacity: Capacity,
    changes: u64,
}

impl KernelMaps {
    /// Opens the maps pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let slots = open_batch(directory, map::SLOTS)?;
        let backends4 = open_batch(directory, map::BACKENDS4)?;
        let backends6 = open_batch(directory, map::BACKENDS6)?;
        // Of two maps one may be older than the other: an agent may have died while it made them.
        let smaller = |names: [&'static str; 2]| {
            let [first, second] = names.map(|name| max_entries(&open(directory, name)?, name));
            Ok::<_, MapError>(first?.min(second?))
        };
        let capacity = Capacity {
            frontends: smaller([map::FRONTENDS4, map::FRONTENDS6])?,
            slots: slots.length(),
            backends: backends4.length().min(backends6.length()),
            services: smaller([map::SERVICE_STATS, map::SERVICE_NAMES])?,
            source_ranges: smaller([map::SOURCE_RANGES4, map::SOURCE_RANGES6])?,
        };
        Ok(Self {
            frontends4: typed(open(directory, map::FRONTENDS4)?, map::FRONTENDS4)?,
            frontends6: typed(open(directory, map::FRONTENDS6)?, map::FRONTENDS6)?,
            filter: Filter::open(directory)?,
            reply_filter: ReplyFilter::open(directory)?,
            slots,
            backends4,
            backends6,
            source_ranges4: typed(open(directory, map::SOURCE_RANGES4)?, map::SOURCE_RANGES4)?,
            source_ranges6: typed(open(directory, map::SOURCE_RANGES6)?, map::SOURCE_RANGES6)?,
            service_cidrs: typed(open(directory, map::SERVICE_CIDRS)?, map::SERVICE_CIDRS)?,
            names: typed(open(directory, map::SERVICE_NAMES)?, map::SERVICE_NAMES)?,
            counters: Counters::open(directory)?,
            capacity,
            changes: 0,
        })
    }

    /// How many rows of frontends and backends were written since the maps were opened.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    fn set_name(&mut self, service: ServiceId, name: &str) -> Result<(), MapError> {
        self.counters.reset(service)?;
        self.names
            .insert(service, service_name(name), 0)
            .map_err(|error| {
                kernel(
                    map::SERVICE_NAMES,
                    format!("write the name {name} of service {service}"),
                    error,
                )
            })
    }

    fn delete_name(&mut self, service: ServiceId) -> Result<(), MapError> {
        deleted(self.names.remove(&service)).map_err(|error| {
            kernel(
                map::SERVICE_NAMES,
                format!("delete the name of service {service}"),
                error,
            )
        })
    }

    fn set_slots(&mut self, base: u32, slots: &[Slot]) -> Result<(), MapError> {
        let operation = || format!("write {} slots from {base} on", slots.len());
        self.slots
            .write(base, slots)
            .map_err(|error| kernel(map::SLOTS, operation(), error))
    }

    /// Clears the filters' bits that nobody needs any more: those of neither a frontend nor a device that packets are sent
    /// on by nor a backend, nor of a flow, whose packets must learn of the end of their Service and whose replies are
    /// translated to their end. Sets those that an agent without one of the filters has not set.
    pub fn renew_filters(&mut self, directory: &Path) -> Result<(), MapError> {
        let image = self.image()?;
        let frontends = image.frontends.keys().map(FrontendKey::address);
        let mut ends = Ends::default();
        ends.destinations.extend(frontends.filter(has_packets));
        ends.destinations
            .extend(super::devices::all_addresses(directory)?);
        let backends = image.backends4.values().chain(image.backends6.values());
        ends.repliers.extend(backends.map(replier));
        let own = image.frontends.iter();
        ends.repliers
            .extend(own.filter_map(|(key, value)| own_port(key, value)));
        ends.add_flows(directory)?;
        self.tell_cidrs(service_cidrs(&image.source_ranges))?;
        self.filter.renew(ends.destinations.into_iter())?;
        self.reply_filter.renew(ends.repliers.into_iter())
    }

    fn set_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), MapError> {
        if has_packets(&key.address()) {
            self.filter.set(key.address())?;
        }
        if let Some(port) = own_port(key, value) {
            self.reply_filter.set(std::iter::once(port))?;
        }
        self.changes += 1;
        let (name, result) = match key.address() {
            IpAddr::V4(address) => (
                map::FRONTENDS4,
                self.frontends4
                    .insert(frontend_row(key, Address4::from(address)), value, 0),
            ),
            IpAddr::V6(address) => (
                map::FRONTENDS6,
                self.frontends6
                    .insert(frontend_row(key, Address6::from(address)), value, 0),
            ),
        };
        result.map_err(|error| match &error {
            aya::maps::MapError::SyscallError(error) if is(error, nix::errno::Errno::E2BIG) => {
                MapError::Full {
                    map: name,
                    capacity: self.capacity.frontends,
                    flag: "--max-frontends",
                }
            }
            _ => kernel(name, format!("write frontend {key}"), error),
        })
    }

    fn delete_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        let (name, result) = match key.address() {
            IpAddr::V4(address) => (
                map::FRONTENDS4,
                self.frontends4
                    .remove(&frontend_row(key, Address4::from(address))),
            ),
            IpAddr::V6(address) => (
                map::FRONTENDS6,
                self.frontends6
                    .remove(&frontend_row(key, Address6::from(address))),
            ),
        };
        deleted(result).map_err(|error| kernel(name, format!("delete frontend {key}"), error))
    }

    fn add_source_range(&mut self, set: u32, network: &Network) -> Result<(), MapError> {
        let (name, result) = match network.address() {
            IpAddr::V4(address) => (
                map::SOURCE_RANGES4,
                self.source_ranges4
                    .insert(&range_key(set, network, Address4::from(address)), 1, 0),
            ),
            IpAddr::V6(address) => (
                map::SOURCE_RANGES6,
                self.source_ranges6
                    .insert(&range_key(set, network, Address6::from(address)), 1, 0),
            ),
        };
        result.map_err(|error| match &error {
            aya::maps::MapError::SyscallError(error) if is(error, nix::errno::Errno::ENOSPC) => {
                MapError::Full {
                    map: name,
                    capacity: self.capacity.source_ranges,
                    flag: "--max-source-ranges",
                }
            }
            _ => kernel(name, format!("add {network} to set {set}"), error),
        })
    }

    /// Tells the programs which addresses are worth a look whether a Service CIDR holds them. There is room for
    /// [`cidr::MAX`] of each family; packets to the addresses of others pass.
    fn tell_cidrs(&mut self, cidrs: impl Iterator<Item = Network>) -> Result<(), MapError> {
        let mut networks = cidr::Networks::default();
        for network in cidrs {
            match network.address() {
                IpAddr::V4(address) => networks.add(Address4::from(address), network.prefix()),
                IpAddr::V6(address) => networks.add(Address6::from(address), network.prefix()),
            };
        }
        let failed = |error| kernel(map::SERVICE_CIDRS, "write the networks".to_owned(), error);
        self.service_cidrs.set(0, networks, 0).map_err(failed)
    }

    /// A Service CIDR is one once the programs know both where it is and that it is one.
    fn add_cidr(&mut self, network: &Network) -> Result<(), MapError> {
        self.add_source_range(cidr::SET, network)?;
        let cidrs = self.ranges()?;
        self.tell_cidrs(service_cidrs(&cidrs))
    }

    fn delete_cidr(&mut self, network: &Network) -> Result<(), MapError> {
        let mut cidrs = self.ranges()?;
        cidrs.remove(&(cidr::SET, *network));
        self.tell_cidrs(service_cidrs(&cidrs))?;
        self.delete_source_range(cidr::SET, network)
    }

    /// All rows of the sets of source ranges.
    fn ranges(&self) -> Result<BTreeSet<(u32, Network)>, MapError> {
        let mut ranges = BTreeSet::new();
        for row in self.source_ranges4.keys() {
            let key = row.map_err(|error| kernel(map::SOURCE_RANGES4, "read all rows".to_owned(), error))?;
            ranges.extend(source_range(&key));
        }
        for row in self.source_ranges6.keys() {
            let key = row.map_err(|error| kernel(map::SOURCE_RANGES6, "read all rows".to_owned(), error))?;
            ranges.extend(source_range(&key));
        }
        Ok(ranges)
    }

    fn delete_source_range(&mut self, set: u32, network: &Network) -> Result<(), MapError> {
        let (name, result) = match network.address() {
            IpAddr::V4(address) => (
                map::SOURCE_RANGES4,
                self.source_ranges4
                    .remove(&range_key(set, network, Address4::from(address))),
            ),
            IpAddr::V6(address) => (
                map::SOURCE_RANGES6,
                self.source_ranges6
                    .remove(&range_key(set, network, Address6::from(address))),
            ),
        };
        deleted(result).map_err(|error| kernel(name, format!("delete {network} of set {set}"), error))
    }
}

impl Maps for KernelMaps {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn apply(&mut self, operation: &MapOp) -> Result<(), MapError> {
        match operation {
            MapOp::SetName { service, name } => self.set_name(*service, name),
            MapOp::DeleteName { service } => self.delete_name(*service),
            MapOp::SetBackend { id, backend } => {
                self.set_backends(&[(*id, *backend)]).map_err(|(_, error)| error)
            }
            MapOp::SetSlots { base, slots } => self.set_slots(*base, slots),
            MapOp::SetFrontend { key, value } => self.set_frontend(key, value),
            MapOp::AddSourceRange {
                set: cidr::SET,
                network,
            } => self.add_cidr(network),
            MapOp::DeleteSourceRange {
                set: cidr::SET,
                network,
            } => self.delete_cidr(network),
            MapOp::AddSourceRange { set, network } => self.add_source_range(*set, network),
            MapOp::DeleteSourceRange { set, network } => self.delete_source_range(*set, network),
            MapOp::DeleteFrontend { key } => self.delete_frontend(key),
        }
    }

    fn set_backends(&mut self, rows: &[(BackendId, Backend)]) -> Result<(), (usize, MapError)> {
        let (mut rows4, mut rows6) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for (id, backend) in rows {
            match backend.address {
                IpAddr::V4(address) => {
                    rows4.0.push(*id);
                    rows4.1.push(backend_row(backend, Address4::from(address)));
                }
                IpAddr::V6(address) => {
                    rows6.0.push(*id);
                    rows6.1.push(backend_row(backend, Address6::from(address)));
                }
            }
        }
        self.reply_filter
            .set(rows.iter().map(|(_, backend)| replier(backend)))
            .map_err(|error| (0, error))?;
        let failed = |map| {
            move |(written, error)| {
                let first = rows.first().map_or_else(String::new, |(id, backend)| {
                    format!("{id} ({}:{})", backend.address, backend.port)
                });
                let operation = format!("write {} backends, the first is {first}", rows.len());
                (written, kernel(map, operation, error))
            }
        };
        self.backends4
            .write_some(rows4.0, rows4.1)
            .map_err(failed(map::BACKENDS4))?;
        self.backends6
            .write_some(rows6.0, rows6.1)
            .map_err(failed(map::BACKENDS6))?;
        self.changes += rows.len() as u64;
        Ok(())
    }

    fn image(&self) -> Result<MapImage, MapError> {
        let mut image = MapImage::default();
        for row in self.names.iter() {
            let (service, name) =
                row.map_err(|error| kernel(map::SERVICE_NAMES, "read all rows".to_owned(), error))?;
            image.names.insert(service, text_of(&name));
        }
        for row in self.frontends4.iter() {
            let (key, value) =
                row.map_err(|error| kernel(map::FRONTENDS4, "read all rows".to_owned(), error))?;
            image
                .frontends
                .extend(frontend_key(key.address.into(), key.port, key.protocol).map(|key| (key, value)));
        }
        for row in self.frontends6.iter() {
            let (key, value) =
                row.map_err(|error| kernel(map::FRONTENDS6, "read all rows".to_owned(), error))?;
            image
                .frontends
                .extend(frontend_key(key.address.into(), key.port, key.protocol).map(|key| (key, value)));
        }
        let regions: BTreeSet<Region> = image.frontends.values().flat_map(crate::maps::regions).collect();
        for Region { base, length } in regions {
            // A damaged row may name slots that do not exist.
            let length = length.min(self.slots.length().saturating_sub(base));
            let operation = || format!("read {length} slots from {base} on");
            let slots = self
                .slots
                .read(base, length)
                .map_err(|error| kernel(map::SLOTS, operation(), error))?;
            image.slots.extend((base..).zip(slots));
        }
        image.source_ranges = self.ranges()?;
        for_each(&self.backends4, map::BACKENDS4, |id, row| {
            let backend = backend(row, row.address.into());
            image.backends4.extend(backend.map(|backend| (id, backend)));
        })?;
        for_each(&self.backends6, map::BACKENDS6, |id, row| {
            let backend = backend(row, row.address.into());
            image.backends6.extend(backend.map(|backend| (id, backend)));
        })?;
        Ok(image)
    }
}

/// Reads all elements of an array, many at a time.
fn for_each<T: Pod + Default>(
    array: &BatchArray<T>,
    name: &'static str,
    mut with: impl FnMut(u32, T),
) -> Result<(), MapError> {
    const AT_ONCE: u32 = 4096;
    for base in (0..array.length()).step_by(AT_ONCE as usize) {
        let length = AT_ONCE.min(array.length() - base);
        let failed = |error| kernel(name, format!("read {length} rows from {base} on"), error);
        let elements = array.read(base, length).map_err(failed)?;
        (base..)
            .zip(elements)
            .for_each(|(index, element)| with(index, element));
    }
    Ok(())
}

/// The counters of the kernel programs.
pub struct Counters {
    services: PerCpuArray<MapData, ServiceStats>,
    reasons: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Opens the counters pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            services: typed(open(directory, map::SERVICE_STATS)?, map::SERVICE_STATS)?,
            reasons: typed(open(directory, map::REASONS)?, map::REASONS)?,
        })
    }

    /// The counters of a service port, summed over all CPUs.
    pub fn service(&self, service: ServiceId) -> Result<ServiceStats, MapError> {
        let values = self.services.get(&service, 0).map_err(|error| {
            kernel(
                map::SERVICE_STATS,
                format!("read the counters of service {service}"),
                error,
            )
        })?;
        Ok(values
            .iter()
            .fold(ServiceStats::default(), |sum, value| ServiceStats {
                connections: sum.connections + value.connections,
                rejected: sum.rejected + value.rejected,
            }))
    }

    /// Sets the counters of a service port to 0.
    fn reset(&mut self, service: ServiceId) -> Result<(), MapError> {
        let zeros = aya::util::nr_cpus()
            .map_err(|(_, error)| error)
            .and_then(|cpus| PerCpuValues::try_from(vec![ServiceStats::default(); cpus]));
        zeros
            .map_err(aya::maps::MapError::from)
            .and_then(|zeros| self.services.set(service, zeros, 0))
            .map_err(|error| {
                kernel(
                    map::SERVICE_STATS,
                    format!("reset the counters of service {service}"),
                    error,
                )
            })
    }

    /// How many packets were not simply translated for this reason, summed over all CPUs.
    pub fn reason(&self, reason: Reason) -> Result<u64, MapError> {
        let values = self.reasons.get(&reason.index(), 0).map_err(|error| {
            kernel(
                map::REASONS,
                format!("read the counter of {}", reason.name()),
                error,
            )
        })?;
        Ok(values.iter().sum())
    }
}

/// Name, entries and capacity of the maps that packets fill.
pub fn map_sizes(directory: &Path) -> Result<Vec<(&'static str, usize, u32)>, MapError> {
    let flows4 = size::<layout::FlowKey<Address4>, layout::Flow<Address4>>(directory, map::FLOWS4)?;
    let flows6 = size::<layout::FlowKey<Address6>, layout::Flow<Address6>>(directory, map::FLOWS6)?;
    let sockets4 = size::<layout::SocketKey<Address4>, layout::Socket<Address4>>(directory, map::SOCKETS4)?;
    let sockets6 = size::<layout::SocketKey<Address6>, layout::Socket<Address6>>(directory, map::SOCKETS6)?;
    let affinities4 = size::<layout::AffinityKey<Address4>, layout::Affinity>(directory, map::AFFINITY4)?;
    let affinities6 = size::<layout::AffinityKey<Address6>, layout::Affinity>(directory, map::AFFINITY6)?;
    let fragments4 = size::<layout::FragmentKey<Address4>, layout::Fragment>(directory, map::FRAGMENTS4)?;
    let fragments6 = size::<layout::FragmentKey<Address6>, layout::Fragment>(directory, map::FRAGMENTS6)?;
    Ok(vec![
        ("flows IPv4", flows4.0, flows4.1),
        ("flows IPv6", flows6.0, flows6.1),
        ("sockets IPv4", sockets4.0, sockets4.1),
        ("sockets IPv6", sockets6.0, sockets6.1),
        ("affinities IPv4", affinities4.0, affinities4.1),
        ("affinities IPv6", affinities6.0, affinities6.1),
        ("fragments IPv4", fragments4.0, fragments4.1),
        ("fragments IPv6", fragments6.0, fragments6.1),
    ])
}

fn size<K: Pod, V: Pod>(directory: &Path, name: &'static str) -> Result<(usize, u32), MapError> {
    let map = open(directory, name)?;
    let capacity = max_entries(&map, name)?;
    let map: HashMap<MapData, K, V> = typed(map, name)?;
    // A key that is evicted while it is looked at makes the walk begin anew.
    let most = usize::try_from(capacity).unwrap_or(usize::MAX);
    Ok((map.keys().take(most).count(), capacity))
}

/// Where a backend's replies come from.
fn replier(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address, backend.port)
}

/// An address and port of the node that datagrams of its own may leave from: programs look those up as they do replies.
fn own_port(key: &FrontendKey, value: &Frontend) -> Option<SocketAddr> {
    match key {
        FrontendKey::Port(address, port, Protocol::Udp)
            if value.flags & frontend_flags::NODE_ADDRESS != 0 =>
        {
            Some(SocketAddr::new(*address, *port))
        }
        _ => None,
    }
}

/// Whether programs at devices can see packets to an address: what a node sends to itself they do not.
fn has_packets(address: &IpAddr) -> bool {
    !address.is_loopback()
}

/// Opens a pinned map.
pub(super) fn open(directory: &Path, name: &'static str) -> Result<Map, MapError> {
    let path = directory.join(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .map_err(|error| kernel(name, format!("open the pinned map {}", path.display()), error))
}

pub(super) fn open_batch<T: Pod + Default>(
    directory: &Path,
    name: &'static str,
) -> Result<BatchArray<T>, MapError> {
    let wrong = || aya::maps::MapError::InvalidMapType { map_type: 0 };
    let array = match open(directory, name)? {
        Map::Array(data) => BatchArray::new(data),
        _ => None,
    };
    array.ok_or_else(|| kernel(name, "use it as the array it should be".to_owned(), wrong()))
}

pub(super) fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(
    map: Map,
    name: &'static str,
) -> Result<T, MapError> {
    T::try_from(map).map_err(|error| kernel(name, "use it as the kind of map it should be".to_owned(), error))
}

pub(super) fn max_entries(map: &Map, name: &'static str) -> Result<u32, MapError> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)) = map
    else {
        return Err(kernel(
            name,
            "ask for its size".to_owned(),
            aya::maps::MapError::InvalidMapType { map_type: 0 },
        ));
    };
    let info = data
        .info()
        .map_err(|error| kernel(name, "ask for its size".to_owned(), error))?;
    Ok(info.max_entries())
}

pub(super) fn kernel(
    map: &'static str,
    operation: String,
    error: impl std::error::Error + Send + Sync + 'static,
) -> MapError {
    MapError::Kernel {
        map,
        operation,
        source: Box::new(error),
    }
}

/// The result of a deletion: what does not exist is deleted.
pub(super) fn deleted(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error)) if is(&error, nix::errno::Errno::ENOENT) => Ok(()),
        result => result,
    }
}

pub(super) fn is(error: &aya::sys::SyscallError, errno: nix::errno::Errno) -> bool {
    error.io_error.raw_os_error() == Some(errno as i32)
}

fn frontend_row<A>(key: &FrontendKey, address: A) -> layout::FrontendKey<A> {
    let (port, protocol) = match key {
        FrontendKey::Port(_, port, protocol) => (*port, protocol.number()),
        FrontendKey::Wildcard(_) => (0, 0),
    };
    layout::FrontendKey {
        address,
        port: Port::new(port),
        protocol,
        pad: 0,
    }
}

/// The key of a row; `None` for a protocol that this agent does not write.
fn frontend_key(address: IpAddr, port: Port, number: u8) -> Option<FrontendKey> {
    Some(match number {
        0 => FrontendKey::Wildcard(address),
        protocol::TCP => FrontendKey::Port(address, port.get(), Protocol::Tcp),
        protocol::UDP => FrontendKey::Port(address, port.get(), Protocol::Udp),
        protocol::SCTP => FrontendKey::Port(address, port.get(), Protocol::Sctp),
        _ => return None,
    })
}

fn range_key<A: Pod>(set: u32, network: &Network, address: A) -> Key<SourceRange<A>>
where
    SourceRange<A>: Pod,
{
    let prefix = SourceRange::<A>::SET_BITS + u32::from(network.prefix());
    Key::new(
        prefix,
        SourceRange {
            set,
            network: address,
        },
    )
}

/// The set and the network of a row; `None` if it is none that this agent writes.
pub(super) fn source_range<A: Pod + Into<IpAddr>>(key: &Key<SourceRange<A>>) -> Option<(u32, Network)>
where
    SourceRange<A>: Pod,
{
    let SourceRange { set, network } = key.data();
    let prefix = key.prefix_len().checked_sub(SourceRange::<A>::SET_BITS)?;
    Some((set, Network::new(network.into(), u8::try_from(prefix).ok()?)?))
}

/// A name that is too long, which Kubernetes does not let happen, is cut.
fn service_name(name: &str) -> ServiceName {
    let mut text = [0; ServiceName::LENGTH];
    for (target, byte) in text.iter_mut().zip(name.bytes()) {
        *target = byte;
    }
    ServiceName { text }
}

pub(super) fn text_of(name: &ServiceName) -> String {
    let text = name.text.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn backend_row<A: Pod>(backend: &Backend, address: A) -> layout::Backend<A> {
    layout::Backend {
        address,
        port: Port::new(backend.port),
        state: match backend.state {
            BackendState::Gone => backend_state::GONE,
            BackendState::Active => backend_state::ACTIVE,
            BackendState::Draining => backend_state::DRAINING,
            BackendState::Absent => backend_state::ABSENT,
        },
        flags: [
            (backend.local, backend_flags::LOCAL),
            (backend.in_cluster, backend_flags::IN_CLUSTER),
            (backend.in_local, backend_flags::IN_LOCAL),
        ]
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .fold(0, |flags, (_, flag)| flags | flag),
        generation: backend.generation,
        service: backend.service,
    }
}

/// A row that was written at least once.
fn backend<A>(row: layout::Backend<A>, address: IpAddr) -> Option<Backend> {
    (row.generation != 0).then(|| Backend {
        address,
        port: row.port.get(),
        state: match row.state {
            backend_state::ACTIVE => BackendState::Active,
            backend_state::DRAINING => BackendState::Draining,
            backend_state::ABSENT => BackendState::Absent,
            _ => BackendState::Gone,
        },
        local: row.flags & backend_flags::LOCAL != 0,
        in_cluster: row.flags & backend_flags::IN_CLUSTER != 0,
        in_local: row.flags & backend_flags::IN_LOCAL != 0,
        generation: row.generation,
        service: row.service,
    })
}
