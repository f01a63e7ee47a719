//! The benchmarks: what a packet costs at each program, and what the agent needs to follow the API.

pub mod control_plane;
mod filter;
mod objects;
pub mod packets;
mod place;
mod rules;
mod statistics;

pub use place::Place;
