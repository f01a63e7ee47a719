//! `lb-agent affinity`: shows, sets and removes session affinity.

mod arguments;
mod client;
mod list;
mod pin;
mod which;

use std::process::ExitCode;

use anyhow::Context as _;
use lb_common::net::{Address4, Address6};

pub use self::arguments::AffinityCommand;
use self::arguments::AffinityPinArguments;
pub use self::client::Client;
use self::list::table;
pub use self::list::{Row, list};
pub use self::pin::{PinError, pin};
pub use self::which::Which;
use crate::arguments::PinArguments;
use crate::datapath::clock::Clock;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::datapath::pins::Pins;
use crate::inspect::ServicePorts;
use crate::maps::MapError;
use crate::output;
use crate::privileges;

/// Runs an `affinity` command.
pub fn run(command: &AffinityCommand) -> anyhow::Result<ExitCode> {
    privileges::require("affinity", &privileges::MAPS)?;
    let pins = match command {
        AffinityCommand::List(arguments) => &arguments.show.pins,
        AffinityCommand::Pin(arguments) => &arguments.pins,
        AffinityCommand::Clear(arguments) => &arguments.pins,
    };
    let mut maps = open(pins)?;
    let clock = Clock::read().context("cannot read the clock")?;
    match command {
        AffinityCommand::List(arguments) => {
            let which = Which::new(&arguments.which, &ServicePorts::read(&maps)?)?;
            let rows = list(&maps, clock, &which)?;
            output::print(arguments.show.output, &rows, |rows| table(rows))?;
        }
        AffinityCommand::Pin(AffinityPinArguments {
            service,
            client,
            backend,
            ..
        }) => {
            let row = pin(&mut maps, clock, service, *client, *backend)?;
            output::print_line(&format!(
                "the next connection of {client} to {service} goes to {row}"
            ))?;
        }
        AffinityCommand::Clear(arguments) => {
            let which = Which::new(&arguments.which, &ServicePorts::read(&maps)?)?;
            let cleared = clear(&mut maps, &which)?;
            output::print_line(&format!("rows removed: {cleared}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(pins: &PinArguments) -> anyhow::Result<LiveMaps> {
    let pins = Pins::new(&pins.pin_path);
    LiveMaps::open(&pins.maps()).with_context(|| pins.no_agent_message())
}

/// Removes the rows that match. Returns how many it removed.
///
/// # Errors
/// If a map cannot be read or written.
pub fn clear(maps: &mut LiveMaps, which: &Which) -> Result<usize, MapError> {
    Ok(clear_family::<Address4>(maps, which)? + clear_family::<Address6>(maps, which)?)
}

fn clear_family<A: LiveFamily>(maps: &mut LiveMaps, which: &Which) -> Result<usize, MapError> {
    let rows = A::rows_mut(maps);
    let keys: Vec<_> = rows
        .affinities()?
        .into_keys()
        .filter(|key| which.matches(key))
        .collect();
    for key in &keys {
        rows.remove_affinity(key)?;
    }
    Ok(keys.len())
}
