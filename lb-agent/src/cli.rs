//! The command line.

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::arguments::{PinArguments, ShowArguments};
use crate::explain::ExplainArguments;
use crate::run::RunArguments;
use crate::show::affinity::AffinityCommand;
use crate::show::connections::ConnectionsArguments;

/// Makes Kubernetes Services work with eBPF.
#[derive(Parser, Debug)]
#[command(version, about, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Keep the BPF maps and programs of this node as the Services ask for
    Run(Box<RunArguments>),
    /// Show what is attached, how full the maps are, and why packets were not translated
    Status(ShowArguments),
    /// Show the Services that the kernel holds, with their backends
    Services(ShowArguments),
    /// Show the connections that the kernel remembers: who talks to which backend
    Connections(ConnectionsArguments),
    /// Show, set or forget which backend clients of Services with session affinity stay with
    #[command(subcommand)]
    Affinity(AffinityCommand),
    /// Say what becomes of a packet, and why: by the code that the kernel programs run, over their
    /// maps
    ///
    /// Exit code 0: it reaches a backend, is answered, or is not for a Service; 1: it is rejected
    /// or dropped; 2: no answer.
    Explain(ExplainArguments),
    /// Say what this kernel and this host lack
    Check(ShowArguments),
    /// Detach all programs and remove every trace of the agent from the kernel; what is in its
    /// state directory stays
    Cleanup(PinArguments),
}

/// Ends as clap does for arguments that it refuses itself: a problem that only all arguments of a
/// command show.
pub fn refuse(command: &str, problem: &str) -> ! {
    let mut all = Arguments::command();
    all.build();
    let kind = ErrorKind::ValueValidation;
    match all.find_subcommand_mut(command) {
        Some(command) => command.error(kind, problem).exit(),
        None => all.error(kind, problem).exit(),
    }
}
