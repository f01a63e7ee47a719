//! Determines which network devices carry which programs, based on netlink.
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
pub use watch::{DeviceView, look, look_without_default_routes, watch};

/// Why the devices of this node cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket for devices, addresses and routes")]
    Open(#[source] std::io::Error),
    /// The socket that reports changes failed.
    #[error("cannot read device events from netlink")]
    Events(#[source] std::io::Error),
    /// The kernel refused a dump.
    #[error("cannot list the {what} of this network namespace through netlink")]
    Dump {
        /// The objects of the dump.
        what: &'static str,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
}
