//! Attaches TC programs as clsact filters. A filter belongs to its device and needs no pin.

use std::io;

use aya::Ebpf;
use aya::programs::SchedClassifier;
use aya::programs::links::Link as _;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};

use super::error::Failure;
use super::steps::find;
use crate::datapath::filters::{Filter, filters};
use crate::datapath::hook::Direction;
use crate::datapath::object::program;

/// Handles of the agent's filters. They are fixed, so that the next agent finds the filters. There
/// are two, so that a new filter can be created before the old one is removed.
const HANDLES: [u32; 2] = [0x6c62_0001, 0x6c62_0002];

/// Priority and handle of filters from agents that did not yet run before the filters of others.
const OLD_PLACE: (u16, u32) = (0x6c62, 1);

impl Filter {
    /// Whether this agent or another lb-agent created the filter.
    pub(in crate::datapath) fn is_ours(&self) -> bool {
        let is_named = self
            .name
            .as_ref()
            .is_some_and(|name| name.starts_with(program::TC_PREFIX));
        is_named && (HANDLES.contains(&self.handle) || (self.priority, self.handle) == OLD_PLACE)
    }

    /// Whether a BPF filter for all packets can share this filter's priority.
    fn shares_priority(&self) -> bool {
        self.kind == "bpf" && self.for_all
    }
}

/// Replaces the filter of an earlier program, or attaches the program before the filters of others.
///
/// If filters of others run before the old filter, the new one is attached before them. Then the
/// old one is removed.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    index: u32,
    device: &str,
    direction: Direction,
) -> Result<(), Failure> {
    // An error usually means that the qdisc exists already. If it is missing, the next calls fail.
    let _ = qdisc_add_clsact(device);
    let tc: &mut SchedClassifier = find(ebpf, name)?;
    let present = filters(index, direction)?;
    let own: Vec<&Filter> = present.iter().filter(|filter| filter.is_ours()).collect();
    if let [own] = own[..]
        && is_in_place(&present)
        && let Ok(id) = tc.attach_to_link(link(device, direction, own)?)
    {
        // Dropping the link would remove the filter.
        std::mem::forget(tc.take_link(id)?);
        return Ok(());
    }
    if !own.is_empty() && !is_in_place(&present) {
        tracing::info!(device, ?direction, filters = ?present, "{name} is attached before the programs of others again");
    }
    let handle = HANDLES
        .into_iter()
        .find(|handle| own.iter().all(|filter| filter.handle != *handle));
    let priority = best_priority(&present);
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        handle: TcHandle::from(handle.unwrap_or_default()),
        classid: None,
    });
    let id = tc.attach_with_options(device, direction.attach_type(), options)?;
    std::mem::forget(tc.take_link(id)?);
    for filter in own {
        link(device, direction, filter)?.detach()?;
    }
    let before: Vec<&Filter> = present
        .iter()
        .filter(|filter| filter.handle != 0 && filter.priority < priority)
        .collect();
    if !before.is_empty() {
        tracing::warn!(
            device,
            ?direction,
            ?before,
            "filters of others run before {name}, as BPF filters cannot share their priorities: packets that they accept \
             do not reach Services"
        );
    }
    Ok(())
}

/// Whether the agent's filter runs as early as possible.
pub(super) fn is_first(index: u32, direction: Direction) -> io::Result<bool> {
    Ok(is_in_place(&filters(index, direction)?))
}

/// Removes the agent's filters of one direction. Returns how many there were.
pub(super) fn detach(index: u32, device: &str, direction: Direction) -> usize {
    let present = filters(index, direction).unwrap_or_default();
    let own = present.iter().filter(|filter| filter.is_ours());
    own.filter(|filter| link(device, direction, filter).is_ok_and(|link| link.detach().is_ok()))
        .count()
}

/// Removes the agent's filters from all devices. Returns how many there were.
pub(crate) fn detach_all() -> io::Result<usize> {
    let mut count = 0;
    for device in &nix::net::if_::if_nameindex()? {
        for direction in Direction::BOTH {
            count += detach(device.index(), &device.name().to_string_lossy(), direction);
        }
    }
    Ok(count)
}

fn link(device: &str, direction: Direction, filter: &Filter) -> io::Result<SchedClassifierLink> {
    let handle = TcHandle::from(filter.handle);
    SchedClassifierLink::attached(device, direction.attach_type(), filter.priority, handle, None)
}

/// The first priority that the agent's filter can have. It runs before other filters of that
/// priority, because the kernel inserts new BPF filters first.
fn best_priority(present: &[Filter]) -> u16 {
    let is_free = |priority: &u16| {
        let mut there = present.iter().filter(|filter| filter.priority == *priority);
        there.all(Filter::shares_priority)
    };
    (1..u16::MAX).find(is_free).unwrap_or(u16::MAX)
}

/// Whether the agent's filter exists and is the first one at the best priority.
fn is_in_place(present: &[Filter]) -> bool {
    let best = best_priority(present);
    let first = present
        .iter()
        .find(|filter| filter.priority >= best && filter.handle != 0);
    first.is_some_and(|first| first.priority == best && first.is_ours())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(priority: u16, handle: u32, kind: &str, name: &str) -> Filter {
        Filter {
            priority,
            for_all: true,
            handle,
            kind: kind.to_owned(),
            name: (kind == "bpf").then(|| name.to_owned()),
            ..Filter::default()
        }
    }

    fn own(priority: u16) -> Filter {
        filter(priority, HANDLES[0], "bpf", "lb_tc_to_pod")
    }

    #[test]
    fn filters_of_others_are_not_ours() {
        assert!(own(1).is_ours());
        assert!(filter(0x6c62, 1, "bpf", "lb_tc_to_pod").is_ours());
        assert!(!filter(1, 1, "bpf", "lb_tc_to_pod").is_ours());
        assert!(!filter(1, HANDLES[0], "bpf", "cil_from_container").is_ours());
        assert!(!filter(1, HANDLES[0], "flower", "").is_ours());
    }

    #[test]
    fn our_filter_gets_the_first_priority_that_it_can_share() {
        let foreign = filter(1, 1, "bpf", "cil_from_container");
        let flower = filter(1, 1, "flower", "");
        let of_ip = Filter {
            for_all: false,
            ..filter(2, 1, "bpf", "other")
        };
        assert_eq!(best_priority(&[]), 1);
        assert_eq!(best_priority(std::slice::from_ref(&foreign)), 1);
        assert_eq!(best_priority(&[flower.clone(), of_ip.clone()]), 3);

        assert!(!is_in_place(&[]));
        assert!(!is_in_place(std::slice::from_ref(&foreign)));
        assert!(is_in_place(&[own(1), foreign.clone()]));
        assert!(!is_in_place(&[foreign, own(1)]));
        assert!(!is_in_place(&[own(0x6c62)]));
        // Filters that ours cannot precede do not cause another attempt.
        let late = filter(49_152, 1, "bpf", "late");
        assert!(is_in_place(&[flower.clone(), of_ip, own(3), late]));
        assert!(!is_in_place(&[flower, own(3)]));
        // The list also contains an entry for each priority itself.
        assert!(is_in_place(&[filter(1, 0, "bpf", ""), own(1)]));
    }
}
