//! Keys and values of the BPF maps.
//!
//! Every type is `repr(C)`, has no hidden bytes (padding is a named field that is zero), and has a
//! size that is asserted below. The kernel compares keys byte by byte, and the agent reads what
//! another version of it wrote. Addresses and ports are in network byte order, everything else is
//! in host byte order.

mod device;
mod flow;
mod fragment;
mod service;
mod socket;

pub use device::*;
pub use flow::*;
pub use fragment::*;
pub use service::*;
pub use socket::*;

use crate::net::{Address4, Address6};

/// The version of these layouts. It is part of the pin path, so that an agent never reads maps of
/// another layout.
pub const LAYOUT_VERSION: u32 = 6;

/// Fails to compile if a type has another size or alignment.
macro_rules! assert_layout {
    ($($type:ty: $size:literal, align $align:literal;)*) => {
        $(const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == $align);)*
    };
}
pub(crate) use assert_layout;

assert_layout! {
    FrontendKey<Address4>: 8, align 4;
    FrontendKey<Address6>: 20, align 4;
    Frontend: 40, align 4;
    SourceRange<Address4>: 8, align 4;
    SourceRange<Address6>: 20, align 4;
    Slot: 8, align 4;
    Backend<Address4>: 16, align 4;
    Backend<Address6>: 28, align 4;
    FlowKey<Address4>: 16, align 4;
    FlowKey<Address6>: 40, align 4;
    Flow<Address4>: 36, align 4;
    Flow<Address6>: 60, align 4;
    SocketKey<Address4>: 16, align 4;
    SocketKey<Address6>: 28, align 4;
    Socket<Address4>: 20, align 4;
    Socket<Address6>: 32, align 4;
    AffinityKey<Address4>: 16, align 4;
    AffinityKey<Address6>: 28, align 4;
    Affinity: 16, align 8;
    FragmentKey<Address4>: 16, align 4;
    FragmentKey<Address6>: 40, align 4;
    Fragment: 12, align 4;
    Device: 20, align 4;
    DeviceRole: 12, align 4;
    LinkAddress: 8, align 4;
    DeviceLinks: 20, align 4;
    ServiceName: 200, align 1;
    ServiceStats: 16, align 8;
}
