//! `cargo xtask bench packets` without the build: measures the cost of the kernel programs per
//! packet.

use clap::Parser;
use lb_tests::bench::Delivery;
use lb_tests::bench::packets::{self, Effort};

/// Measures the cost of the kernel programs per packet
#[derive(Parser)]
struct Arguments {
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
    let report = packets::run(effort);
    arguments.delivery.deliver(&report)
}
