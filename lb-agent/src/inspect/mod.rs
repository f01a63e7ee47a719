//! The kernel's rows as people name them and as the commands tell them.

mod rows;
mod service_ports;

pub(crate) use self::rows::{device_name, end};
pub use self::service_ports::{NamedPort, ServiceFilter, ServicePorts, UnknownService};
