//! The state of the kernel side as a whole.

use std::io;
use std::process::ExitCode;

use anyhow::Context as _;
use lb_common::reason::Reason;
use serde::Serialize;

use crate::cli::ShowArguments;
use crate::datapath::foreign::{ForeignProgram, Order, foreign_programs};
use crate::datapath::maps::{Counters, KernelMaps, map_sizes};
use crate::datapath::pins::Pins;
use crate::maps::{BackendState, Capacity, Family, FrontendKey, MapImage, Maps as _, service_cidrs};
use crate::output::{self, Table};
use crate::privileges;

/// The state of the kernel side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    /// Links that are pinned: programs that are attached.
    attached: Vec<Attached>,
    /// Programs of others where ours are; `null` if that cannot be told.
    foreign: Option<Vec<ForeignProgram>>,
    maps: Vec<Usage>,
    /// Networks of which packets to addresses that no Service has are dropped.
    service_cidrs: Vec<String>,
    /// Packets that were not simply translated, by reason.
    reasons: Vec<ReasonCount>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
struct Attached {
    program: String,
    /// `device NAME`, `device index N` if there is no such device any more, or `cgroup`.
    target: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Usage {
    what: String,
    used: usize,
    capacity: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct ReasonCount {
    reason: &'static str,
    packets: u64,
}

/// Prints it.
pub fn run(arguments: &ShowArguments) -> anyhow::Result<ExitCode> {
    privileges::require("status", &privileges::MAPS)?;
    let pins = Pins::new(&arguments.pins.pin_path);
    let maps = KernelMaps::open(&pins.maps()).with_context(|| pins.nobody_ran())?;
    let counters = Counters::open(&pins.maps())?;
    let mut reasons = Vec::new();
    for reason in Reason::ALL {
        reasons.push(ReasonCount {
            reason: reason.name(),
            packets: counters.reason(reason)?,
        });
    }
    let image = maps.image()?;
    let mut usage = usage(&image, maps.capacity());
    for (what, used, capacity) in map_sizes(&pins.maps())? {
        usage.push(Usage {
            what: what.to_owned(),
            used,
            capacity,
        });
    }
    let status = Status {
        attached: attached(&pins)?,
        foreign: foreign(&pins)?,
        maps: usage,
        service_cidrs: service_cidrs(&image.source_ranges)
            .map(|cidr| cidr.to_string())
            .collect(),
        reasons,
    };
    output::print(arguments.output, &status, table)?;
    Ok(ExitCode::SUCCESS)
}

fn attached(pins: &Pins) -> anyhow::Result<Vec<Attached>> {
    let names = pins
        .link_names()
        .with_context(|| format!("cannot read {}", pins.links().display()))?;
    let mut attached: Vec<Attached> = names.iter().map(|name| link(name, &device_name)).collect();
    attached.sort();
    Ok(attached)
}

/// Programs of others where ours are; `None` without the capability to ask.
fn foreign(pins: &Pins) -> anyhow::Result<Option<Vec<ForeignProgram>>> {
    match foreign_programs(pins) {
        Ok(mut programs) => {
            programs.retain(|program| program.order != Order::Alone);
            Ok(Some(programs))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error).context("cannot list the programs of others at the devices"),
    }
}

/// What a pin's name says: `INDEX-PROGRAM…` or `cgroup-PROGRAM`.
fn link(pin: &str, device_name: &dyn Fn(u32) -> Option<String>) -> Attached {
    let (target, program) = pin.split_once('-').unwrap_or(("", pin));
    let target = match target.parse() {
        Ok(index) => match device_name(index) {
            Some(name) => format!("device {name}"),
            None => format!("device index {index}"),
        },
        Err(_) => target.to_owned(),
    };
    Attached {
        program: program.to_owned(),
        target,
    }
}

fn device_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok()
}

fn usage(image: &MapImage, capacity: Capacity) -> Vec<Usage> {
    let mut usage = Vec::new();
    for family in Family::ALL {
        let is_family = |key: &&FrontendKey| Family::of(key.address()) == family;
        let used = image.frontends.keys().filter(is_family).count();
        usage.push(Usage {
            what: format!("frontends {family}"),
            used,
            capacity: capacity.frontends,
        });
    }
    for family in Family::ALL {
        let rows = image.backends(family).values();
        let used = rows.filter(|backend| backend.state != BackendState::Gone).count();
        usage.push(Usage {
            what: format!("backends {family}"),
            used,
            capacity: capacity.backends,
        });
    }
    usage.push(Usage {
        what: "slots".to_owned(),
        used: image.slots.len(),
        capacity: capacity.slots,
    });
    usage.push(Usage {
        what: "services".to_owned(),
        used: image.names.len(),
        capacity: capacity.services,
    });
    usage
}

fn table(status: &Status) -> Table {
    let mut table = Table::new(&["what", "name", "value"]);
    for Attached { program, target } in &status.attached {
        table.row(["attached".to_owned(), program.clone(), target.clone()]);
    }
    match &status.foreign {
        None => table.row(["foreign", "unknown", "needs CAP_NET_ADMIN"].map(str::to_owned)),
        Some(programs) => {
            for program in programs {
                table.row(["foreign".to_owned(), program.title(), program.to_string()]);
            }
        }
    }
    for Usage { what, used, capacity } in &status.maps {
        table.row(["map".to_owned(), what.clone(), format!("{used} of {capacity}")]);
    }
    for cidr in &status.service_cidrs {
        let what = "unallocated addresses are dropped";
        table.row(["service CIDR".to_owned(), cidr.clone(), what.to_owned()]);
    }
    for ReasonCount { reason, packets } in &status.reasons {
        table.row(["packets".to_owned(), (*reason).to_owned(), packets.to_string()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_program_and_device() {
        let names = |index| (index == 12).then(|| "eth0".to_owned());
        let shown = |pin: &str| {
            let Attached { program, target } = link(pin, &names);
            format!("{program} at {target}")
        };
        assert_eq!(shown("12-lb_tc_from_pod"), "lb_tc_from_pod at device eth0");
        assert_eq!(shown("13-lb_xdp-native"), "lb_xdp-native at device index 13");
        assert_eq!(shown("cgroup-lb_connect4"), "lb_connect4 at cgroup");
    }
}
