//! Datagrams that travel in fragments.

use crate::net::Port;

/// A datagram that travels in fragments: key of the fragments maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// The identification of the datagram in header byte order. In IPv4 it has 16 bits.
    pub identification: u32,
    /// One of [`crate::net::protocol`].
    pub protocol: u8,
    /// One of [`super::hook`].
    pub hook: u8,
    /// Zero.
    pub pad: u16,
}

/// The ports of a fragmented datagram: value of the fragments maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Fragment {
    /// Source port; 0 unless [`fragment_state::PORTS`].
    pub source_port: Port,
    /// Destination port; 0 unless [`fragment_state::PORTS`].
    pub destination_port: Port,
    /// When the fragment for which the row was written was seen, in ticks (see
    /// [`crate::tables::Tables::now`]).
    pub seen: u32,
    /// One of [`fragment_state`].
    pub state: u32,
}

/// Values of [`Fragment::state`].
pub mod fragment_state {
    /// Nothing is known of the datagram. No row has this state.
    pub const UNKNOWN: u32 = 0;
    /// The first fragment was seen, and the row has its ports.
    pub const PORTS: u32 = 1;
    /// A later fragment came first: all fragments are handed to the kernel's own reassembly.
    pub const DETOURED: u32 = 2;
    /// The first fragment was seen, and its ports cannot be read.
    pub const FOREIGN: u32 = 3;
}

/// The first bytes of the link-layer address that a fragment has on its way to the kernel's own
/// reassembly and back. The index of the device through which it came in follows, in network byte
/// order.
pub const DETOUR_LINK: [u8; 2] = [0x02, 0xfa];
