//! Which network devices carry which programs, as netlink tells.
//!
//! ```text
//! netlink -> events (what may have changed) -> dump, routes (what is) -> Snapshot -> classify
//!   -> View
//! ```
//! [`classify()`] is a pure function; only [`watch()`] talks to the kernel.

mod bare;
mod classify;
mod dump;
mod events;
mod routes;
mod snapshot;
mod watch;

pub use bare::{Bare, Why, bare};
pub use classify::{Attachment, DeviceArguments, DeviceOptions, REASSEMBLY_DEVICE, Role, classify};
pub(crate) use snapshot::first_global_address;
use snapshot::is_link_local;
pub use snapshot::{Address, DefaultRoute, Link, Snapshot, device_addresses, primary_addresses};
pub use watch::{View, look, look_without_default_routes, watch};

/// Why the devices of this node cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No netlink socket.
    #[error("cannot open a netlink socket for devices, addresses and routes")]
    Open(#[source] std::io::Error),
    /// The socket that reports changes failed.
    #[error("cannot read device events from netlink")]
    Events(#[source] std::io::Error),
    /// The kernel refused a dump.
    #[error("cannot list the {what} of this network namespace through netlink")]
    Dump {
        /// What was to be listed.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}
