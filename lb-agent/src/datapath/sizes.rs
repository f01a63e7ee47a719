//! Fill levels of the maps that packets and sockets fill.

use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, MapData};
use lb_common::map::MapSpec;
use lb_common::net::{Address4, Address6};

use super::family::MapFamily;
use super::pinned::open_with_size;
use crate::maps::MapError;

/// Name, entries and capacity of a map.
pub(super) type Size = (&'static str, usize, u32);

/// Name, entries and capacity of the maps that packets fill.
pub(crate) fn map_sizes(directory: &Path) -> Result<Vec<Size>, MapError> {
    let [flows4, sockets4, affinities4, fragments4] = sizes_of::<Address4>(directory)?;
    let [flows6, sockets6, affinities6, fragments6] = sizes_of::<Address6>(directory)?;
    let sizes = [
        ("flows IPv4", flows4),
        ("flows IPv6", flows6),
        ("sockets IPv4", sockets4),
        ("sockets IPv6", sockets6),
        ("affinities IPv4", affinities4),
        ("affinities IPv6", affinities6),
        ("fragments IPv4", fragments4),
        ("fragments IPv6", fragments6),
    ];
    Ok(sizes
        .map(|(name, (entries, capacity))| (name, entries, capacity))
        .into())
}

/// The maps of one IP version.
fn sizes_of<A: MapFamily>(directory: &Path) -> Result<[(usize, u32); 4], MapError> {
    Ok([
        size(directory, &A::FLOWS)?,
        size(directory, &A::SOCKETS)?,
        size(directory, &A::AFFINITY)?,
        size(directory, &A::FRAGMENTS)?,
    ])
}

fn size<K: Pod, V: Pod>(directory: &Path, spec: &MapSpec<K, V>) -> Result<(usize, u32), MapError> {
    let (map, capacity): (HashMap<MapData, K, V>, u32) = open_with_size(directory, spec)?;
    // The iteration restarts if its current key is evicted, so it needs a limit.
    let most = usize::try_from(capacity).unwrap_or(usize::MAX);
    Ok((map.keys().take(most).count(), capacity))
}
