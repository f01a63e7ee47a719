//! `lb-agent run`: brings source, devices, controller and datapath together.

mod agent;
mod arguments;
mod monitor;
mod seed;
mod setup;

use std::process::ExitCode;

use anyhow::Context as _;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

pub use self::arguments::RunArguments;
use self::arguments::{OnRemovedBackend, SocketLb};
use crate::datapath::pins::Pins;
use crate::datapath::probe;
use crate::sockets::{Closer, CloserOptions, Finder, Reach};
use crate::{logging, privileges, reassembly};

/// Runs until SIGTERM or SIGINT. Programs, maps and links stay: traffic goes on without the agent.
pub fn run(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    logging::start();

    privileges::require("run", &privileges::DATAPATH)?;
    // Their threads keep what the others drop.
    let closer = closer(arguments)?;
    let finder = match arguments.socket_lb {
        SocketLb::All => Finder::start()?,
        SocketLb::Host | SocketLb::Off => None,
    };
    let reassembly = reassembly::start();
    lift_memory_limit();
    // Before the runtime, since capabilities belong to threads.
    privileges::drop_others(&privileges::DATAPATH)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(agent::run(arguments, Searches { closer, finder }, reassembly))?;
    Ok(ExitCode::SUCCESS)
}

/// The threads that enter network namespaces.
#[derive(Debug)]
struct Searches {
    closer: Option<Closer>,
    finder: Option<Finder>,
}

/// Lets maps be as large as they are: before Linux 5.11 their memory counts against a limit of the
/// process.
fn lift_memory_limit() {
    if probe::kernel_at_least(5, 11) {
        return;
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::warn!(
            "cannot lift the limit of locked memory, against which maps count on this kernel: {error}; add \
             CAP_SYS_RESOURCE, or lift it before (`ulimit -l unlimited`, LimitMEMLOCK=infinity)"
        );
    }
}

/// Sockets are closed where they are translated.
fn closer(arguments: &RunArguments) -> anyhow::Result<Option<Closer>> {
    let reach = match arguments.socket_lb {
        SocketLb::All => Reach::Node,
        SocketLb::Host => Reach::OwnNamespace,
        SocketLb::Off => return Ok(None),
    };
    let options = CloserOptions {
        reach,
        tcp: arguments.on_removed_backend == OnRemovedBackend::Reset,
        maps: Pins::new(&arguments.pins.pin_path).maps(),
    };
    Ok(Some(Closer::start(options)?))
}
