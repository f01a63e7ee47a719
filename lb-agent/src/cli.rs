//! The command line.

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::arguments::ShowArguments;
use crate::cleanup::CleanupArguments;
use crate::explain::ExplainArguments;
use crate::run::RunArguments;
use crate::show::affinity::AffinityCommand;
use crate::show::connections::ConnectionsArguments;

/// Node agent that implements Kubernetes Services with eBPF.
#[derive(Parser, Debug)]
#[command(version, about, max_term_width = 100)]
pub struct Arguments {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the agent: keep the BPF maps and programs of this node in sync with the Services
    Run(Box<RunArguments>),
    /// Show the attached programs, the usage of the maps, and why packets were not translated
    Status(ShowArguments),
    /// Show the Services in the kernel's maps, with their backends
    Services(ShowArguments),
    /// Show the connections in the kernel's flow tables: clients and their backends
    Connections(ConnectionsArguments),
    /// Show, set or delete session affinities: which client stays with which backend
    #[command(subcommand)]
    Affinity(AffinityCommand),
    /// Explain what the kernel programs would do with a packet, and why: runs the same code with
    /// the pinned maps, and writes nothing
    ///
    /// Exit code 0: the packet reaches a backend, is answered, or is not for a Service; 1: it is
    /// rejected or dropped, or it or its reply passes a device without programs; 2: the command
    /// cannot tell.
    Explain(ExplainArguments),
    /// Check which features that the agent uses are missing on this kernel and host
    Check(ShowArguments),
    /// Detach all programs and remove all pinned maps and links: Services stop working on this node
    /// unless an agent is running. Keeps the state directory
    Cleanup(CleanupArguments),
}

/// Exits with the message and exit code that clap uses for invalid arguments. For problems that
/// clap cannot detect, because they depend on several arguments.
pub fn refuse(command: &str, problem: &str) -> ! {
    let mut all = Arguments::command();
    all.build();
    let kind = ErrorKind::ValueValidation;
    match all.find_subcommand_mut(command) {
        Some(command) => command.error(kind, problem).exit(),
        None => all.error(kind, problem).exit(),
    }
}
