//! The agent: from Services and EndpointSlices to the BPF maps.
//!
//! ```text
//! source (kube | manifests) -> state -> model -> install -> maps (trait) -> datapath
//! ```
//! Each module knows only those to its right; `datapath` is the only one that names aya.

pub mod check;
pub mod cleanup;
pub mod cli;
pub mod conntrack;
pub mod controller;
pub mod datapath;
pub mod desired;
pub mod devices;
pub mod explain;
pub mod health;
pub mod install;
pub mod maglev;
pub mod maps;
pub mod metrics;
pub mod model;
pub mod mounts;
pub mod namespace;
mod netlink;
pub mod network;
pub mod object;
pub mod output;
pub mod ports;
pub mod privileges;
pub mod reassembly;
pub mod run;
pub mod show;
pub mod sockets;
pub mod source;
pub mod state;

/// An error with its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
