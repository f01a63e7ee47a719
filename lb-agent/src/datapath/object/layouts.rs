//! The maps of the programs: their sizes, and whether pinned maps are compatible.

use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{MapInfo, MapType};
use lb_common::budget::Bucket;
use lb_common::cidr;
use lb_common::layout::{
    Affinity, AffinityKey, Backend, Device, DeviceLinks, DeviceRole, Flow, FlowKey, Fragment, FragmentKey,
    Frontend, FrontendKey, LinkAddress, ServiceName, ServiceStats, Slot, Socket, SocketKey, SourceRange, map,
};
use lb_common::net::{Address4, Address6};
use lb_common::settings::LoadedSettings;

use super::error::LoadError;
use super::settings::Settings;

/// A map, with the sizes of its keys and values in bytes.
pub(super) struct Layout {
    pub(super) name: &'static str,
    key: usize,
    value: usize,
}

const fn layout<K, V>(name: &'static str) -> Layout {
    Layout {
        name,
        key: size_of::<K>(),
        value: size_of::<V>(),
    }
}

/// All maps.
pub(super) const MAPS: [Layout; 34] = [
    layout::<FrontendKey<Address4>, Frontend>(map::FRONTENDS4),
    layout::<FrontendKey<Address6>, Frontend>(map::FRONTENDS6),
    layout::<u32, u64>(map::FILTER),
    layout::<u32, u64>(map::REPLY_FILTER),
    layout::<u32, cidr::Networks>(map::SERVICE_CIDRS),
    layout::<u32, Slot>(map::SLOTS),
    layout::<u32, Backend<Address4>>(map::BACKENDS4),
    layout::<u32, Backend<Address6>>(map::BACKENDS6),
    layout::<FlowKey<Address4>, Flow<Address4>>(map::FLOWS4),
    layout::<FlowKey<Address6>, Flow<Address6>>(map::FLOWS6),
    layout::<SocketKey<Address4>, Socket<Address4>>(map::SOCKETS4),
    layout::<SocketKey<Address6>, Socket<Address6>>(map::SOCKETS6),
    layout::<AffinityKey<Address4>, Affinity>(map::AFFINITY4),
    layout::<AffinityKey<Address6>, Affinity>(map::AFFINITY6),
    layout::<Key<SourceRange<Address4>>, u32>(map::SOURCE_RANGES4),
    layout::<Key<SourceRange<Address6>>, u32>(map::SOURCE_RANGES6),
    layout::<FragmentKey<Address4>, Fragment>(map::FRAGMENTS4),
    layout::<FragmentKey<Address6>, Fragment>(map::FRAGMENTS6),
    layout::<u32, [u32; 2]>(map::REASSEMBLY),
    layout::<u32, u32>(map::XDP_REASSEMBLY),
    layout::<u32, Bucket>(map::DETOURS),
    layout::<u32, Device>(map::DEVICES),
    layout::<u32, u32>(map::XDP_DEVICES),
    layout::<u32, DeviceRole>(map::DEVICE_ROLES),
    layout::<u32, u32>(map::POD_DEVICES),
    layout::<u32, DeviceLinks>(map::DEVICE_LINKS),
    layout::<LinkAddress, u32>(map::NODE_LINKS),
    layout::<[u32; 4], u32>(map::NODE_ADDRESSES),
    layout::<u64, u32>(map::NAMESPACES),
    layout::<u32, ServiceName>(map::SERVICE_NAMES),
    layout::<u32, ServiceStats>(map::SERVICE_STATS),
    layout::<u32, u64>(map::REASONS),
    layout::<u32, Bucket>(map::ANSWERS),
    layout::<u32, LoadedSettings>(map::SETTINGS),
];

