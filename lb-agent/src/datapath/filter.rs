//! The agent's side of the filters of destinations and of replies (see [`lb_common::filter`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::maps::{HashMap, MapData, MapError as KernelError};
use lb_common::filter::Position;
use lb_common::layout::{Flow, FlowKey, hook};
use lb_common::map;
use lb_common::net::{Address4, Address6, Port};
use nix::errno::Errno;

use super::batch::BatchArray;
use super::family::MapFamily;
use super::pinned::{kernel, open_batch, open_with_size};
use crate::maps::MapError;

/// The filter of destination addresses.
pub struct Filter(BatchArray<u64>);

impl Filter {
    /// Opens the filter pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, MapError> {
        open_batch(directory, &map::FILTER).map(Self)
    }

    /// Lets the programs look up packets to an address. The bit stays until [`Self::renew`] even if
    /// no frontend uses the address any more, because flows may still use it.
    pub(super) fn set(&self, address: IpAddr) -> Result<(), MapError> {
        let Position { word, bit } = position(address);
        let failed = |error| kernel(map::FILTER.name, format!("set the bit of {address}"), error);
        let old = self.0.read(word, 1).map_err(failed)?;
        match old.first() {
            Some(old) if old & bit == 0 => self.0.write(word, &[old | bit]).map_err(failed),
            _ => Ok(()),
        }
    }

    /// Clears all bits except those of these addresses.
    pub(super) fn renew(&self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), MapError> {
        renew(&self.0, map::FILTER.name, addresses.map(position)).map(drop)
    }
}

/// The filter of replies. Only one instance at a time may write to it.
pub(super) struct ReplyFilter {
    array: BatchArray<u64>,
    /// A copy of the array. Reading the array for each backend would take as long as writing the
    /// backend.
    words: Vec<u64>,
}

impl ReplyFilter {
    /// Opens the filter pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, MapError> {
        let array = open_batch(directory, &map::REPLY_FILTER)?;
        Ok(Self {
            words: read(&array, map::REPLY_FILTER.name)?,
            array,
        })
    }

    /// Lets the programs look up packets from these backends, which may be replies. The bits stay
    /// until [`Self::renew`] even if the backends are removed, because flows may still use them.
    pub(super) fn set(&mut self, backends: impl Iterator<Item = SocketAddr>) -> Result<(), MapError> {
        let mut changed = BTreeMap::new();
        for backend in backends {
            let Position { word, bit } = reply_position(backend);
            let Some(old) = self.words.get(word as usize) else {
                continue;
            };
            if old & bit == 0 {
                *changed.entry(word).or_insert(*old) |= bit;
            }
        }
        let (indices, words) = changed.iter().unzip();
        self.array.write_some(indices, words).map_err(|(_, error)| {
            kernel(
                map::REPLY_FILTER.name,
                format!("set {} bits", changed.len()),
                error,
            )
        })?;
        for (index, word) in changed {
            if let Some(known) = self.words.get_mut(index as usize) {
                *known = word;
            }
        }
        Ok(())
    }

    /// Clears all bits except those of these backends.
    pub(super) fn renew(&mut self, backends: impl Iterator<Item = SocketAddr>) -> Result<(), MapError> {
        self.words = renew(&self.array, map::REPLY_FILTER.name, backends.map(reply_position))?;
        Ok(())
    }
}

/// Addresses whose packets the programs must look up.
#[derive(Default)]
pub(super) struct Ends {
    /// Destination addresses of packets.
    pub(super) destinations: BTreeSet<IpAddr>,
    /// Addresses and ports that replies come from.
    pub(super) repliers: BTreeSet<SocketAddr>,
}

impl Ends {
    /// Adds the addresses of all flows in the maps pinned in `directory`.
    pub(super) fn add_flows(&mut self, directory: &Path) -> Result<(), MapError> {
        self.add_flows_of::<Address4>(directory)?;
        self.add_flows_of::<Address6>(directory)
    }

    fn add_flows_of<A: MapFamily>(&mut self, directory: &Path) -> Result<(), MapError> {
        let (flows, size): (HashMap<MapData, FlowKey<A>, Flow<A>>, u32) =
            open_with_size(directory, &A::FLOWS)?;
        // Packets add and remove rows during the iteration, so it may never end without a limit.
        let most = 2 * size as usize;
        for key in flows.keys().take(most) {
            match key {
                Ok(key) if key.hook != hook::EGRESS => {
                    self.destinations.insert(key.destination.into());
                }
                Ok(key) => {
                    let replier = SocketAddr::new(key.source.into(), key.source_port.get());
                    self.repliers.insert(replier);
                }
                Err(KernelError::KeyNotFound) => {}
                Err(error) => return Err(kernel(A::FLOWS.name, "read all keys".to_owned(), error)),
            }
        }
        Ok(())
    }
}

/// Sets these bits and clears all others. Writes only words that differ. Returns the new contents
/// of the array.
fn renew(
    array: &BatchArray<u64>,
    name: &'static str,
    positions: impl Iterator<Item = Position>,
) -> Result<Vec<u64>, MapError> {
    let present = read(array, name)?;
    let mut wanted = vec![0_u64; present.len()];
    for Position { word, bit } in positions {
        if let Some(word) = wanted.get_mut(word as usize) {
            *word |= bit;
        }
    }
    let differs = (0..).zip(wanted.iter().zip(&present));
    let differs = differs.filter(|(_, (wanted, present))| wanted != present);
    let (indices, words): (Vec<u32>, Vec<u64>) = differs.map(|(index, (wanted, _))| (index, *wanted)).unzip();
    let failed = |(_, error): (usize, Errno)| kernel(name, "renew its words".to_owned(), error);
    array.write_some(indices, words).map_err(failed)?;
    Ok(wanted)
}

fn read(array: &BatchArray<u64>, name: &'static str) -> Result<Vec<u64>, MapError> {
    let failed = |error| kernel(name, "read its words".to_owned(), error);
    array.read(0, array.length()).map_err(failed)
}

fn position(address: IpAddr) -> Position {
    match address {
        IpAddr::V4(address) => Position::of(Address4::from(address)),
        IpAddr::V6(address) => Position::of(Address6::from(address)),
    }
}

fn reply_position(backend: SocketAddr) -> Position {
    let port = Port::new(backend.port());
    match backend.ip() {
        IpAddr::V4(address) => Position::of_replies(Address4::from(address), port),
        IpAddr::V6(address) => Position::of_replies(Address6::from(address), port),
    }
}
