//! Devices, their addresses and roles, and network namespaces.

use crate::net::{Address4, Address6};

/// A device that packets to Pods of other nodes leave by: value of the devices map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Device {
    /// The address that replaces a client's in IPv4; unspecified if the device has none and the
    /// node's is used.
    pub address4: Address4,
    /// The address that replaces a client's in IPv6; unspecified if the device has none and the
    /// node's is used.
    pub address6: Address6,
}

/// A link-layer address: key of the map of the node's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct LinkAddress {
    /// Its first four bytes as they follow each other in memory.
    pub start: u32,
    /// The other two, and two of zero.
    pub end: u32,
}

impl From<[u8; 6]> for LinkAddress {
    fn from([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self {
            start: u32::from_ne_bytes([a, b, c, d]),
            end: u32::from_ne_bytes([e, f, 0, 0]),
        }
    }
}

/// Where frames go that are this node's: value of the map of devices' link-layer addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct DeviceLinks {
    /// Index of the device; 0 in a row of none.
    pub index: u32,
    /// The device's own address, and that of the bridge or bond that it is a port of; the same
    /// again without one.
    pub addresses: [LinkAddress; 2],
}

/// What is at the other end of a device: value of the map of devices' roles.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct DeviceRole {
    /// Index of the device; 0 in a row of none.
    pub index: u32,
    /// One of [`device_role`].
    pub role: u32,
    /// Index of the bridge or bond that it is a port of; else its own.
    pub master: u32,
}

/// Values of [`DeviceRole::role`].
pub mod device_role {
    /// A Pod.
    pub const POD: u32 = 1;
    /// The network.
    pub const NETWORK: u32 = 2;
}

/// Rows of the maps that say which devices have a quality.
pub const DEVICE_ROWS: u32 = 1_024;

/// The row of a device in such a map. Where two devices share one, the other goes without: its
/// packets take the longer way.
#[inline(always)]
pub const fn device_row(index: u32) -> u32 {
    index % DEVICE_ROWS
}

/// Rows of [`crate::map::NAMESPACES`]: the agent writes half as many, so that they fit beside those
/// of the agent before it.
pub const NAMESPACE_ROWS: u32 = 8_192;

/// Whose a network namespace is that is not the node's own.
pub mod namespace_role {
    /// A Pod's.
    pub const POD: u32 = 1;
    /// That of something else on this node. Without a row nothing is known of it yet.
    pub const OTHER: u32 = 2;
}