/// The maps whose sizes come from the settings, and these sizes.
pub(super) fn sizes(settings: &Settings) -> [(&'static str, u32); 17] {
    let Settings { capacity, tables, .. } = settings;
    [
        (map::FRONTENDS4, capacity.frontends),
        (map::FRONTENDS6, capacity.frontends),
        (map::SLOTS, capacity.slots),
        (map::BACKENDS4, capacity.backends),
        (map::BACKENDS6, capacity.backends),
        (map::SOURCE_RANGES4, capacity.source_ranges),
        (map::SOURCE_RANGES6, capacity.source_ranges),
        (map::SERVICE_NAMES, capacity.services),
        (map::SERVICE_STATS, capacity.services),
        (map::FLOWS4, tables.flows),
        (map::FLOWS6, tables.flows),
        (map::SOCKETS4, tables.sockets),
        (map::SOCKETS6, tables.sockets),
        (map::AFFINITY4, tables.affinities),
        (map::AFFINITY6, tables.affinities),
        (map::FRAGMENTS4, tables.fragments),
        (map::FRAGMENTS6, tables.fragments),
    ]
}

/// The pinned maps whose sizes differ from the settings: name, size, wanted size. A map keeps its
/// size and contents while it is pinned.
pub(in crate::datapath) fn other_sizes(
    settings: &Settings,
    directory: &Path,
) -> Vec<(&'static str, u32, u32)> {
    let pinned = |(name, wanted)| {
        let info = MapInfo::from_pin(directory.join(name)).ok()?;
        Some((name, info.max_entries(), wanted))
    };
    let found = sizes(settings).into_iter().filter_map(pinned);
    found.filter(|(_, size, wanted)| size != wanted).collect()
}

/// Checks that pinned maps have the layout of this agent's `object`. Neither the kernel nor aya
/// checks this.
pub(super) fn check_layouts(object: &[u8], settings: &Settings, directory: &Path) -> Result<(), LoadError> {
    let object = aya_obj::Object::parse(object).map_err(|error| LoadError::Object(Box::new(error.into())))?;
    for Layout { name, key, value } in MAPS {
        let path = directory.join(name);
        if !path.exists() {
            continue;
        }
        let is_sized = sizes(settings).iter().any(|(sized, _)| *sized == name);
        let fits = |info: &MapInfo| {
            let definition = object.maps.get(name)?;
            let kind = info.map_type().ok()?;
            let is_array = matches!(kind, MapType::Array | MapType::PerCpuArray);
            // Programs assume the number of rows of such an array.
            let has_rows = !is_array || is_sized || info.max_entries() == definition.max_entries();
            let has_sizes = info.key_size() as usize == key && info.value_size() as usize == value;
            Some(kind as u32 == definition.map_type() && has_sizes && has_rows)
        };
        if !MapInfo::from_pin(&path).is_ok_and(|info| fits(&info) == Some(true)) {
            return Err(LoadError::Layout { path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::object::settings::{DEFAULT_CAPACITY, DEFAULT_TABLES};

    /// Counts the memory that the kernel allocates in advance, for arrays and LRU maps. Frontends
    /// and names are allocated on demand. An element of a hash has a header of 48 bytes
    /// (`struct htab_elem`, kernel/bpf/hashtab.c, Linux 6.18) and a 16-byte bucket. Values are
    /// rounded up to 8 bytes.
    #[test]
    fn maps_of_default_size_take_as_much_memory_as_the_readme_says() {
        let entries = |name| match name {
            map::SLOTS => DEFAULT_CAPACITY.slots,
            map::BACKENDS4 | map::BACKENDS6 => DEFAULT_CAPACITY.backends,
            map::FLOWS4 | map::FLOWS6 => DEFAULT_TABLES.flows,
            map::SOCKETS4 | map::SOCKETS6 => DEFAULT_TABLES.sockets,
            map::AFFINITY4 | map::AFFINITY6 => DEFAULT_TABLES.affinities,
            map::FRAGMENTS4 | map::FRAGMENTS6 => DEFAULT_TABLES.fragments,
            _ => 0,
        };
        let element = |key: usize, value: usize| match key {
            4 => value.next_multiple_of(8),
            key => 48 + key.next_multiple_of(8) + value.next_multiple_of(8) + 16,
        };
        let bytes: usize = MAPS
            .iter()
            .map(|map| entries(map.name) as usize * element(map.key, map.value))
            .sum();
        assert!(bytes < 190_000_000, "{bytes}");
        assert!(bytes > 170_000_000, "{bytes}: update the README");
    }
}
