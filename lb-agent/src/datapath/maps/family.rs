//! The maps of Services of one IP version.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, MapData, MapError as KernelError};
use lb_common::layout::{self, BackendId, Frontend, SourceRange};
use nix::errno::Errno;

use crate::datapath::batch::BatchArray;
use crate::datapath::convert::{backend, frontend_key, frontend_row, range_key, source_range};
use crate::datapath::family::MapFamily;
use crate::datapath::pinned::{deleted, is, kernel, open, open_batch, unread};
use crate::maps::{Backend, FrontendKey, MapError};
use crate::network::Cidr;

/// The maps of one IP version.
pub(super) struct FamilyMaps<A: MapFamily> {
    frontends: HashMap<MapData, layout::FrontendKey<A>, Frontend>,
    backends: BatchArray<layout::Backend<A>>,
    source_ranges: LpmTrie<MapData, SourceRange<A>, u32>,
}

impl<A: MapFamily> FamilyMaps<A> {
    /// Opens the maps pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            frontends: open(directory, &A::FRONTENDS)?,
            backends: open_batch(directory, &A::BACKENDS)?,
            source_ranges: open(directory, &A::SOURCE_RANGES)?,
        })
    }

    /// The number of backend rows.
    pub(super) fn backend_capacity(&self) -> u32 {
        self.backends.length()
    }

    /// Writes a frontend row. `address` is the address of `key`. `capacity` is the number in the
    /// error about a full map.
    pub(super) fn set_frontend(
        &mut self,
        key: &FrontendKey,
        address: A,
        value: &Frontend,
        capacity: u32,
    ) -> Result<(), MapError> {
        let result = self.frontends.insert(frontend_row(key, address), value, 0);
        result.map_err(|error| match &error {
            KernelError::SyscallError(error) if is(error, Errno::E2BIG) => MapError::Full {
                map: A::FRONTENDS.name,
                capacity,
                flag: "--max-frontends",
            },
            _ => kernel(A::FRONTENDS.name, format!("write frontend {key}"), error),
        })
    }

    /// Deletes a frontend row. `address` is the address of `key`.
    pub(super) fn delete_frontend(&mut self, key: &FrontendKey, address: A) -> Result<(), MapError> {
        deleted(self.frontends.remove(&frontend_row(key, address)))
            .map_err(|error| kernel(A::FRONTENDS.name, format!("delete frontend {key}"), error))
    }

    /// All frontend rows.
    pub(super) fn frontends(&self) -> Result<BTreeMap<FrontendKey, Frontend>, MapError> {
        let mut frontends = BTreeMap::new();
        for row in self.frontends.iter() {
            let (key, value) = row.map_err(unread(A::FRONTENDS.name))?;
            frontends.extend(frontend_key(key).map(|key| (key, value)));
        }
        Ok(frontends)
    }

    /// Writes backend rows. If this fails, returns how many of them, from the first on, are
    /// written.
    pub(super) fn set_backends(
        &self,
        rows: Vec<(BackendId, layout::Backend<A>)>,
    ) -> Result<(), (usize, Errno)> {
        let (ids, rows) = rows.into_iter().unzip();
        self.backends.write_some(ids, rows)
    }

    /// All backend rows that were ever written. They are read in batches.
    pub(super) fn backends(&self) -> Result<BTreeMap<BackendId, Backend>, MapError> {
        const AT_ONCE: u32 = 4096;
        let mut backends = BTreeMap::new();
        for base in (0..self.backends.length()).step_by(AT_ONCE as usize) {
            let length = AT_ONCE.min(self.backends.length() - base);
            let failed = |error| {
                kernel(
                    A::BACKENDS.name,
                    format!("read {length} rows from {base} on"),
                    error,
                )
            };
            let rows = (base..).zip(self.backends.read(base, length).map_err(failed)?);
            backends.extend(rows.filter_map(|(id, row)| Some((id, backend(row)?))));
        }
        Ok(backends)
    }

    /// Adds a network to a set of source ranges. `address` is the address of `network`. `capacity`
    /// is the number in the error about a full map.
    pub(super) fn add_source_range(
        &mut self,
        set: u32,
        network: &Cidr,
        address: A,
        capacity: u32,
    ) -> Result<(), MapError> {
        let result = self.source_ranges.insert(&range_key(set, network, address), 1, 0);
        result.map_err(|error| match &error {
            KernelError::SyscallError(error) if is(error, Errno::ENOSPC) => MapError::Full {
                map: A::SOURCE_RANGES.name,
                capacity,
                flag: "--max-source-ranges",
            },
            _ => kernel(
                A::SOURCE_RANGES.name,
                format!("add {network} to set {set}"),
                error,
            ),
        })
    }

    /// Removes a network from a set. `address` is the address of `network`.
    pub(super) fn delete_source_range(
        &mut self,
        set: u32,
        network: &Cidr,
        address: A,
    ) -> Result<(), MapError> {
        deleted(self.source_ranges.remove(&range_key(set, network, address))).map_err(|error| {
            kernel(
                A::SOURCE_RANGES.name,
                format!("delete {network} of set {set}"),
                error,
            )
        })
    }

    /// The networks of all sets.
    pub(super) fn source_ranges(&self) -> Result<BTreeSet<(u32, Cidr)>, MapError> {
        let mut ranges = BTreeSet::new();
        for key in self.source_ranges.keys() {
            ranges.extend(source_range(&key.map_err(unread(A::SOURCE_RANGES.name))?));
        }
        Ok(ranges)
    }
}
