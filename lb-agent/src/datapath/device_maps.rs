//! Maps that are set as a whole whenever the devices change. Only differences are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, HashMap, MapData};
use lb_common::layout::device_row;
use lb_common::map::MapSpec;

use super::pinned::{kernel, open};
use crate::maps::MapError;

/// A map with rows for some of the devices. All other rows contain the default.
pub(super) struct DeviceRows<T: Pod> {
    name: &'static str,
    map: Array<MapData, T>,
    /// The rows of devices.
    rows: BTreeMap<u32, T>,
}

impl<T: Pod + Default + PartialEq> DeviceRows<T> {
    /// Opens the map pinned in `directory`.
    pub(super) fn open(directory: &Path, spec: &MapSpec<u32, T>) -> Result<Self, MapError> {
        let name = spec.name;
        let map: Array<_, T> = open(directory, spec)?;
        let mut rows = BTreeMap::new();
        for (row, value) in (0..).zip(map.iter()) {
            let value = value.map_err(|error| kernel(name, format!("read row {row}"), error))?;
            if value != T::default() {
                rows.insert(row, value);
            }
        }
        Ok(Self { name, map, rows })
    }

    /// The rows of devices.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.rows.values()
    }

    /// Writes what differs.
    pub(super) fn set(&mut self, devices: impl Iterator<Item = (u32, T)>) -> Result<(), MapError> {
        let wanted = devices.map(|(index, value)| (device_row(index), value)).collect();
        for (row, value) in changed_rows(&self.rows, &wanted) {
            self.map
                .set(row, value, 0)
                .map_err(|error| kernel(self.name, format!("write row {row}"), error))?;
        }
        self.rows = wanted;
        Ok(())
    }
}

/// A map that is used as a set of keys.
pub(super) struct KeySet<K: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, u32>,
    keys: BTreeSet<K>,
}

impl<K: Pod + Ord + Debug> KeySet<K> {
    /// Opens the map pinned in `directory`.
    pub(super) fn open(directory: &Path, spec: &MapSpec<K, u32>) -> Result<Self, MapError> {
        let name = spec.name;
        let map: HashMap<_, K, u32> = open(directory, spec)?;
        let keys = map.keys().collect::<Result<_, _>>();
        let keys = keys.map_err(|error| kernel(name, "read all keys".to_owned(), error))?;
        Ok(Self { name, map, keys })
    }

    /// Writes what differs.
    pub(super) fn set(&mut self, wanted: BTreeSet<K>) -> Result<(), MapError> {
        for key in wanted.difference(&self.keys) {
            self.map
                .insert(key, 1, 0)
                .map_err(|error| kernel(self.name, format!("write {key:?}"), error))?;
        }
        for key in self.keys.difference(&wanted) {
            self.map
                .remove(key)
                .map_err(|error| kernel(self.name, format!("delete {key:?}"), error))?;
        }
        self.keys = wanted;
        Ok(())
    }
}

/// The rows to write to get from `known` to `wanted`. Rows of devices that no longer have one are
/// set to the default.
fn changed_rows<T: Copy + Default + PartialEq>(
    known: &BTreeMap<u32, T>,
    wanted: &BTreeMap<u32, T>,
) -> Vec<(u32, T)> {
    let gone = known.keys().filter(|row| !wanted.contains_key(row));
    let gone = gone.map(|row| (*row, T::default()));
    let new = wanted.iter().filter(|(row, value)| known.get(row) != Some(value));
    gone.chain(new.map(|(row, value)| (*row, *value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::layout::DEVICE_ROWS;

    #[test]
    fn only_rows_that_differ_are_written() {
        let of_row_3 = 3 + DEVICE_ROWS;
        assert_eq!(device_row(of_row_3), 3);
        let known = BTreeMap::from([(1, 1), (2, 2), (3, 3)]);
        let wanted = BTreeMap::from([(1, 1), (3, of_row_3), (4, 4)]);
        assert_eq!(changed_rows(&known, &wanted), [(2, 0), (3, of_row_3), (4, 4)]);
        assert_eq!(changed_rows(&wanted, &wanted), []);
    }
}
