//! Tests of the kernel programs with single packets. All tests share one test binary: verifying the
//! programs takes longer than the tests, so it is done once.

mod affinity;
mod commands;
mod explain;
mod filters;
mod flows;
mod foreign;
mod forged_packets;
mod forward;
mod fragments;
mod hook_agreement;
mod icmp;
mod keep_removed;
mod limits;
mod maps;
mod node_port_source_ports;
mod passing;
mod programs;
mod random_packets;
mod reassembly;
mod reject;
mod sctp;
mod segments;
mod service_cidrs;
mod source_addresses;
mod source_ports;
mod source_ranges;
mod translate;
