//! Types that aya may read from maps and write to them.
#![expect(
    unsafe_code,
    reason = "aya requires the promise that these types are plain bytes"
)]

use crate::address::Address;
use crate::budget::Bucket;
use crate::cidr::ServiceCidrs;
use crate::layout::{
    Affinity, AffinityKey, Backend, Device, DeviceLinks, DeviceRole, Flow, FlowKey, Fragment, FragmentKey,
    Frontend, FrontendKey, LinkAddress, ServiceName, ServiceStats, Slot, Socket, SocketKey, SourceRange,
};
use crate::net::{Address4, Address6};
use crate::settings::LoadedSettings;

/// An address type that rows are generic over, so that code that reads maps can be generic too.
///
/// # Safety
/// The rows listed below have no padding with this address type: it consists of whole, aligned
/// words.
pub unsafe trait PlainAddress: Address + aya::Pod {}

// SAFETY: the sizes asserted in `layout` leave no room for padding.
unsafe impl PlainAddress for Address4 {}
// SAFETY: as above.
unsafe impl PlainAddress for Address6 {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        // SAFETY: `repr(C)` structs of integers. The sizes asserted in their modules leave no room
        // for padding.
        $(unsafe impl aya::Pod for $type {})*
    };
}

macro_rules! plain_of {
    ($($row:ident),* $(,)?) => {
        // SAFETY: `repr(C)` structs of integers and an address, which by its contract causes no
        // padding.
        $(unsafe impl<A: PlainAddress> aya::Pod for $row<A> {})*
    };
}

plain!(
    Address4,
    Address6,
    Frontend,
    Slot,
    Affinity,
    Fragment,
    Device,
    DeviceRole,
    LinkAddress,
    DeviceLinks,
    ServiceName,
    ServiceStats,
    LoadedSettings,
    Bucket,
    ServiceCidrs,
);
plain_of!(
    FrontendKey,
    Backend,
    FlowKey,
    Flow,
    SocketKey,
    Socket,
    SourceRange,
    AffinityKey,
    FragmentKey,
);
