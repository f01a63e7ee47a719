//! Programs on the hooks of devices that are not the agent's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::net::if_::if_nameindex;
use serde::Serialize;

use super::filters::{filters, xdp_programs};
use super::hook::{Direction, XdpMode};
use super::links::{Link, program_name, tcx_programs};
use super::pins::Pins;
use super::probe;

/// Where a program is attached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeviceHook {
    /// XDP.
    Xdp,
    /// TCX, for packets that enter.
    TcxIngress,
    /// A clsact filter, for packets that enter.
    ClsactIngress,
    /// TCX, for packets that leave.
    TcxEgress,
    /// A clsact filter, for packets that leave.
    ClsactEgress,
}

/// When a program runs, relative to the agent's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// Before the agent's program. It decides whether the agent's program sees a packet.
    Before,
    /// After the agent's program. It sees packets as the agent's program has changed them.
    After,
    /// The agent has no program for that direction of the device.
    Alone,
}

/// A program that is not the agent's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForeignProgram {
    /// The device.
    device: String,
    /// The hook of the device.
    hook: DeviceHook,
    /// Its position among all programs for packets of that direction at that layer (XDP or TC).
    /// Counted from 1. In TC, TCX programs come before clsact filters.
    position: usize,
    /// When it runs relative to the agent's program.
    pub(crate) order: Order,
    /// The name of the program. At XDP and TCX it needs `CAP_SYS_ADMIN`. For a filter that is not a
    /// BPF program, this is the filter's kind.
    name: Option<String>,
    /// The program's id. Filters that are not BPF programs have none.
    id: Option<u32>,
}

/// A program or filter at a hook. Lists of these are in the order of execution.
struct Runs {
    hook: DeviceHook,
    is_ours: bool,
    name: Option<String>,
    id: Option<u32>,
}

/// Programs that are not the agent's, at all devices of the calling thread's network namespace.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] without `CAP_NET_ADMIN`.
pub(crate) fn foreign_programs(pins: &Pins) -> io::Result<Vec<ForeignProgram>> {
    let ours = own_programs(pins)?;
    let xdp = xdp_programs()?;
    let mut found = Vec::new();
    for device in &if_nameindex()? {
        let name = device.name().to_string_lossy();
        let ingress = at_tc(device.index(), Direction::Ingress, &ours)?;
        // Packets that XDP passes reach TC.
        let at_xdp = at_xdp(device.index(), &xdp, &ours)
            .into_iter()
            .collect::<Vec<_>>();
        let has_ingress = ingress.iter().any(|runs| runs.is_ours);
        found.extend(others(&name, &at_xdp).map(|program| ForeignProgram {
            order: if has_ingress { Order::Before } else { Order::Alone },
            ..program
        }));
        found.extend(others(&name, &ingress));
        found.extend(others(&name, &at_tc(device.index(), Direction::Egress, &ours)?));
    }
    Ok(found)
}

/// The ids of the programs that the agent's pinned links run.
fn own_programs(pins: &Pins) -> io::Result<BTreeSet<u32>> {
    let mut paths = pins.other_files()?;
    paths.extend(pins.link_names()?.iter().map(|name| pins.link(name)));
    let id = |path| Some(Link::open(path).ok()?.info().ok()?.program);
    Ok(paths.iter().filter_map(|path| id(path)).collect())
}

fn at_xdp(device: u32, xdp: &BTreeMap<u32, (Option<XdpMode>, u32)>, ours: &BTreeSet<u32>) -> Option<Runs> {
    let (_, id) = xdp.get(&device)?;
    Some(Runs {
        hook: DeviceHook::Xdp,
        is_ours: ours.contains(id),
        name: None,
        id: Some(*id),
    })
}

fn at_tc(device: u32, direction: Direction, ours: &BTreeSet<u32>) -> io::Result<Vec<Runs>> {
    let (tcx, clsact) = match direction {
        Direction::Ingress => (DeviceHook::TcxIngress, DeviceHook::ClsactIngress),
        Direction::Egress => (DeviceHook::TcxEgress, DeviceHook::ClsactEgress),
    };
    let programs = match probe::has_tcx() {
        true => tcx_programs(device, direction.tcx())?,
        false => Vec::new(),
    };
    let programs = programs.into_iter().map(|id| Runs {
        hook: tcx,
        is_ours: ours.contains(&id),
        name: None,
        id: Some(id),
    });
    let filters = filters(device, direction)?;
    let filters = filters.into_iter().filter(|filter| filter.handle != 0);
    let filters = filters.map(|filter| Runs {
        hook: clsact,
        is_ours: filter.is_ours(),
        id: filter.program,
        name: filter.name.or(Some(filter.kind)),
    });
    Ok(programs.chain(filters).collect())
}

/// The programs that are not the agent's.
fn others(device: &str, runs: &[Runs]) -> impl Iterator<Item = ForeignProgram> {
    let own = runs.iter().position(|runs| runs.is_ours);
    let positions = runs.iter().enumerate().filter(|(_, runs)| !runs.is_ours);
    positions.map(move |(position, runs)| ForeignProgram {
        device: device.to_owned(),
        hook: runs.hook,
        position: position + 1,
        order: match own {
            None => Order::Alone,
            Some(own) if own < position => Order::After,
            Some(_) => Order::Before,
        },
        name: runs.name.clone().or_else(|| program_name(runs.id?)),
        id: runs.id,
    })
}

impl std::fmt::Display for ForeignProgram {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, position, .. } = self;
        let hook = match self.hook {
            DeviceHook::Xdp => "xdp",
            DeviceHook::TcxIngress => "tcx ingress",
            DeviceHook::ClsactIngress => "clsact ingress",
            DeviceHook::TcxEgress => "tcx egress",
            DeviceHook::ClsactEgress => "clsact egress",
        };
        let order = match self.order {
            Order::Before => ", before ours",
            Order::After => ", after ours",
            Order::Alone => "",
        };
        write!(formatter, "{hook} of {device}, position {position}{order}")
    }
}

impl ForeignProgram {
    /// The text for tables.
    pub(crate) fn title(&self) -> String {
        let name = self.name.as_deref().unwrap_or("-");
        match self.id {
            Some(id) => format!("{name} (id {id})"),
            None => name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(hook: DeviceHook, id: u32, is_ours: bool) -> Runs {
        Runs {
            hook,
            is_ours,
            name: Some(format!("program-{id}")),
            id: Some(id),
        }
    }

    #[test]
    fn positions_count_all_that_run() {
        let all = [
            runs(DeviceHook::TcxIngress, 1, false),
            runs(DeviceHook::TcxIngress, 2, true),
            runs(DeviceHook::ClsactIngress, 3, false),
        ];
        let shown: Vec<String> = others("eth0", &all)
            .map(|program| format!("{}: {program}", program.title()))
            .collect();
        assert_eq!(
            shown,
            [
                "program-1 (id 1): tcx ingress of eth0, position 1, before ours",
                "program-3 (id 3): clsact ingress of eth0, position 3, after ours",
            ]
        );
        let alone = others("eth1", &all[2..]).next().unwrap();
        assert_eq!((alone.position, alone.order), (1, Order::Alone));
    }
}
