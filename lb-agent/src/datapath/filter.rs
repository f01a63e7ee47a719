//! The filter of destination addresses (see [`lb_common::filter`]), as the agent keeps it.

use std::net::IpAddr;
use std::path::Path;

use aya::maps::{Array, MapData};
use lb_common::filter::{self, Position};
use lb_common::layout::{Address4, Address6, map};

use super::maps::{kernel, open, typed};
use crate::maps::MapError;

/// The filter of destination addresses.
pub(super) struct Filter(Array<MapData, u64>);

impl Filter {
    /// Opens the filter pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self(typed(open(directory, map::FILTER)?, map::FILTER)?))
    }

    /// Lets the programs look up packets to an address. The bit stays when nobody needs it any more, for the sake of the
    /// address's flows, until [`Self::renew`].
    pub(super) fn set(&mut self, address: IpAddr) -> Result<(), MapError> {
        let Position { word, bit } = position(address);
        let failed = |error| kernel(map::FILTER, format!("set the bit of {address}"), error);
        let old = self.0.get(&word, 0).map_err(failed)?;
        if old & bit == 0 {
            self.0.set(word, old | bit, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Clears the bits of all addresses but these.
    pub(super) fn renew(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), MapError> {
        let mut wanted = vec![0_u64; filter::WORDS as usize];
        for address in addresses {
            let Position { word, bit } = position(address);
            if let Some(word) = wanted.get_mut(word as usize) {
                *word |= bit;
            }
        }
        for (index, wanted) in (0..filter::WORDS).zip(wanted) {
            let failed = |error| kernel(map::FILTER, format!("renew word {index}"), error);
            if self.0.get(&index, 0).map_err(failed)? != wanted {
                self.0.set(index, wanted, 0).map_err(failed)?;
            }
        }
        Ok(())
    }
}

fn position(address: IpAddr) -> Position {
    match address {
        IpAddr::V4(address) => Position::of(Address4::from(address)),
        IpAddr::V6(address) => Position::of(Address6::from(address)),
    }
}
