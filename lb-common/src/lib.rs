//! What the kernel programs and the agent share: the layout of the maps, and the code that decides about a packet.
//!
//! Nothing in here does I/O, asks for the time or draws a random number: what a decision needs from outside comes
//! through the traits [`packet::Packet`] and [`tables::Tables`]. So the same code runs in the kernel, under
//! `cargo test` and in the agent.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod layout;
pub mod reason;
