//! Parts of rows as the commands show them.

use std::net::SocketAddr;

use lb_common::layout::backend_state;
use lb_common::net::Port;

use crate::datapath::live::LiveFamily;
use crate::maps::BackendState;

/// The state of a backend row.
pub(crate) fn state_of(state: u8) -> BackendState {
    match state {
        backend_state::ACTIVE => BackendState::Active,
        backend_state::DRAINING => BackendState::Draining,
        backend_state::ABSENT => BackendState::Absent,
        _ => BackendState::Gone,
    }
}

/// An address and port.
pub(crate) fn end<A: LiveFamily>(address: A, port: Port) -> SocketAddr {
    SocketAddr::new(address.into(), port.get())
}

/// The name of the device that has an index now.
pub(crate) fn device_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok()
}
