//! `cargo xtask bench packets` without the build: measures the cost of the kernel programs per
//! packet.

use std::path::PathBuf;

use clap::Parser;
use lb_tests::bench::Delivery;
use lb_tests::bench::packets::{self, Effort};

/// Measures the cost of the kernel programs per packet
#[derive(Parser)]
struct Arguments {
    /// The object file with the packet generator
    object: PathBuf,
    /// TCP only, with fewer and shorter rounds, for a first look
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
    let report = packets::run(&arguments.object, effort);
    arguments.delivery.deliver(&report)
}
