//! `cargo xtask bench end-to-end` without the build: measures connections to Services.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use lb_tests::bench::Delivery;
use lb_tests::bench::end_to_end::{self, Effort};
use lb_tests::stop::Stop;

/// Measures latency, throughput and CPU time of connections to Services
#[derive(Parser)]
struct Arguments {
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
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let report = end_to_end::run(&effort, seed, &Stop::on_signals()?, |next| {
        eprintln!("{next} ...")
    })?;
    arguments.delivery.deliver(&report)
}
