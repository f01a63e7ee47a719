//! The kernel's maps as [`Maps`], opened by their pins.

mod family;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::maps::{Array, HashMap, MapData};
use lb_common::cidr;
use lb_common::layout::{BackendId, Frontend, Region, ServiceId, ServiceName, Slot, frontend_flags};
use lb_common::map::{self, FamilySpecs as _};
use lb_common::net::{Address4, Address6};

use self::family::FamilyMaps;
use super::batch::BatchArray;
use super::convert::{backend_row, service_name, text_of};
use super::counters::Counters;
use super::devices::all_addresses;
use super::filter::{Ends, Filter, ReplyFilter};
use super::pinned::{deleted, kernel, open, open_batch, size, unread};
use crate::maps::{Backend, Capacity, FrontendKey, MapError, MapImage, MapOp, Maps, Protocol, service_cidrs};
use crate::network::Cidr;

/// The maps that hold Services.
pub struct KernelMaps {
    v4: FamilyMaps<Address4>,
    v6: FamilyMaps<Address6>,
    filter: Filter,
    reply_filter: ReplyFilter,
    slots: BatchArray<Slot>,
    service_cidrs: Array<MapData, cidr::ServiceCidrs>,
    names: HashMap<MapData, ServiceId, ServiceName>,
    counters: Counters,
    capacity: Capacity,
    changes: u64,
}

