//! Code that the kernel programs and the agent share: the layout of the maps, and the code that
//! decides what happens to a packet.
//!
//! ```text
//! parse (headers to Parsed) -> ingress | egress (what to do) -> answer (RST, ICMP)
//! socket (connect, send, receive)
//! packet (trait: bytes)          tables (trait: maps, clock, random numbers)
//! ```
//! Nothing in this crate does I/O, reads a clock or draws a random number. A decision gets
//! everything outside the packet through the traits [`packet::Packet`] and [`tables::Tables`]. So
//! the same code runs in the kernel (XDP, TC, cgroup), under `cargo test` ([`host`]) and in the
//! agent.
#![no_std]
#![expect(
    clippy::cast_possible_truncation,
    reason = "header lengths are `usize` constants in network-types, and sums and random numbers are truncated on purpose"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
extern crate std;

pub mod address;
pub mod answer;
pub mod budget;
pub mod checksum;
pub mod choose;
pub mod cidr;
pub mod connection;
pub mod decide;
mod egress;
pub mod filter;
pub mod flow;
pub mod forward;
mod fragment;
pub mod hash;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
mod icmp;
pub mod ingress;
pub mod layout;
pub mod map;
pub mod net;
mod open;
pub mod packet;
pub mod parse;
#[cfg(feature = "aya")]
pub mod pod;
pub mod reason;
pub mod settings;
pub mod socket;
mod source_port;
mod step;
pub mod tables;
mod verifier;
