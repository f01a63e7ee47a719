//! Attaches TC programs as clsact filters. They belong to the device and need no pin.

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

/// Handles of our filters: fixed, so that the next agent finds them; two, so that one can be made
/// before the other goes.
const HANDLES: [u32; 2] = [0x6c62_0001, 0x6c62_0002];

/// Priority and handle of the filters of agents that left the first place to others.
const OLD_PLACE: (u16, u32) = (0x6c62, 1);

impl Filter {
    /// Whether this or another agent of ours has made it.
    pub(in crate::datapath) fn is_ours(&self) -> bool {
        let is_named = self
            .name
            .as_ref()
            .is_some_and(|name| name.starts_with(program::TC_PREFIX));
        is_named && (HANDLES.contains(&self.handle) || (self.priority, self.handle) == OLD_PLACE)
    }

    /// Whether a BPF filter for all packets can be beside it at its priority.
    fn shares_priority(&self) -> bool {
        self.kind == "bpf" && self.for_all
    }
}

/// Puts a program in the place of the filter of an earlier one, or attaches it before the filters
/// of others.
///
/// One that others are asked before is attached anew, before them, and then the old one goes.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    index: u32,
    device: &str,
    direction: Direction,
) -> Result<(), Failure> {
    // A qdisc that is there already is what is needed; without one the next calls fail and say so.
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
        tracing::info!(device, ?direction, filters = ?present, "{name} goes before the programs of others again");
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
            "filters of others are asked before {name}, as none of BPF can be at their priorities: what they let pass \
             does not reach Services"
        );
    }
    Ok(())
}

/// Whether our filter is asked before those of others, as far as it can be.
pub(super) fn is_first(index: u32, direction: Direction) -> io::Result<bool> {
    Ok(is_in_place(&filters(index, direction)?))
}

/// Removes our filters of one direction; returns how many there were.
pub(super) fn detach(index: u32, device: &str, direction: Direction) -> usize {
    let present = filters(index, direction).unwrap_or_default();
    let own = present.iter().filter(|filter| filter.is_ours());
    own.filter(|filter| link(device, direction, filter).is_ok_and(|link| link.detach().is_ok()))
        .count()
}

/// Removes our filters of all devices; returns how many there were.
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

/// The first priority at which our filter can be. There it comes before those that are there
/// already: the kernel puts new BPF filters first.
fn best_priority(present: &[Filter]) -> u16 {
    let is_free = |priority: &u16| {
        let mut there = present.iter().filter(|filter| filter.priority == *priority);
        there.all(Filter::shares_priority)
    };
    (1..u16::MAX).find(is_free).unwrap_or(u16::MAX)
}

/// Whether nothing at the best priority is asked before our filter, and our filter is there.
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
    fn others_do_not_look_like_ours() {
        assert!(own(1).is_ours());
        assert!(filter(0x6c62, 1, "bpf", "lb_tc_to_pod").is_ours());
        assert!(!filter(1, 1, "bpf", "lb_tc_to_pod").is_ours());
        assert!(!filter(1, HANDLES[0], "bpf", "cil_from_container").is_ours());
        assert!(!filter(1, HANDLES[0], "flower", "").is_ours());
    }

    #[test]
    fn ours_is_at_the_first_priority_that_takes_it() {
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
        // What cannot be got past is no reason to try again and again.
        let late = filter(49_152, 1, "bpf", "late");
        assert!(is_in_place(&[flower.clone(), of_ip, own(3), late]));
        assert!(!is_in_place(&[flower, own(3)]));
        // The priority itself is listed, too.
        assert!(is_in_place(&[filter(1, 0, "bpf", ""), own(1)]));
    }
}
