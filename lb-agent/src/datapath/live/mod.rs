//! Row-by-row access to the pinned maps, for commands that show what the programs read and write.

pub(crate) mod rows;

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::Path;

use aya::maps::{Array, HashMap, MapData};
use lb_common::address::Address;
use lb_common::cidr;
use lb_common::filter::Position;
use lb_common::layout::{Device, Region, ServiceId, ServiceName, Slot};
use lb_common::map;
use lb_common::net::{Address4, Address6, Port};
use lb_common::parse::IpHeader;
use lb_common::settings::LoadedSettings;

use self::rows::{LiveRows, found};
use super::batch::BatchArray;
use super::convert::text_of;
use super::family::MapFamily;
use super::pinned::{kernel, open, open_batch, read_all, settings};
use crate::maps::MapError;

/// The pinned maps.
pub struct LiveMaps {
    v4: LiveRows<Address4>,
    v6: LiveRows<Address6>,
    slots: BatchArray<Slot>,
    filter: Array<MapData, u64>,
    reply_filter: Array<MapData, u64>,
    service_cidrs: Array<MapData, cidr::ServiceCidrs>,
    devices: HashMap<MapData, u32, Device>,
    names: HashMap<MapData, ServiceId, ServiceName>,
    settings: LoadedSettings,
}

/// An address of one IP version, with access to that version's maps.
pub trait LiveFamily: MapFamily + IpHeader + Hash + Ord {
    /// The maps of this IP version.
    fn rows(maps: &LiveMaps) -> &LiveRows<Self>;
    /// The same maps, for writing.
    fn rows_mut(maps: &mut LiveMaps) -> &mut LiveRows<Self>;
    /// Converts an address. `None` if it is of the other IP version.
    fn of(address: IpAddr) -> Option<Self>;
}

impl LiveFamily for Address4 {
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
}

impl LiveFamily for Address6 {
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
}

impl LiveMaps {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    /// If a map is missing or of another kind.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let settings = settings(directory)?;
        Ok(Self {
            v4: LiveRows::open(directory)?,
            v6: LiveRows::open(directory)?,
            slots: open_batch(directory, &map::SLOTS)?,
            filter: open(directory, &map::FILTER)?,
            reply_filter: open(directory, &map::REPLY_FILTER)?,
            service_cidrs: open(directory, &map::SERVICE_CIDRS)?,
            devices: open(directory, &map::DEVICES)?,
            names: open(directory, &map::SERVICE_NAMES)?,
            settings,
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

    /// The settings with which the programs were loaded.
    pub(crate) fn settings(&self) -> &LoadedSettings {
        &self.settings
    }

    /// The names of service ids: `NAMESPACE/NAME/PORT/PROTOCOL`.
    ///
    /// # Errors
    /// If the map cannot be read. The same holds for all functions below.
    pub(crate) fn names(&self) -> Result<BTreeMap<ServiceId, String>, MapError> {
        let names = read_all(&self.names, map::SERVICE_NAMES.name)?.into_iter();
        Ok(names.map(|(service, name)| (service, text_of(&name))).collect())
    }

    /// The slots of a region.
    pub(crate) fn slots(&self, region: Region) -> Result<Vec<Slot>, MapError> {
        let Region { base, length } = region;
        let failed = |error| {
            kernel(
                map::SLOTS.name,
                format!("read {length} slots from {base} on"),
                error,
            )
        };
        self.slots.read(base, length).map_err(failed)
    }

    /// Whether programs look up packets to this address.
    pub fn is_in_filter(&self, address: impl Address) -> Result<bool, MapError> {
        is_set(&self.filter, map::FILTER.name, Position::of(address))
    }

    /// Whether programs look up packets from this address and port as replies.
    pub fn is_in_reply_filter(&self, address: impl Address, port: Port) -> Result<bool, MapError> {
        is_set(
            &self.reply_filter,
            map::REPLY_FILTER.name,
            Position::of_replies(address, port),
        )
    }

    /// Whether an address may be in a Service CIDR.
    pub(crate) fn may_be_service(&self, address: impl Address) -> Result<bool, MapError> {
        let networks = found(self.service_cidrs.get(&0, 0), map::SERVICE_CIDRS.name)?;
        Ok(networks.is_some_and(|networks| networks.may_contain(address)))
    }

    /// The row of a device.
    pub(crate) fn device(&self, index: u32) -> Result<Option<Device>, MapError> {
        found(self.devices.get(&index, 0), map::DEVICES.name)
    }
}

fn is_set(filter: &Array<MapData, u64>, name: &'static str, position: Position) -> Result<bool, MapError> {
    let Position { word, bit } = position;
    let failed = |error| kernel(name, format!("read word {word}"), error);
    Ok(filter.get(&word, 0).map_err(failed)? & bit != 0)
}
