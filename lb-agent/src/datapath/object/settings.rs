//! Settings that are fixed when the programs are loaded.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::map::{self, FamilySpecs as _};
use lb_common::net::Address4;
use lb_common::settings::{Lifetimes, LoadedSettings, SourcePorts, TICK_SHIFT};

use crate::datapath::clock;
use crate::datapath::probe::{self, Helper};
use crate::maps::Capacity;

/// Flag of `bpf_fib_lookup`
/// (<https://github.com/torvalds/linux/blob/v6.3/include/uapi/linux/bpf.h>).
const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 4;

/// What is fixed when the programs are loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The node's primary IPv4 address. It replaces the client's address in hairpin connections.
    pub node_address4: Option<Ipv4Addr>,
    /// The node's primary IPv6 address. It replaces the client's address in hairpin connections.
    pub node_address6: Option<Ipv6Addr>,
    /// The cookie of the node's network namespace (`SO_NETNS_COOKIE`). 0 stands for the initial
    /// namespace, if the kernel does not return cookies.
    pub node_namespace: u64,
    /// Whether the socket programs translate only sockets of that namespace.
    pub only_node_sockets: bool,
    /// Whether TCP connections to removed backends continue. Otherwise they are reset.
    pub keeps_removed: bool,
    /// Whether packets between Pods of this node bypass the node's network stack.
    pub redirects_locally: bool,
    /// Source ports that the datapath allocates.
    pub source_ports: SourcePorts,
    /// The seed of the hash of outside clients. It must be the same on all nodes.
    pub hash_seed: u64,
    /// The idle time after which flows expire, in seconds.
    pub lifetimes: Lifetimes,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Sizes of the maps that packets and sockets fill.
    pub tables: TableSizes,
}

/// Sizes of the maps that packets and sockets fill, for each IP family. A full map evicts its least
/// recently used entries, except the map of flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableSizes {
    /// Flow entries. A connection takes two.
    pub flows: u32,
    /// Rows of translated sockets: one for TCP, three for UDP.
    pub sockets: u32,
    /// Clients with session affinity.
    pub affinities: u32,
    /// Datagrams of which fragments are in transit.
    pub fragments: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_address4: None,
            node_address6: None,
            node_namespace: 0,
            only_node_sockets: false,
            keeps_removed: false,
            redirects_locally: false,
            source_ports: SourcePorts::DEFAULT,
            hash_seed: 0,
            lifetimes: Lifetimes::DEFAULT_SECONDS,
            capacity: DEFAULT_CAPACITY,
            tables: DEFAULT_TABLES,
        }
    }
}

/// Default sizes of the maps.
pub const DEFAULT_CAPACITY: Capacity = Capacity {
    frontends: Address4::FRONTENDS.max_entries,
    slots: map::SLOTS.max_entries,
    backends: Address4::BACKENDS.max_entries,
    services: map::SERVICE_STATS.max_entries,
    source_ranges: Address4::SOURCE_RANGES.max_entries,
};
/// Default sizes of the maps that packets and sockets fill.
pub const DEFAULT_TABLES: TableSizes = TableSizes {
    flows: Address4::FLOWS.max_entries,
    sockets: Address4::SOCKETS.max_entries,
    affinities: Address4::AFFINITY.max_entries,
    fragments: Address4::FRAGMENTS.max_entries,
};

/// What the programs are loaded with on this kernel.
pub(super) fn loaded_settings(settings: &Settings) -> LoadedSettings {
    let jiffies_per_second = clock::jiffies_per_second();
    let lifetimes = settings.lifetimes.to_ticks(tick_rate(jiffies_per_second));
    // If that cannot be probed, the load reports why.
    let sets_errors = probe::helper(probe::Program::CgroupSockAddr, Helper::SetRetval).unwrap_or(true);
    LoadedSettings {
        lifetimes: lifetimes.rows(),
        hash_seed: settings.hash_seed,
        node_namespace: settings.node_namespace,
        node_address6: settings.node_address6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
        node_address4: settings.node_address4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
        jiffies_per_second,
        source_ports: settings.source_ports,
        keeps_removed: u32::from(settings.keeps_removed),
        redirects_locally: u32::from(settings.redirects_locally),
        only_node_sockets: u32::from(settings.only_node_sockets),
        skip_neighbour: if probe::kernel_at_least(6, 3) {
            BPF_FIB_LOOKUP_SKIP_NEIGH
        } else {
            0
        },
        sets_errors: u32::from(sets_errors),
        reserved: 0,
    }
}

/// Ticks ([`TICK_SHIFT`]) per 1000 seconds.
fn tick_rate(jiffies_per_second: u32) -> u32 {
    let rate = (u64::from(jiffies_per_second) * 1000) >> TICK_SHIFT;
    u32::try_from(rate).unwrap_or(u32::MAX).max(1)
}
