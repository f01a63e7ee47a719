//! The load generator of `cargo xtask bench end-to-end`: a server, and a client that executes
//! orders from standard input. It uses blocking threads, because an event loop would be part of the
//! measurement.

mod ask;
mod meter;
mod serve;
mod work;

use std::io::{self, BufRead as _};

use anyhow::Result;
use clap::Subcommand;

/// The two sides.
#[derive(Subcommand)]
pub(crate) enum Side {
    /// Serve on all ports; prints `ready`, never ends
    Serve,
    /// Execute the orders in the lines of standard input, and report each
    Ask,
}

pub(crate) fn run(side: &Side) -> Result<()> {
    match side {
        Side::Serve => serve::serve(),
        Side::Ask => {
            for line in io::stdin().lock().lines() {
                let sample = ask::ask(&serde_json::from_str(&line?)?)?;
                crate::print(&sample)?;
            }
            Ok(())
        }
    }
}
