//! Parts of map rows in the form that the commands show.

use std::net::SocketAddr;

use lb_common::net::Port;

use crate::datapath::live::LiveFamily;

/// An address and port.
pub(crate) fn end<A: LiveFamily>(address: A, port: Port) -> SocketAddr {
    SocketAddr::new(address.into(), port.get())
}

/// The name of the device that currently has an index.
pub(crate) fn device_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok()
}
