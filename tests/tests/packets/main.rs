//! Tests of the kernel programs with single packets. All tests share one test binary: verifying the
//! programs takes longer than the tests, so it is done once.

mod affinity;
mod commands;
mod explain;
mod filters;
mod flows;
mod foreign;
mod forward;
mod fragments;
mod icmp;
mod keep_removed;
mod limits;
mod maps;
mod mutated;
mod own_ports;
mod passing;
mod programs;
mod reassembly;
mod reject;
mod same;
mod sctp;
mod segments;
mod senders;
mod service_cidrs;
mod source_ports;
mod source_ranges;
mod strangers;
mod translate;
