//! `lb-agent cleanup`: removes every trace of the agent from the kernel.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::arguments::PinArguments;
use crate::datapath::attach::clsact;
use crate::datapath::pins::Pins;
use crate::privileges;

/// Detaches all programs and removes all pins, including those of agents with other map layouts.
/// Services stop working on this node, unless an agent is running.
pub fn run(arguments: &PinArguments) -> anyhow::Result<ExitCode> {
    privileges::require("cleanup", &privileges::DATAPATH)?;
    let pins = Pins::new(&arguments.pin_path);
    let links = pins
        .remove_all()
        .with_context(|| format!("cannot remove {}", pins.root().display()))?;
    let filters = clsact::detach_all().context("cannot list the network devices")?;
    println!(
        "removed {links} pinned links, {filters} clsact filters and {}",
        pins.root().display()
    );
    Ok(ExitCode::SUCCESS)
}
