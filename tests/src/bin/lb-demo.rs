//! The program of the demo. `cargo xtask demo` builds and starts it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use lb_tests::demo::{self, Plan, Screen};
use lb_tests::stop::{Interrupted, Stop};
use nix::unistd::Uid;

/// Shows a Service between network namespaces of this machine.
#[derive(Parser)]
struct Arguments {
    /// Leave the lab running until Enter is pressed
    #[arg(long)]
    keep: bool,
    /// Minimum number of requests that each client sends in each phase
    #[arg(long, hide = true)]
    requests: Option<u32>,
    /// Milliseconds that each client waits between two requests
    #[arg(long, hide = true)]
    interval_ms: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !Uid::effective().is_root() {
        eprintln!(
            "error: the demo creates network namespaces and loads programs into the kernel: run it as root"
        );
        return ExitCode::FAILURE;
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("\ninterrupted; everything is removed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo and returns whether everything succeeded.
fn run(arguments: &Arguments) -> Result<bool> {
    let default = Plan::default();
    let plan = Plan {
        requests: arguments.requests.unwrap_or(default.requests),
        interval: arguments
            .interval_ms
            .map_or(default.interval, Duration::from_millis),
        keep: arguments.keep,
        ..default
    };
    let outcome = demo::run(&plan, &Screen::new()?, &Stop::on_signals()?)?;
    Ok(outcome.failures.is_empty())
}
