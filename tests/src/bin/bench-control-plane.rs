//! `cargo xtask bench control-plane` without the building: measures what it takes to follow the control plane.

use std::path::PathBuf;

use clap::Parser;
use lb_agent::output::OutputFormat;
use lb_tests::bench::control_plane::{self, Effort};

/// Measures what it takes to follow the control plane
#[derive(Parser)]
struct Arguments {
    /// The agent
    agent: PathBuf,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
    /// Fewer Services and rounds: for a first look
    #[arg(long)]
    quick: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let effort = if arguments.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    let report = control_plane::run(&arguments.agent, &effort, |next| eprintln!("{next} ..."))?;
    report.print(arguments.output)?;
    Ok(())
}
