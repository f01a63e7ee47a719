//! The maps as sorted text, for tests, users and bug reports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;

use lb_common::cidr;
use lb_common::layout::{BackendId, Region, Slot, frontend_flags};

use super::{Backend, BackendState, FrontendKey, MapImage, service_cidrs};
use crate::network::{Cidr, Family};

/// Returns one line for each row, sorted. Regions are shown as the backends that they name, so the
/// text does not depend on their position. Rows without an endpoint are omitted. A `!` marks
/// inconsistencies, such as a slot that names no row.
pub fn dump(image: &MapImage) -> String {
    let mut lines = Vec::new();
    for (key, value) in &image.frontends {
        match key {
            FrontendKey::Wildcard(address) => {
                let source_ranges = source_ranges(image, Family::of(*address), value.source_ranges);
                let flags = flag_names(value.flags);
                lines.push(format!("WILDCARD {address}{flags}{source_ranges}"));
            }
            FrontendKey::Port(address, ..) => {
                let family = Family::of(*address);
                let mut line = format!(
                    "FRONTEND {key} service={} cluster=[{}] local=[{}]",
                    value.service,
                    region(image, family, value.cluster),
                    region(image, family, value.local),
                );
                // Writing to a String cannot fail.
                if value.maglev.length != 0 {
                    let _ = write!(line, " maglev={}", shares(image, family, value.maglev));
                }
                line += &flag_names(value.flags);
                if value.affinity_seconds != 0 {
                    let _ = write!(line, " affinity={}s", value.affinity_seconds);
                }
                line += &source_ranges(image, family, value.source_ranges);
                lines.push(line);
            }
        }
    }
    for (service, name) in &image.names {
        lines.push(format!("SERVICE {service} {name}"));
    }
    for backend in image.backends4.values().chain(image.backends6.values()) {
        if backend.state == BackendState::Gone {
            continue;
        }
        let state = backend.state;
        let local = if backend.local { " local" } else { "" };
        let regions = match (backend.in_cluster, backend.in_local) {
            (false, false) => "",
            (true, false) => " in=cluster",
            (false, true) => " in=local",
            (true, true) => " in=cluster,local",
        };
        let address = SocketAddr::new(backend.address, backend.port);
        lines.push(format!(
            "BACKEND {address} service={} state={state}{local}{regions}",
            backend.service
        ));
    }
    let named: BTreeSet<u32> = image.frontends.values().map(|row| row.source_ranges).collect();
    let of_rows = image.source_ranges.iter().filter(|(set, _)| *set != cidr::SET);
    let unnamed = of_rows.filter(|(set, _)| !named.contains(set));
    lines.extend(
        unnamed.map(|(set, network)| format!("! SOURCE RANGE {network} of set {set}, which no row names")),
    );
    lines.extend(service_cidrs(&image.source_ranges).map(|network| format!("SERVICE CIDR {network}")));
    lines.sort();
    lines
        .into_iter()
        .fold(String::new(), |text, line| text + &line + "\n")
}

fn flag_names(flags: u32) -> String {
    let names = [
        (frontend_flags::INSIDE_LOCAL, "inside-local"),
        (frontend_flags::OUTSIDE_LOCAL, "outside-local"),
        (frontend_flags::PASS_UNKNOWN, "pass-unknown"),
        (frontend_flags::ECHO, "echo"),
        (frontend_flags::NODE_ALLOWED, "node-allowed"),
    ];
    let set = names.into_iter().filter(|(flag, _)| flags & flag != 0);
    let set: Vec<&str> = set.map(|(_, name)| name).collect();
    match set.is_empty() {
        true => String::new(),
        false => format!(" flags={}", set.join(",")),
    }
}

fn region(image: &MapImage, family: Family, region: Region) -> String {
    slots(image, family, region).collect::<Vec<_>>().join(" ")
}

/// The networks of a set. Empty for set 0, which allows all clients.
fn source_ranges(image: &MapImage, family: Family, set: u32) -> String {
    if set == 0 {
        return String::new();
    }
    let of_family = |(other, network): &&(u32, Cidr)| *other == set && network.family() == family;
    let networks = image.source_ranges.iter().filter(of_family);
    let networks: Vec<String> = networks.map(|(_, network)| network.to_string()).collect();
    format!(" source-ranges=[{}]", networks.join(" "))
}

/// The number of slots of a region that name each backend.
fn shares(image: &MapImage, family: Family, region: Region) -> String {
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for slot in slots(image, family, region) {
        *shares.entry(slot).or_default() += 1;
    }
    let shares = shares.into_iter().map(|(slot, share)| format!("{share}*{slot}"));
    format!("[{}]", shares.collect::<Vec<_>>().join(" "))
}

fn slots(image: &MapImage, family: Family, region: Region) -> impl Iterator<Item = String> {
    let backends = image.backends(family);
    (region.base..region.base.saturating_add(region.length)).map(move |index| {
        image
            .slots
            .get(&index)
            .map_or_else(|| format!("!{index}"), |slot| self::slot(backends, *slot))
    })
}

fn slot(backends: &BTreeMap<BackendId, Backend>, slot: Slot) -> String {
    match backends.get(&slot.backend) {
        Some(backend) if backend.generation == slot.generation && backend.state != BackendState::Gone => {
            SocketAddr::new(backend.address, backend.port).to_string()
        }
        _ => format!("!{}.{}", slot.backend, slot.generation),
    }
}
