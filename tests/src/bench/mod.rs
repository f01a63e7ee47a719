//! The benchmarks: the cost of a packet at each program, the agent's cost of following the API, and
//! the performance of connections.

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
