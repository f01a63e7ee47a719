//! Names of map rows for the command line and the commands' output.

mod rows;
mod service_ports;

pub(crate) use self::rows::{device_name, end};
pub use self::service_ports::{NamedPort, ServiceFilter, ServicePorts, UnknownService};
