//! `cargo xtask bench end-to-end` without the building: measures what connections notice.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use lb_agent::output::OutputFormat;
use lb_tests::bench::end_to_end::{self, Effort};

/// Measures what connections to Services notice
#[derive(Parser)]
struct Arguments {
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
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let report = end_to_end::run(&effort, seed, |next| eprintln!("{next} ..."))?;
    report.print(arguments.output)?;
    Ok(())
}
