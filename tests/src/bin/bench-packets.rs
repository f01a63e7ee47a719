//! `cargo xtask bench packets` without the building: measures what the kernel programs cost per packet.

use std::io;
use std::path::PathBuf;

use clap::Parser;
use lb_agent::output::OutputFormat;
use lb_tests::bench::packets::{self, Effort};

/// Measures what the kernel programs cost per packet
#[derive(Parser)]
struct Arguments {
    /// The object file with the packet generator
    object: PathBuf,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
    /// TCP only, and fewer and shorter rounds: for a first look
    #[arg(long)]
    quick: bool,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let effort = if arguments.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    let report = packets::run(&arguments.object, effort);
    report.print(arguments.output)
}
