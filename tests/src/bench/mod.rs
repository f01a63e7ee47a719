//! The benchmarks: what a packet costs at each program, what the agent needs to follow the API, and
//! what connections notice of all that.

pub mod chart;
pub mod control_plane;
pub mod end_to_end;
mod filter;
pub mod limit;
pub mod load;
mod objects;
pub mod packets;
mod place;
mod results;
mod rules;
pub mod statistics;

pub use place::Place;
pub use results::{Delivery, Results};
