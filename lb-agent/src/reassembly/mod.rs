//! Uses the kernel's own reassembly for datagrams of which a later fragment arrives before the
//! first one. BPF programs cannot hold packets back.
//!
//! ```text
//! lb_tc_from_*          -> lbfrag0 ---- f0, a port of a bridge in hairpin mode
//! lb_tc_from_reassembly <- lbfrag0 ---- f0    netfilter reassembles the datagram,
//!                                             the bridge fragments it again
//! ```
//! `f0` and the bridge are in an unnamed network namespace. The agent holds it open, so the
//! namespace and `lbfrag0` disappear with the agent. Until the next agent starts, such datagrams
//! are lost. Two settings of the namespace bound the memory.

mod links;
mod namespace;

use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use crate::datapath::probe;
use crate::describe;
use crate::privileges::{self, Capability, PrivilegeError};

/// Needed to create a network namespace and to set it up.
const CAPABILITIES: [Capability; 3] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
];

/// Holds the namespace and its devices, which are removed when this is dropped.
#[derive(Debug)]
pub struct Reassembly {
    device: u32,
    _namespace: OwnedFd,
    _defragmentation: Vec<OwnedFd>,
}

impl Reassembly {
    /// Index of the device that leads to the namespace.
    pub fn device(&self) -> u32 {
        self.device
    }
}

/// Why the reassembly is not available.
#[derive(Debug, thiserror::Error)]
enum ReassemblyError {
    #[error("this kernel has no netfilter links with reassembly (needs Linux 6.6)")]
    Kernel,
    #[error(
        "bridges of this kernel do not pass packets to netfilter: load the module before the agent starts \
         (`modprobe br_netfilter`)"
    )]
    BridgeNetfilter,
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error("cannot {step}")]
    Step {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("the thread that sets up the reassembly of datagrams panicked")]
    Thread,
}

/// Sets up the reassembly. Must be called before the process drops the capabilities for it. If it
/// fails, logs the reason and returns `None`. The datapath then works without it.
pub fn start() -> Option<Reassembly> {
    match try_start() {
        Ok(reassembly) => Some(reassembly),
        Err(error) => {
            tracing::info!(
                "{}; until then datagrams whose later fragments arrive before the first one are lost",
                describe(&error)
            );
            None
        }
    }
}

fn try_start() -> Result<Reassembly, ReassemblyError> {
    if !probe::kernel_at_least(6, 6) {
        return Err(ReassemblyError::Kernel);
    }
    privileges::require("run", &CAPABILITIES)?;
    if !namespace::has_bridge_netfilter() {
        return Err(ReassemblyError::BridgeNetfilter);
    }
    // Namespaces are per thread.
    let thread = thread::Builder::new().name("reassembly".to_owned());
    let thread = thread
        .spawn(namespace::set_up)
        .map_err(failed("start a thread"))?;
    thread.join().map_err(|_| ReassemblyError::Thread)?
}

/// Describes the step that failed.
fn failed<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> ReassemblyError {
    |error| ReassemblyError::Step {
        step: step.into(),
        source: error.into(),
    }
}
