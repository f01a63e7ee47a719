//! Ranges of ports: NodePorts, and the source ports that the datapath allocates.

use std::fs;
use std::ops::RangeInclusive;

use lb_common::settings::{PortRange, SourcePorts};

/// The ephemeral port range, as two numbers (Documentation/networking/ip-sysctl.rst).
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The range from which the agent allocates NodePorts: the API server's default
/// `--service-node-port-range`.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Returns the source ports that the datapath allocates on this node.
pub fn source_ports() -> SourcePorts {
    let text = fs::read_to_string(LOCAL_PORTS).unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) => with_ephemeral_range(first, last),
        _ => SourcePorts::DEFAULT,
    }
}

/// Returns all source ports. The ephemeral port range is `first` to `last`.
fn with_ephemeral_range(first: u16, last: u16) -> SourcePorts {
    let all = SourcePorts::DEFAULT.all;
    let first = first.max(all.first);
    let count = last.checked_sub(first).map_or(0, |more| more.saturating_add(1));
    // If sockets use all ports, no port is preferred.
    let count = if count < all.count { count } else { 0 };
    SourcePorts {
        all,
        local: PortRange { first, count },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ephemeral_range_is_a_part_of_all_ports() {
        for ((first, last), expected) in [
            ((32_768, 60_999), (32_768, 28_232)),
            ((1024, 60_999), (1024, 59_976)),
            ((1, 1100), (1024, 77)),
            ((1, 1000), (1024, 0)),
            ((10_000, 65_535), (10_000, 55_536)),
            ((1024, 65_535), (1024, 0)),
            ((1, 65_535), (1024, 0)),
            ((40_000, 30_000), (40_000, 0)),
        ] {
            let ports = with_ephemeral_range(first, last);
            assert_eq!(ports.all, SourcePorts::DEFAULT.all);
            assert_eq!((ports.local.first, ports.local.count), expected, "{first} {last}");
        }
    }

    #[test]
    fn picked_ports_are_in_the_requested_range() {
        let ports = with_ephemeral_range(20_000, 29_999);
        for chance in [0, 1 << 16, 1 << 30, 1 << 31, u32::MAX] {
            assert!((20_000..30_000).contains(&ports.pick(chance, true).get()));
            let other = ports.pick(chance, false).get();
            assert!((1024..20_000).contains(&other) || other >= 30_000, "{other}");
        }
        assert_eq!(ports.pick(0, false).get(), 1024);
        assert_eq!(ports.pick(u32::MAX, false).get(), 65_535);
        assert_eq!(ports.pick(u32::MAX, true).get(), 29_999);
    }
}