impl KernelMaps {
    /// Opens the maps pinned in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let slots = open_batch(directory, &map::SLOTS)?;
        let v4 = FamilyMaps::open(directory)?;
        let v6 = FamilyMaps::open(directory)?;
        // The sizes of the two maps may differ if an agent died while it created them.
        let capacity = Capacity {
            frontends: size(directory, &Address4::FRONTENDS)?.min(size(directory, &Address6::FRONTENDS)?),
            slots: slots.length(),
            backends: v4.backend_capacity().min(v6.backend_capacity()),
            services: size(directory, &map::SERVICE_STATS)?.min(size(directory, &map::SERVICE_NAMES)?),
            source_ranges: size(directory, &Address4::SOURCE_RANGES)?
                .min(size(directory, &Address6::SOURCE_RANGES)?),
        };
        Ok(Self {
            v4,
            v6,
            filter: Filter::open(directory)?,
            reply_filter: ReplyFilter::open(directory)?,
            slots,
            service_cidrs: open(directory, &map::SERVICE_CIDRS)?,
            names: open(directory, &map::SERVICE_NAMES)?,
            counters: Counters::open(directory)?,
            capacity,
            changes: 0,
        })
    }

    /// The filter of destination addresses. Nothing else writes it.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The number of frontend and backend rows written since the maps were opened.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Clears the bits of the filters that are no longer needed, and sets bits that an agent
    /// without one of the filters has not set. These addresses need a bit: frontends, devices
    /// through which packets are forwarded, backends, and the addresses of flows. Flows need one
    /// even after their Service was removed: their packets must reach the programs, which notice
    /// the removal, and their replies are translated until the end.
    pub fn renew_filters(&mut self, directory: &Path) -> Result<(), MapError> {
        let image = self.image()?;
        let frontends = image.frontends.keys().map(FrontendKey::address);
        let mut ends = Ends::default();
        ends.destinations.extend(frontends.filter(has_packets));
        ends.destinations.extend(all_addresses(directory)?);
        let backends = image.backends4.values().chain(image.backends6.values());
        ends.repliers.extend(backends.map(replier));
        let own = image.frontends.iter();
        ends.repliers
            .extend(own.filter_map(|(key, value)| own_port(key, value)));
        ends.add_flows(directory)?;
        self.publish_cidrs(service_cidrs(&image.source_ranges))?;
        self.filter.renew(ends.destinations.into_iter())?;
        self.reply_filter.renew(ends.repliers.into_iter())
    }

    fn set_name(&mut self, service: ServiceId, name: &str) -> Result<(), MapError> {
        self.counters.reset(service)?;
        self.names
            .insert(service, service_name(name), 0)
            .map_err(|error| {
                kernel(
                    map::SERVICE_NAMES.name,
                    format!("write the name {name} of service {service}"),
                    error,
                )
            })
    }

    fn delete_name(&mut self, service: ServiceId) -> Result<(), MapError> {
        deleted(self.names.remove(&service)).map_err(|error| {
            kernel(
                map::SERVICE_NAMES.name,
                format!("delete the name of service {service}"),
                error,
            )
        })
    }

    fn set_slots(&mut self, base: u32, slots: &[Slot]) -> Result<(), MapError> {
        let operation = || format!("write {} slots from {base} on", slots.len());
        self.slots
            .write(base, slots)
            .map_err(|error| kernel(map::SLOTS.name, operation(), error))
    }

    fn set_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), MapError> {
        if has_packets(&key.address()) {
            self.filter.set(key.address())?;
        }
        if let Some(port) = own_port(key, value) {
            self.reply_filter.set(std::iter::once(port))?;
        }
        self.changes += 1;
        let capacity = self.capacity.frontends;
        match key.address() {
            IpAddr::V4(address) => self.v4.set_frontend(key, address.into(), value, capacity),
            IpAddr::V6(address) => self.v6.set_frontend(key, address.into(), value, capacity),
        }
    }

    fn delete_frontend(&mut self, key: &FrontendKey) -> Result<(), MapError> {
        match key.address() {
            IpAddr::V4(address) => self.v4.delete_frontend(key, address.into()),
            IpAddr::V6(address) => self.v6.delete_frontend(key, address.into()),
        }
    }

    fn add_source_range(&mut self, set: u32, network: &Cidr) -> Result<(), MapError> {
        let capacity = self.capacity.source_ranges;
        match network.address() {
            IpAddr::V4(address) => self.v4.add_source_range(set, network, address.into(), capacity),
            IpAddr::V6(address) => self.v6.add_source_range(set, network, address.into(), capacity),
        }
    }

    fn delete_source_range(&mut self, set: u32, network: &Cidr) -> Result<(), MapError> {
        match network.address() {
            IpAddr::V4(address) => self.v4.delete_source_range(set, network, address.into()),
            IpAddr::V6(address) => self.v6.delete_source_range(set, network, address.into()),
        }
    }

    /// Writes the Service CIDRs, so that programs check only addresses that may be in one. There is
    /// room for [`cidr::MAX`] networks of each family. Packets to addresses in further networks
    /// pass.
    fn publish_cidrs(&mut self, cidrs: impl Iterator<Item = Cidr>) -> Result<(), MapError> {
        let mut networks = cidr::ServiceCidrs::default();
        for network in cidrs {
            match network.address() {
                IpAddr::V4(address) => networks.add(Address4::from(address), network.prefix()),
                IpAddr::V6(address) => networks.add(Address6::from(address), network.prefix()),
            };
        }
        let failed = |error| kernel(map::SERVICE_CIDRS.name, "write the networks".to_owned(), error);
        self.service_cidrs.set(0, networks, 0).map_err(failed)
    }

    /// Adds a Service CIDR: first the source range that makes it one, then the network that the
    /// programs check first.
    fn add_cidr(&mut self, network: &Cidr) -> Result<(), MapError> {
        self.add_source_range(cidr::SET, network)?;
        let cidrs = self.ranges()?;
        self.publish_cidrs(service_cidrs(&cidrs))
    }

    fn delete_cidr(&mut self, network: &Cidr) -> Result<(), MapError> {
        let mut cidrs = self.ranges()?;
        cidrs.remove(&(cidr::SET, *network));
        self.publish_cidrs(service_cidrs(&cidrs))?;
        self.delete_source_range(cidr::SET, network)
    }

    /// All rows of the sets of source ranges.
    fn ranges(&self) -> Result<BTreeSet<(u32, Cidr)>, MapError> {
        let mut ranges = self.v4.source_ranges()?;
        ranges.extend(self.v6.source_ranges()?);
        Ok(ranges)
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
        let (mut rows4, mut rows6) = (Vec::new(), Vec::new());
        for (id, backend) in rows {
            match backend.address {
                IpAddr::V4(address) => rows4.push((*id, backend_row(backend, address.into()))),
                IpAddr::V6(address) => rows6.push((*id, backend_row(backend, address.into()))),
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
        self.v4
            .set_backends(rows4)
            .map_err(failed(Address4::BACKENDS.name))?;
        self.v6
            .set_backends(rows6)
            .map_err(failed(Address6::BACKENDS.name))?;
        self.changes += rows.len() as u64;
        Ok(())
    }

    fn image(&self) -> Result<MapImage, MapError> {
        let mut image = MapImage::default();
        for row in self.names.iter() {
            let (service, name) = row.map_err(unread(map::SERVICE_NAMES.name))?;
            image.names.insert(service, text_of(&name));
        }
        image.frontends = self.v4.frontends()?;
        image.frontends.extend(self.v6.frontends()?);
        let regions: BTreeSet<Region> = image.frontends.values().flat_map(crate::maps::regions).collect();
        for Region { base, length } in regions {
            // A corrupt row may name slots that do not exist.
            let length = length.min(self.slots.length().saturating_sub(base));
            let operation = || format!("read {length} slots from {base} on");
            let slots = self
                .slots
                .read(base, length)
                .map_err(|error| kernel(map::SLOTS.name, operation(), error))?;
            image.slots.extend((base..).zip(slots));
        }
        image.source_ranges = self.ranges()?;
        image.backends4 = self.v4.backends()?;
        image.backends6 = self.v6.backends()?;
        Ok(image)
    }
}

/// The address and port that a backend's replies come from.
fn replier(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address, backend.port)
}

/// An address and UDP port of the node from which the node's own datagrams may leave. Programs look
/// such datagrams up like replies.
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

/// Whether programs at devices can see packets to an address. They do not see loopback traffic.
fn has_packets(address: &IpAddr) -> bool {
    !address.is_loopback()
}
