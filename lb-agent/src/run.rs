//! `lb-agent run`: brings source, devices, controller and datapath together.

mod agent;
mod monitor;

use std::process::ExitCode;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::cli::RunArguments;
use crate::privileges;

/// Runs until SIGTERM or SIGINT. Programs, maps and links stay: traffic goes on without the agent.
pub fn run(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    // The API client's crates warn at every retry; the source tells the transitions.
    let quiet = "info,kube_runtime=error,kube_client=error";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    privileges::require("run", &privileges::DATAPATH)?;
    // Before the runtime, since capabilities belong to threads.
    privileges::drop_others(&privileges::DATAPATH)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(agent::run(arguments))?;
    Ok(ExitCode::SUCCESS)
}
