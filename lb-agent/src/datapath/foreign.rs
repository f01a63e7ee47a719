//! Programs of others on the hooks of devices.

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
    /// TCX, for what comes in.
    TcxIngress,
    /// A clsact filter for what comes in.
    ClsactIngress,
    /// TCX, for what leaves.
    TcxEgress,
    /// A clsact filter for what leaves.
    ClsactEgress,
}

/// When a program runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// Before ours: it decides whether ours sees a packet.
    Before,
    /// After ours: it sees what ours made of a packet.
    After,
    /// No program of ours is attached for that direction of the device.
    Alone,
}

/// A program of others.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForeignProgram {
    /// The device.
    device: String,
    /// Where it is attached there.
    hook: DeviceHook,
    /// Its position, from 1, among all that run for packets of that direction at that layer: XDP,
    /// or TC, where TCX comes before clsact.
    position: usize,
    /// Whether ours runs before it.
    pub(crate) order: Order,
    /// Its name: of a program as far as the kernel tells, which takes `CAP_SYS_ADMIN` at XDP and
    /// TCX; of a filter that is no program its kind.
    name: Option<String>,
    /// The number of its program; filters that are no programs have none.
    id: Option<u32>,
}

/// Something at a hook, in the order in which it runs.
struct Runs {
    hook: DeviceHook,
    is_ours: bool,
    name: Option<String>,
    id: Option<u32>,
}

/// The programs of others at all devices of the calling thread's network namespace.
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
        // What XDP lets through is seen by TC.
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

/// The numbers of the programs that our links run.
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

/// Those that are not ours.
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
    /// What it is called in tables.
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
