//! Devices, their addresses and roles, and network namespaces.

use crate::net::{Address4, Address6};

/// A device through which packets to Pods of other nodes leave: value of the devices map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Device {
    /// The address that replaces a client's in IPv4. If it is unspecified, the device has none, and
    /// the node's address is used.
    pub address4: Address4,
    /// The address that replaces a client's in IPv6. If it is unspecified, the device has none, and
    /// the node's address is used.
    pub address6: Address6,
}

/// A link-layer address: key of the map of the node's link-layer addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct LinkAddress {
    /// The first four bytes, in memory order.
    pub start: u32,
    /// The last two bytes, then two zero bytes.
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

/// The addresses of frames that a device receives for the node: value of the map of devices'
/// link-layer addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct DeviceLinks {
    /// Index of the device; 0 in an unused row.
    pub index: u32,
    /// The device's own address, then that of the bridge or bond that it is a port of, or its own
    /// again without one.
    pub addresses: [LinkAddress; 2],
}

/// What is at the other end of a device: value of the map of devices' roles.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct DeviceRole {
    /// Index of the device; 0 in an unused row.
    pub index: u32,
    /// One of [`device_role`].
    pub role: u32,
    /// Index of the bridge or bond that the device is a port of, else its own index.
    pub master: u32,
}

/// Values of [`DeviceRole::role`].
pub mod device_role {
    /// A Pod.
    pub const POD: u32 = 1;
    /// The network.
    pub const NETWORK: u32 = 2;
}

/// Number of rows of the maps that describe devices.
pub const DEVICE_ROWS: u32 = 1_024;

/// The row of a device in such a map. If two devices share a row, one of them is missing: its
/// packets take the slower path.
#[inline(always)]
pub const fn device_row(index: u32) -> u32 {
    index % DEVICE_ROWS
}

/// Rows of [`crate::map::NAMESPACES`]. The agent writes half as many, so that they fit next to
/// those of the previous agent.
pub const NAMESPACE_ROWS: u32 = 8_192;

/// Owners of network namespaces other than the node's own.
pub mod namespace_role {
    /// A Pod.
    pub const POD: u32 = 1;
    /// Something else on this node. The owner of a namespace without a row is not known yet.
    pub const OTHER: u32 = 2;
}
