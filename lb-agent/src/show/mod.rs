//! The commands that show the state in the kernel. They work with and without a running agent.

pub mod affinity;
pub mod connections;
mod services;
mod status;

pub use affinity::run as affinity;
pub use connections::run as connections;
pub use services::run as services;
pub use status::run as status;
