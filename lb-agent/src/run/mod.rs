//! `lb-agent run`: connects source, devices, controller and datapath.

mod agent;
mod arguments;
mod monitor;
mod seed;
mod setup;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

pub use self::arguments::RunArguments;
use self::arguments::{OnRemovedBackend, SocketLb};
use crate::datapath::pin_lock::PinLock;
use crate::datapath::pins::Pins;
use crate::datapath::probe;
use crate::sockets::{Closer, CloserOptions, Finder, Reach};
use crate::{logging, privileges, reassembly};

/// How long a new agent waits for the previous one: longer than Kubernetes lets a Pod terminate by
/// default (`terminationGracePeriodSeconds`, 30 s).
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Runs until SIGTERM or SIGINT. Programs, maps and links stay in the kernel, and Services keep
/// working without the agent.
pub fn run(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    logging::start();

    privileges::require("run", &privileges::DATAPATH)?;
    let pins = Pins::new(&arguments.pins.pin_path);
    let _lock = PinLock::wait(&pins, LOCK_WAIT, || {
        tracing::info!(
            "another agent uses the pins at {}: waiting up to {} s for it to end",
            pins.root().display(),
            LOCK_WAIT.as_secs()
        );
    })?;
    // Started before the other threads drop capabilities, because these threads keep some.
    let closer = closer(arguments)?;
    let finder = match arguments.socket_lb {
        SocketLb::All => Finder::start()?,
        SocketLb::Host | SocketLb::Off => None,
    };
    let reassembly = reassembly::start();
    lift_memory_limit();
    // Before the runtime starts, because each thread has its own capabilities.
    privileges::drop_others(&privileges::DATAPATH)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(agent::run(arguments, Searches { closer, finder }, reassembly))?;
    Ok(ExitCode::SUCCESS)
}

/// Handles of the threads that enter network namespaces.
#[derive(Debug)]
struct Searches {
    closer: Option<Closer>,
    finder: Option<Finder>,
}

/// Lifts the limit of locked memory. Before Linux 5.11, the memory of maps counts against it.
fn lift_memory_limit() {
    if probe::kernel_at_least(5, 11) {
        return;
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::warn!(
            "cannot lift the limit of locked memory, which includes BPF maps on this kernel: {error}; add \
             CAP_SYS_RESOURCE, or lift the limit before starting the agent (`ulimit -l unlimited`, \
             LimitMEMLOCK=infinity)"
        );
    }
}

/// Starts the thread that closes sockets whose backend was removed, in the network namespaces in
/// which sockets are translated.
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
