//! Ranges of ports: of NodePorts, and of the source ports that the datapath gives out, those that neither sockets of the
//! node nor NodePorts have.

use std::fs;
use std::ops::RangeInclusive;

use lb_common::tables::{PortRange, TRANSLATED_PORTS};

/// Ports that the kernel gives to sockets, two numbers (Documentation/networking/ip-sysctl.rst).
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports of NodePort Services: the API server's default `--service-node-port-range`.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Ports below belong to well-known services.
const FIRST: u16 = 1024;

/// The largest range of ports that is free on this node.
pub fn translated() -> PortRange {
    let text = fs::read_to_string(LOCAL_PORTS).unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else {
        return TRANSLATED_PORTS;
    };
    largest_gap(first..=last).unwrap_or_else(|| {
        tracing::warn!(
            "{LOCAL_PORTS} ({}) leaves too few ports for connections that are sent on to other nodes, which may take \
             those of the node's own: make it smaller",
            text.trim()
        );
        TRANSLATED_PORTS
    })
}

/// The largest range beside the ports of sockets and NodePorts, if it is of any use.
fn largest_gap(local: RangeInclusive<u16>) -> Option<PortRange> {
    const LEAST: u16 = 1024;
    let mut used = [local, NODE_PORTS];
    used.sort_by_key(|range| *range.start());
    let mut gaps = Vec::new();
    let mut next = u32::from(FIRST);
    for range in used {
        gaps.push((next, u32::from(*range.start())));
        next = next.max(u32::from(*range.end()) + 1);
    }
    gaps.push((next, u32::from(u16::MAX) + 1));
    let (first, end) = gaps
        .into_iter()
        .max_by_key(|(first, end)| end.saturating_sub(*first))?;
    let range = PortRange {
        first: u16::try_from(first).ok()?,
        count: u16::try_from(end.checked_sub(first)?).ok()?,
    };
    (range.count >= LEAST).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gap_is_taken() {
        for (local, expected) in [
            (32_768..=60_999, Some((1024, 28_976))),
            (1024..=29_999, Some((32_768, 32_768))),
            (1024..=60_999, Some((61_000, 4536))),
            (10_000..=65_535, Some((1024, 8976))),
            (20_000..=31_000, Some((32_768, 32_768))),
            (1024..=65_535, None),
            (1500..=65_000, None),
        ] {
            let found = largest_gap(local.clone()).map(|range| (range.first, range.count));
            assert_eq!(found, expected, "{local:?}");
        }
    }
}
