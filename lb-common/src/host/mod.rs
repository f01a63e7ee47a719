//! The decision code's environment on the host: packets of plain bytes and tables of plain maps.

mod bytes;
mod tables;

pub use bytes::{Bytes, HOP, HostRoute, SenderNetwork};
pub use tables::{HostTables, only_ports};
