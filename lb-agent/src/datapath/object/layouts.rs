//! The maps of the programs: their sizes, and whether pinned maps are compatible.

use std::path::Path;

use aya::maps::{MapInfo, MapType};
use lb_common::map::{self, FamilySpecs as _, MapLayout};
use lb_common::net::{Address4, Address6};

use super::error::LoadError;
use super::settings::Settings;

/// The maps whose sizes come from the settings, and these sizes.
pub(super) fn sizes(settings: &Settings) -> [(&'static str, u32); 17] {
    let Settings { capacity, tables, .. } = settings;
    [
        (Address4::FRONTENDS.name, capacity.frontends),
        (Address6::FRONTENDS.name, capacity.frontends),
        (map::SLOTS.name, capacity.slots),
        (Address4::BACKENDS.name, capacity.backends),
        (Address6::BACKENDS.name, capacity.backends),
        (Address4::SOURCE_RANGES.name, capacity.source_ranges),
        (Address6::SOURCE_RANGES.name, capacity.source_ranges),
        (map::SERVICE_NAMES.name, capacity.services),
        (map::SERVICE_STATS.name, capacity.services),
        (Address4::FLOWS.name, tables.flows),
        (Address6::FLOWS.name, tables.flows),
        (Address4::SOCKETS.name, tables.sockets),
        (Address6::SOCKETS.name, tables.sockets),
        (Address4::AFFINITY.name, tables.affinities),
        (Address6::AFFINITY.name, tables.affinities),
        (Address4::FRAGMENTS.name, tables.fragments),
        (Address6::FRAGMENTS.name, tables.fragments),
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
    for MapLayout {
        name,
        key_size,
        value_size,
    } in map::ALL
    {
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
            let has_sizes = info.key_size() as usize == key_size && info.value_size() as usize == value_size;
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

    /// Counts the memory that the kernel allocates in advance, for arrays and LRU maps. Frontends
    /// and names are allocated on demand. An element of a hash has a header of 48 bytes
    /// (`struct htab_elem`, <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/hashtab.c>)
    /// and a 16-byte bucket. Values are rounded up to 8 bytes.
    #[test]
    fn maps_of_default_size_take_as_much_memory_as_the_readme_says() {
        // Hash maps that are not preallocated grow as they are used.
        let grows = [
            Address4::FRONTENDS.name,
            Address6::FRONTENDS.name,
            Address4::SOURCE_RANGES.name,
            Address6::SOURCE_RANGES.name,
            map::SERVICE_NAMES.name,
            map::SERVICE_STATS.name,
        ];
        let sizes = sizes(&Settings::default());
        let entries = |name| {
            let sized = sizes
                .iter()
                .find(|(sized, _)| *sized == name && !grows.contains(sized));
            sized.map_or(0, |(_, entries)| *entries)
        };
        let element = |key: usize, value: usize| match key {
            4 => value.next_multiple_of(8),
            key => 48 + key.next_multiple_of(8) + value.next_multiple_of(8) + 16,
        };
        let bytes: usize = map::ALL
            .iter()
            .map(|map| entries(map.name) as usize * element(map.key_size, map.value_size))
            .sum();
        assert!(bytes < 190_000_000, "{bytes}");
        assert!(bytes > 170_000_000, "{bytes}: update the README");
    }
}
