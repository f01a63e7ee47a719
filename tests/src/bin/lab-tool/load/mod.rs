//! The load generator of `cargo xtask bench end-to-end`: a server, and a client that does what it
//! reads from standard input. Threads that block, since an event loop would be part of what is
//! measured.

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
    /// Serve at all ports; prints `ready`, never ends
    Serve,
    /// Do what the lines of standard input say, and report each
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
