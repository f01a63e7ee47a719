//! Opens and reads pinned maps, and describes errors.

use std::collections::BTreeMap;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, DevMap, HashMap, LpmTrie, Map, MapData, MapError as KernelError, PerCpuArray};
use aya::sys::SyscallError;
use lb_common::map::{self, MapSpec, PrefixKey};
use lb_common::settings::LoadedSettings;
use nix::errno::Errno;

use super::batch::BatchArray;
use crate::maps::MapError;

/// A kind of map whose rows have keys of type `K` and values of type `V`.
pub(super) trait MapOf<K, V>: TryFrom<Map, Error = KernelError> {}

impl<V: Pod> MapOf<u32, V> for Array<MapData, V> {}
impl<V: Pod> MapOf<u32, V> for PerCpuArray<MapData, V> {}
impl<K: Pod, V: Pod> MapOf<K, V> for HashMap<MapData, K, V> {}
impl<K: Pod, V: Pod> MapOf<PrefixKey<K>, V> for LpmTrie<MapData, K, V> {}
impl MapOf<u32, [u32; 2]> for DevMap<MapData> {}

/// Opens a map that is pinned in `directory`.
pub(super) fn open<K, V, T: MapOf<K, V>>(directory: &Path, spec: &MapSpec<K, V>) -> Result<T, MapError> {
    typed(open_any(directory, spec.name)?, spec.name)
}

/// Like [`open`]. Also returns the map's capacity in entries.
pub(super) fn open_with_size<K, V, T: MapOf<K, V>>(
    directory: &Path,
    spec: &MapSpec<K, V>,
) -> Result<(T, u32), MapError> {
    let map = open_any(directory, spec.name)?;
    let size = max_entries(&map, spec.name)?;
    Ok((typed(map, spec.name)?, size))
}

/// Like [`open`], for an array that is read and written in bulk.
pub(super) fn open_batch<T: Pod + Default>(
    directory: &Path,
    spec: &MapSpec<u32, T>,
) -> Result<BatchArray<T>, MapError> {
    let name = spec.name;
    let wrong = || KernelError::InvalidMapType { map_type: 0 };
    let array = match open_any(directory, name)? {
        Map::Array(data) => BatchArray::new(data),
        _ => None,
    };
    array.ok_or_else(|| kernel(name, "use it as the array it should be".to_owned(), wrong()))
}

/// The capacity, in entries, of a map that is pinned in `directory`.
pub(super) fn size<K, V>(directory: &Path, spec: &MapSpec<K, V>) -> Result<u32, MapError> {
    max_entries(&open_any(directory, spec.name)?, spec.name)
}

/// The settings with which the programs were loaded whose maps are pinned in `directory`.
pub(super) fn settings(directory: &Path) -> Result<LoadedSettings, MapError> {
    let settings: Array<_, LoadedSettings> = open(directory, &map::SETTINGS)?;
    settings
        .get(&0, 0)
        .map_err(|error| kernel(map::SETTINGS.name, "read the settings".to_owned(), error))
}

/// All rows of a map.
pub(super) fn read_all<K: Pod + Ord, V: Pod>(
    rows: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, MapError> {
    rows.iter().collect::<Result<_, _>>().map_err(unread(name))
}

/// Returns the error for a map whose rows cannot be read.
pub(super) fn unread(name: &'static str) -> impl Fn(KernelError) -> MapError {
    move |error| kernel(name, "read all rows".to_owned(), error)
}

/// The error for an operation that the kernel refused.
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

/// The result of a deletion. Deleting a row that does not exist is not an error.
pub(super) fn deleted(result: Result<(), KernelError>) -> Result<(), KernelError> {
    match result {
        Err(KernelError::KeyNotFound) => Ok(()),
        Err(KernelError::SyscallError(error)) if is(&error, Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// Whether a system call failed with this errno.
pub(super) fn is(error: &SyscallError, errno: Errno) -> bool {
    error.io_error.raw_os_error() == Some(errno as i32)
}

fn open_any(directory: &Path, name: &'static str) -> Result<Map, MapError> {
    let path = directory.join(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .map_err(|error| kernel(name, format!("open the pinned map {}", path.display()), error))
}

fn typed<T: TryFrom<Map, Error = KernelError>>(map: Map, name: &'static str) -> Result<T, MapError> {
    T::try_from(map).map_err(|error| kernel(name, "use it as the kind of map it should be".to_owned(), error))
}

fn max_entries(map: &Map, name: &'static str) -> Result<u32, MapError> {
    let failed = |error| kernel(name, "read its size".to_owned(), error);
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)) = map
    else {
        return Err(failed(KernelError::InvalidMapType { map_type: 0 }));
    };
    Ok(data.info().map_err(failed)?.max_entries())
}
