//! The commands that show what the kernel holds, whether an agent is running or not.

pub mod affinity;
pub mod connections;
mod services;
mod status;

pub use affinity::run as affinity;
pub use connections::run as connections;
pub use services::run as services;
pub use status::run as status;
