//! The kernel's own reassembly of datagrams, for those whose later fragment arrives before the
//! first one: no program can hold a packet.
//!
//! ```text
//! lb_tc_from_*          -> lbfrag0 ---- f0, a port of a bridge in hairpin mode
//! lb_tc_from_reassembly <- lbfrag0 ---- f0    netfilter reassembles the datagram,
//!                                             the bridge fragments it again
//! ```
//! `f0` and the bridge are in a network namespace that has no name. The agent holds it open, so it
//! goes with the agent, and `lbfrag0` with it; until the next agent such datagrams are lost. Memory
//! is bounded by two settings of that namespace.

mod links;
mod namespace;

use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use crate::datapath::probe;
use crate::describe;
use crate::privileges::{self, Capability, PrivilegeError};

/// To make a network namespace and to set it up.
const CAPABILITIES: [Capability; 3] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
];

/// Holds namespace and devices, which go with it.
#[derive(Debug)]
pub struct Reassembly {
    device: u32,
    _namespace: OwnedFd,
    _defragmentation: Vec<OwnedFd>,
}

impl Reassembly {
    /// Index of the device that leads there.
    pub fn device(&self) -> u32 {
        self.device
    }
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
enum ReassemblyError {
    #[error("this kernel has no netfilter links that put datagrams together: Linux 6.6 has")]
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
    #[error("the thread that sets up the reassembly of datagrams died")]
    Thread,
}

/// Sets it up, before the process gives up the capabilities that this takes. `None` where it cannot
/// be: then the datapath goes without, which is said once.
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
    // Namespaces belong to threads.
    let thread = thread::Builder::new().name("reassembly".to_owned());
    let thread = thread
        .spawn(namespace::set_up)
        .map_err(failed("start a thread"))?;
    thread.join().map_err(|_| ReassemblyError::Thread)?
}

/// What a step that failed was to do.
fn failed<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> ReassemblyError {
    |error| ReassemblyError::Step {
        step: step.into(),
        source: error.into(),
    }
}
