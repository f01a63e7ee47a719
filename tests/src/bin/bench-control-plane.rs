//! `cargo xtask bench control-plane` without the build: measures the cost of following the control
//! plane.

use std::path::PathBuf;

use clap::Parser;
use lb_tests::bench::Delivery;
use lb_tests::bench::control_plane::{self, Effort};
use lb_tests::stop::Stop;

/// Measures the cost of following the control plane
#[derive(Parser)]
struct Arguments {
    /// The agent
    agent: PathBuf,
    /// Fewer Services and rounds, for a first look
    #[arg(long)]
    quick: bool,
    /// Where the result is written.
    #[command(flatten)]
    delivery: Delivery,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let effort = if arguments.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    let report = control_plane::run(&arguments.agent, &effort, &Stop::on_signals()?, |next| {
        eprintln!("{next} ...")
    })?;
    arguments.delivery.deliver(&report)
}
