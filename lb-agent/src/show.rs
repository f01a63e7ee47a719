//! `lb-agent status` and `lb-agent services`: what the kernel holds, whether an agent is running or not.

mod services;
mod status;

pub use services::run as services;
pub use status::run as status;
