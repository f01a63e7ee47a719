//! The names of the maps that exist once for each IP version.

use std::net::IpAddr;

use lb_common::layout::map;
use lb_common::net::{Address4, Address6};
use lb_common::pod::PlainAddress;

/// An address of one IP version, with the names of that version's maps.
pub trait MapFamily: PlainAddress + Into<IpAddr> {
    /// Frontends.
    const FRONTENDS: &'static str;
    /// Backends.
    const BACKENDS: &'static str;
    /// Flows.
    const FLOWS: &'static str;
    /// Translated sockets.
    const SOCKETS: &'static str;
    /// The backends of clients with session affinity.
    const AFFINITY: &'static str;
    /// Source ranges.
    const SOURCE_RANGES: &'static str;
    /// Ports of fragmented datagrams.
    const FRAGMENTS: &'static str;
}

impl MapFamily for Address4 {
    const FRONTENDS: &'static str = map::FRONTENDS4;
    const BACKENDS: &'static str = map::BACKENDS4;
    const FLOWS: &'static str = map::FLOWS4;
    const SOCKETS: &'static str = map::SOCKETS4;
    const AFFINITY: &'static str = map::AFFINITY4;
    const SOURCE_RANGES: &'static str = map::SOURCE_RANGES4;
    const FRAGMENTS: &'static str = map::FRAGMENTS4;
}

impl MapFamily for Address6 {
    const FRONTENDS: &'static str = map::FRONTENDS6;
    const BACKENDS: &'static str = map::BACKENDS6;
    const FLOWS: &'static str = map::FLOWS6;
    const SOCKETS: &'static str = map::SOCKETS6;
    const AFFINITY: &'static str = map::AFFINITY6;
    const SOURCE_RANGES: &'static str = map::SOURCE_RANGES6;
    const FRAGMENTS: &'static str = map::FRAGMENTS6;
}
