//! `lb-agent status`: shows programs, maps and packet counters.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;

use anyhow::Context as _;
use lb_common::reason::Reason;
use serde::Serialize;

use crate::arguments::ShowArguments;
use crate::datapath::carriers::Carriers;
use crate::datapath::counters::Counters;
use crate::datapath::foreign::{ForeignProgram, Order, foreign_programs};
use crate::datapath::maps::KernelMaps;
use crate::datapath::namespaces::NamespaceTable;
use crate::datapath::pins::Pins;
use crate::datapath::sizes::map_sizes;
use crate::devices::{self, Bare};
use crate::inspect::device_name;
use crate::maps::{BackendState, Capacity, FrontendKey, MapImage, Maps as _, service_cidrs};
use crate::network::Family;
use crate::output::{self, Table};
use crate::privileges;

/// The state of programs and maps in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    /// Attached programs, from the pinned links.
    attached: Vec<Attached>,
    /// Programs of others at the hooks of the agent's programs; `null` if the process may not list
    /// them.
    foreign: Option<Vec<ForeignProgram>>,
    /// Network namespaces of this node except its own; `null` if the kernel has no cookies for
    /// them.
    namespaces: Option<Namespaces>,
    /// Devices that are up and carry no programs.
    #[serde(rename = "withoutPrograms")]
    without_programs: BTreeSet<Bare>,
    maps: Vec<Usage>,
    /// Service CIDRs: packets to addresses in them that no Service has are dropped.
    service_cidrs: Vec<String>,
    /// Packets that were not translated, by reason.
    reasons: Vec<ReasonCount>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
struct Attached {
    program: String,
    /// `device NAME`, `device index N` if the device no longer exists, or `cgroup`.
    target: String,
}

/// Number of network namespaces by where their connections are translated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Namespaces {
    /// Namespaces of Pods. Connections are translated at the sockets.
    translated_at_sockets: usize,
    /// Other namespaces, and those of Pods that the agent does not recognize. Packets are
    /// translated at the devices through which they leave.
    left_to_devices: usize,
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

/// Prints the status.
pub fn run(arguments: &ShowArguments) -> anyhow::Result<ExitCode> {
    privileges::require("status", &privileges::MAPS)?;
    let pins = Pins::new(&arguments.pins.pin_path);
    let maps = KernelMaps::open(&pins.maps()).with_context(|| pins.no_agent_message())?;
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
        namespaces: NamespaceTable::counts(&pins.maps())?.map(|counts| Namespaces {
            translated_at_sockets: counts.at_sockets,
            left_to_devices: counts.left,
        }),
        without_programs: Carriers::read(&pins)?.bare(&devices::look_without_default_routes()?),
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

/// Programs of others at the hooks of the agent's programs; `None` without the capability to list
/// them.
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

/// Parses the name of a link's pin: `INDEX-PROGRAM…` or `cgroup-PROGRAM`.
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
    let namespaces = match &status.namespaces {
        None => [("all", "translated at sockets".to_owned())].to_vec(),
        Some(namespaces) => [
            (
                "translated at sockets",
                namespaces.translated_at_sockets.to_string(),
            ),
            ("left to devices", namespaces.left_to_devices.to_string()),
        ]
        .to_vec(),
    };
    for (name, value) in namespaces {
        table.row(["namespaces".to_owned(), name.to_owned(), value]);
    }
    for Bare { name, why, .. } in &status.without_programs {
        table.row([
            "without".to_owned(),
            format!("device {name}"),
            why.text().to_owned(),
        ]);
    }
    for Usage { what, used, capacity } in &status.maps {
        table.row(["map".to_owned(), what.clone(), format!("{used} of {capacity}")]);
    }
    for cidr in &status.service_cidrs {
        let what = "packets to unallocated addresses are dropped";
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
    fn a_pins_name_contains_program_and_device() {
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
