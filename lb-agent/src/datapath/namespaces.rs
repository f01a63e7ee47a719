//! What the socket programs know about the network namespaces of this node.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{HashMap, MapData};
use lb_common::layout::{NAMESPACE_ROWS, namespace_role};
use lb_common::map;

use super::pinned::{deleted, kernel, open, read_all, settings};
use crate::maps::MapError;

/// The number of rows that an agent writes at most.
const ROWS: usize = NAMESPACE_ROWS as usize / 2;

/// The map of network namespaces.
pub struct NamespaceTable {
    map: HashMap<MapData, u64, u32>,
    /// A copy of its rows.
    rows: BTreeMap<u64, u32>,
}

/// How many network namespaces have each role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamespaceCounts {
    /// Namespaces whose connections are translated at their sockets.
    pub at_sockets: usize,
    /// Namespaces whose connections are left to the TC programs of the devices.
    pub left: usize,
}

impl NamespaceTable {
    /// Opens the map pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, MapError> {
        let map = open(directory, &map::NAMESPACES)?;
        let rows = read_all(&map, map::NAMESPACES.name)?;
        Ok(Self { map, rows })
    }

    /// Writes the rows that differ from `wanted`: roles ([`namespace_role`]) by cookie. If `all` is
    /// false, `wanted` is incomplete, and other rows stay while there is room. They stay valid
    /// because the kernel never reuses a cookie.
    pub(super) fn set(&mut self, wanted: BTreeMap<u64, u32>, all: bool) -> Result<(), MapError> {
        let wanted = fitting(wanted);
        for (cookie, role) in &wanted {
            if self.rows.get(cookie) != Some(role) {
                self.map.insert(cookie, role, 0).map_err(|error| {
                    kernel(map::NAMESPACES.name, format!("write namespace {cookie}"), error)
                })?;
                self.rows.insert(*cookie, *role);
            }
        }
        if all || self.rows.len() > ROWS {
            self.remove_others(&wanted)?;
        }
        Ok(())
    }

    fn remove_others(&mut self, wanted: &BTreeMap<u64, u32>) -> Result<(), MapError> {
        let others = self.rows.keys().filter(|cookie| !wanted.contains_key(cookie));
        let others: Vec<u64> = others.copied().collect();
        for cookie in others {
            deleted(self.map.remove(&cookie))
                .map_err(|error| kernel(map::NAMESPACES.name, format!("delete namespace {cookie}"), error))?;
            self.rows.remove(&cookie);
        }
        Ok(())
    }

    /// Counts the known namespaces. `None` if the kernel has no cookies to tell them apart. All
    /// namespaces count as Pods' then.
    pub fn counts(directory: &Path) -> Result<Option<NamespaceCounts>, MapError> {
        let settings = settings(directory)?;
        if settings.node_namespace == 0 && settings.only_node_sockets == 0 {
            return Ok(None);
        }
        let rows = Self::open(directory)?.rows;
        let at_sockets = rows.values().filter(|role| **role == namespace_role::POD).count();
        Ok(Some(NamespaceCounts {
            at_sockets,
            left: rows.len() - at_sockets,
        }))
    }
}

/// Selects the rows to write, those of Pods first. Connections of namespaces without a row are left
/// to the devices.
fn fitting(wanted: BTreeMap<u64, u32>) -> BTreeMap<u64, u32> {
    if wanted.len() <= ROWS {
        return wanted;
    }
    tracing::warn!(
        namespaces = wanted.len(),
        rows = ROWS,
        "too many network namespaces: connections of some are translated at their devices, not at their sockets"
    );
    let mut rows: Vec<(u64, u32)> = wanted.into_iter().collect();
    rows.sort_by_key(|(_, role)| *role != namespace_role::POD);
    rows.truncate(ROWS);
    rows.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_pods_get_rows_first() {
        let number = u64::from(NAMESPACE_ROWS);
        let role = |cookie: u64| match cookie % 4 {
            0 => namespace_role::POD,
            _ => namespace_role::OTHER,
        };
        let wanted: BTreeMap<u64, u32> = (0..number).map(|cookie| (cookie, role(cookie))).collect();
        let rows = fitting(wanted.clone());
        assert_eq!(rows.len(), ROWS);
        let is_pod = |(_, role): &(&u64, &u32)| **role == namespace_role::POD;
        let pods = rows.iter().filter(is_pod).count();
        assert_eq!(pods, wanted.iter().filter(is_pod).count());
        assert_eq!(fitting(rows.clone()), rows);
    }
}
