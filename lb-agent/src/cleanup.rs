//! `lb-agent cleanup`: removes every trace of the agent.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::PinArguments;
use crate::datapath::attach::remove_clsact;
use crate::datapath::pins::Pins;
use crate::privileges;

/// Detaches all programs and removes all pins. Services stop working, unless an agent is running.
pub fn run(arguments: &PinArguments) -> anyhow::Result<ExitCode> {
    privileges::require("cleanup", &privileges::DATAPATH)?;
    let pins = Pins::new(&arguments.pin_path);
    let links = pins
        .link_names()
        .with_context(|| format!("cannot read {}", pins.links().display()))?
        .len();
    pins.remove_all()
        .with_context(|| format!("cannot remove {}", pins.root().display()))?;
    let mut filters = 0;
    for device in nix::ifaddrs::getifaddrs().context("cannot list the network devices")? {
        filters += remove_clsact(&device.interface_name);
    }
    println!(
        "removed {links} pinned links, {filters} clsact filters and {}",
        pins.root().display()
    );
    Ok(ExitCode::SUCCESS)
}
