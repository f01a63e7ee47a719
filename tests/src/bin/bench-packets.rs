//! `cargo xtask bench packets` without the building: measures what the kernel programs cost per
//! packet.

use clap::Parser;
use lb_tests::bench::Delivery;
use lb_tests::bench::packets::{self, Effort};

/// Measures what the kernel programs cost per packet
#[derive(Parser)]
struct Arguments {
    /// TCP only, and fewer and shorter rounds: for a first look
    #[arg(long)]
    quick: bool,
    /// What becomes of the result.
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
