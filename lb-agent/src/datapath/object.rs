//! The kernel programs: embedded object, load-time settings, loading.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, MapInfo, MapType};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use lb_common::budget::Bucket;
use lb_common::cidr;
use lb_common::flow::Lifetimes;
use lb_common::layout::{
    Address4, Address6, Affinity, AffinityKey, Backend, Device, DeviceLinks, DeviceRole, Flow, FlowKey,
    Fragment, FragmentKey, Frontend, FrontendKey, LinkAddress, LoadedSettings, ServiceName, ServiceStats,
    Slot, Socket, SocketKey, SourceRange, halves, map,
};
use lb_common::tables::{SourcePorts, TICK_SHIFT};

use super::clock;
use super::probe::{self, Helper};
use crate::maps::Capacity;

/// Flag of `bpf_fib_lookup` (include/uapi/linux/bpf.h, Linux 6.3).
const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 4;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// Names of the kernel programs.
pub mod program {
    /// XDP on network devices. It is loaded with the first device that takes it.
    pub const XDP: &str = "lb_xdp";
    /// TC ingress of network devices.
    pub const TC_FROM_NETWORK: &str = "lb_tc_from_network";
    /// TC egress of network devices.
    pub const TC_TO_NETWORK: &str = "lb_tc_to_network";
    /// TC ingress of the host side of Pod devices.
    pub const TC_FROM_POD: &str = "lb_tc_from_pod";
    /// TC egress of the host side of Pod devices.
    pub const TC_TO_POD: &str = "lb_tc_to_pod";
    /// The programs that translate the addresses in system calls of sockets.
    pub const SOCKETS: [&str; 8] = [
        "lb_connect4",
        "lb_connect6",
        "lb_sendmsg4",
        "lb_sendmsg6",
        "lb_recvmsg4",
        "lb_recvmsg6",
        "lb_getpeername4",
        "lb_getpeername6",
    ];
    /// Is told when a socket is closed.
    pub const SOCKET_RELEASE: &str = "lb_sock_release";
    /// As [`TC_FROM_NETWORK`], on devices whose packets begin with the IP header.
    pub const TC_FROM_NETWORK_LAYER3: &str = "lb_tc_from_network_layer3";
    /// As [`TC_FROM_POD`], on devices whose packets begin with the IP header.
    pub const TC_FROM_POD_LAYER3: &str = "lb_tc_from_pod_layer3";
    /// TC egress of devices whose packets begin with the IP header.
    pub const TC_TO_LAYER3: &str = "lb_tc_to_layer3";
    /// TC ingress of the device that leads to the kernel's own reassembly. It is loaded with that device.
    pub const TC_FROM_REASSEMBLY: &str = "lb_tc_from_reassembly";
    /// Programs for devices whose packets begin with the IP header. They are loaded with the first such device.
    pub const LAYER3: [&str; 3] = [TC_FROM_NETWORK_LAYER3, TC_FROM_POD_LAYER3, TC_TO_LAYER3];
    /// Programs that do nothing, for the benchmark.
    pub const EMPTY_PREFIX: &str = "lb_empty_";
}

/// What is fixed when the programs are loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The node's primary IPv4 address: replaces the client's in hairpin connections.
    pub node_address4: Option<Ipv4Addr>,
    /// The node's primary IPv6 address: replaces the client's in hairpin connections.
    pub node_address6: Option<Ipv6Addr>,
    /// The cookie of the node's own network namespace (`SO_NETNS_COOKIE`); 0 if the kernel does not tell: the initial one.
    pub node_namespace: u64,
    /// Whether only sockets of that namespace are translated.
    pub only_node_sockets: bool,
    /// Whether TCP connections to removed backends go on, instead of being reset.
    pub keeps_removed: bool,
    /// Whether packets between Pods of this node go without its stack.
    pub redirects_locally: bool,
    /// Source ports that the datapath gives out.
    pub source_ports: SourcePorts,
    /// What the hash of outside clients begins with: the same on all nodes.
    pub hash_seed: u64,
    /// How long idle flows live, in seconds.
    pub lifetimes: Lifetimes,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Sizes of the maps that packets and sockets fill.
    pub tables: TableSizes,
}

/// Sizes of the maps that packets and sockets fill, each for one family. All but that of the flows make room by
/// forgetting who was not seen for the longest time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableSizes {
    /// Entries of flows; a connection takes two.
    pub flows: u32,
    /// Rows of translated sockets: one for TCP, three for UDP.
    pub sockets: u32,
    /// Clients that stay with a backend.
    pub affinities: u32,
    /// Datagrams whose fragments are on their way.
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
    frontends: 65_536,
    slots: 8_388_608,
    backends: 262_144,
    services: 65_536,
    source_ranges: 65_536,
};
/// Default sizes of the maps that packets and sockets fill.
pub const DEFAULT_TABLES: TableSizes = TableSizes {
    flows: 262_144,
    sockets: 65_536,
    affinities: 65_536,
    fragments: 8_192,
};

/// Why the kernel programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin directory cannot be made.
    #[error("cannot create {}: is a bpf file system mounted there? (`mount -t bpf bpf /sys/fs/bpf`)", path.display())]
    PinDirectory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The object was refused.
    #[error("cannot create the BPF maps")]
    Object(#[source] Box<aya::EbpfError>),
    /// A program was refused.
    #[error("the kernel refuses program {name}: {reason}")]
    Program {
        /// The program's name.
        name: String,
        /// The end of the verifier's log, or what else was wrong.
        reason: String,
    },
    /// A pinned map has another layout.
    #[error("pinned map {} has another layout than this agent's", path.display())]
    Layout {
        /// The pinned map.
        path: PathBuf,
    },
}

/// All maps, with the sizes of their keys and values in bytes.
const MAPS: [(&str, usize, usize); 34] = [
    (
        map::FRONTENDS4,
        size_of::<FrontendKey<Address4>>(),
        size_of::<Frontend>(),
    ),
    (
        map::FRONTENDS6,
        size_of::<FrontendKey<Address6>>(),
        size_of::<Frontend>(),
    ),
    (map::FILTER, size_of::<u32>(), size_of::<u64>()),
    (map::REPLY_FILTER, size_of::<u32>(), size_of::<u64>()),
    (map::SERVICE_CIDRS, size_of::<u32>(), size_of::<cidr::Networks>()),
    (map::SLOTS, size_of::<u32>(), size_of::<Slot>()),
    (map::BACKENDS4, size_of::<u32>(), size_of::<Backend<Address4>>()),
    (map::BACKENDS6, size_of::<u32>(), size_of::<Backend<Address6>>()),
    (
        map::FLOWS4,
        size_of::<FlowKey<Address4>>(),
        size_of::<Flow<Address4>>(),
    ),
    (
        map::FLOWS6,
        size_of::<FlowKey<Address6>>(),
        size_of::<Flow<Address6>>(),
    ),
    (
        map::SOCKETS4,
        size_of::<SocketKey<Address4>>(),
        size_of::<Socket<Address4>>(),
    ),
    (
        map::SOCKETS6,
        size_of::<SocketKey<Address6>>(),
        size_of::<Socket<Address6>>(),
    ),
    (
        map::AFFINITY4,
        size_of::<AffinityKey<Address4>>(),
        size_of::<Affinity>(),
    ),
    (
        map::AFFINITY6,
        size_of::<AffinityKey<Address6>>(),
        size_of::<Affinity>(),
    ),
    (
        map::SOURCE_RANGES4,
        size_of::<Key<SourceRange<Address4>>>(),
        size_of::<u32>(),
    ),
    (
        map::SOURCE_RANGES6,
        size_of::<Key<SourceRange<Address6>>>(),
        size_of::<u32>(),
    ),
    (
        map::FRAGMENTS4,
        size_of::<FragmentKey<Address4>>(),
        size_of::<Fragment>(),
    ),
    (
        map::FRAGMENTS6,
        size_of::<FragmentKey<Address6>>(),
        size_of::<Fragment>(),
    ),
    (map::REASSEMBLY, size_of::<u32>(), size_of::<[u32; 2]>()),
    (map::XDP_REASSEMBLY, size_of::<u32>(), size_of::<u32>()),
    (map::DETOURS, size_of::<u32>(), size_of::<Bucket>()),
    (map::DEVICES, size_of::<u32>(), size_of::<Device>()),
    (map::XDP_DEVICES, size_of::<u32>(), size_of::<u32>()),
    (map::DEVICE_ROLES, size_of::<u32>(), size_of::<DeviceRole>()),
    (map::POD_DEVICES, size_of::<u32>(), size_of::<u32>()),
    (map::DEVICE_LINKS, size_of::<u32>(), size_of::<DeviceLinks>()),
    (map::NODE_LINKS, size_of::<LinkAddress>(), size_of::<u32>()),
    (map::NODE_ADDRESSES, size_of::<[u32; 4]>(), size_of::<u32>()),
    (map::NAMESPACES, size_of::<u64>(), size_of::<u32>()),
    (map::SERVICE_NAMES, size_of::<u32>(), size_of::<ServiceName>()),
    (map::SERVICE_STATS, size_of::<u32>(), size_of::<ServiceStats>()),
    (map::REASONS, size_of::<u32>(), size_of::<u64>()),
    (map::ANSWERS, size_of::<u32>(), size_of::<Bucket>()),
    (map::SETTINGS, size_of::<u32>(), size_of::<LoadedSettings>()),
];

impl LoadError {
    /// Why the kernel refused a program, without the most part of the verifier's log.
    pub(super) fn program(name: &str, error: ProgramError) -> Self {
        Self::Program {
            name: name.to_owned(),
            reason: shorten(error),
        }
    }
}

/// Creates the maps, pins them in `directory` and loads all programs. Maps that are pinned there are taken over.
pub fn load(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let mut ebpf = open(settings, directory)?;
    load_programs(&mut ebpf)?;
    publish(&mut ebpf, loaded_settings(settings))?;
    Ok(ebpf)
}

/// As [`load`], but the programs are left to [`load_program`].
pub fn prepare(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let mut ebpf = open(settings, directory)?;
    publish(&mut ebpf, loaded_settings(settings))?;
    Ok(ebpf)
}

/// Loads a program that is not loaded yet.
pub fn load_program(name: &str, program: &mut Program) -> Result<(), LoadError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Ok(()),
    }
    .map_err(|error| LoadError::program(name, error))
}

fn open(settings: &Settings, directory: &Path) -> Result<Ebpf, LoadError> {
    let loaded = loaded_settings(settings);
    let lifetimes = loaded.lifetimes.rows();
    let address4 = loaded.node_address4.to_word();
    let address6 = loaded.node_address6.to_words();
    let SourcePorts { all, local } = settings.source_ports;
    let ports = [all.first, all.count, local.first, local.count];
    // If that cannot be told, loading tells why.
    let sets_errors =
        u32::from(probe::helper(probe::Program::CgroupSockAddr, Helper::SetRetval).unwrap_or(true));

    let redirects_locally = u32::from(settings.redirects_locally);
    let skip_neighbour = if probe::kernel_at_least(6, 3) {
        BPF_FIB_LOOKUP_SKIP_NEIGH
    } else {
        0
    };

    let mut loader = EbpfLoader::new();
    loader
        // The kernel's types, hundred thousands, are of no use to programs that look into no structure of the kernel.
        .btf(None)
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("LIFETIMES", &lifetimes, true)
        .override_global("NODE_ADDRESS4", &address4, true)
        .override_global("NODE_ADDRESS6", &address6, true)
        .override_global("JIFFIES_PER_SECOND", &loaded.jiffies_per_second, true)
        .override_global("NODE_NAMESPACE", &settings.node_namespace, true)
        .override_global("ONLY_NODE", &loaded.only_node_sockets, true)
        .override_global("KEEP_REMOVED", &loaded.keeps_removed, true)
        .override_global("LOCAL_REDIRECT", &redirects_locally, true)
        .override_global("SETS_ERRORS", &sets_errors, true)
        .override_global("SKIP_NEIGHBOUR", &skip_neighbour, true)
        .override_global("PORTS", &ports, true)
        .override_global("HASH_SEED", &settings.hash_seed, true);
    for (name, entries) in sizes(settings) {
        loader.map_max_entries(name, entries);
    }
    std::fs::create_dir_all(directory).map_err(|source| LoadError::PinDirectory {
        path: directory.to_owned(),
        source,
    })?;
    check_layouts(settings, directory)?;
    for (name, ..) in MAPS {
        loader.map_pin_path(name, directory.join(name));
    }
    loader
        .load(OBJECT)
        .map_err(|error| LoadError::Object(Box::new(error)))
}

/// What the programs and the commands are told.
fn loaded_settings(settings: &Settings) -> LoadedSettings {
    let jiffies_per_second = clock::jiffies_per_second();
    let namespace = settings.node_namespace;
    LoadedSettings {
        lifetimes: settings.lifetimes.to_ticks(tick_rate(jiffies_per_second)),
        jiffies_per_second,
        local_ports: settings.source_ports.local,
        keeps_removed: u32::from(settings.keeps_removed),
        node_address4: settings.node_address4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
        node_address6: settings.node_address6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
        node_namespace: halves(namespace),
        only_node_sockets: u32::from(settings.only_node_sockets),
        hash_seed: halves(settings.hash_seed),
    }
}

/// Tells the commands what the programs were loaded with.
fn publish(ebpf: &mut Ebpf, loaded: LoadedSettings) -> Result<(), LoadError> {
    let Some(map) = ebpf.map_mut(map::SETTINGS) else {
        return Ok(());
    };
    Array::try_from(map)
        .and_then(|mut settings| settings.set(0, loaded, 0))
        .map_err(|error| LoadError::Object(Box::new(error.into())))
}

/// The maps whose sizes the settings say, and these sizes.
fn sizes(settings: &Settings) -> [(&'static str, u32); 17] {
    let Settings { capacity, tables, .. } = settings;
    [
        (map::FRONTENDS4, capacity.frontends),
        (map::FRONTENDS6, capacity.frontends),
        (map::SLOTS, capacity.slots),
        (map::BACKENDS4, capacity.backends),
        (map::BACKENDS6, capacity.backends),
        (map::SOURCE_RANGES4, capacity.source_ranges),
        (map::SOURCE_RANGES6, capacity.source_ranges),
        (map::SERVICE_NAMES, capacity.services),
        (map::SERVICE_STATS, capacity.services),
        (map::FLOWS4, tables.flows),
        (map::FLOWS6, tables.flows),
        (map::SOCKETS4, tables.sockets),
        (map::SOCKETS6, tables.sockets),
        (map::AFFINITY4, tables.affinities),
        (map::AFFINITY6, tables.affinities),
        (map::FRAGMENTS4, tables.fragments),
        (map::FRAGMENTS6, tables.fragments),
    ]
}

/// The pinned maps that have other sizes than the settings say: name, size, wanted size. A map keeps its size, and what
/// it holds, as long as it is pinned.
pub fn other_sizes(settings: &Settings, directory: &Path) -> Vec<(&'static str, u32, u32)> {
    let pinned = |(name, wanted)| {
        let info = MapInfo::from_pin(directory.join(name)).ok()?;
        Some((name, info.max_entries(), wanted))
    };
    let found = sizes(settings).into_iter().filter_map(pinned);
    found.filter(|(_, size, wanted)| size != wanted).collect()
}

/// Checks that pinned maps are of this agent's layout: the kernel and aya do not.
fn check_layouts(settings: &Settings, directory: &Path) -> Result<(), LoadError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| LoadError::Object(Box::new(error.into())))?;
    for (name, key_size, value_size) in MAPS {
        let path = directory.join(name);
        if !path.exists() {
            continue;
        }
        let is_sized = sizes(settings).iter().any(|(sized, _)| *sized == name);
        let fits = |info: &MapInfo| {
            let definition = object.maps.get(name)?;
            let kind = info.map_type().ok()?;
            let is_array = matches!(kind, MapType::Array | MapType::PerCpuArray);
            // Programs take for granted how many rows such an array has.
            let has_rows = !is_array || is_sized || info.max_entries() == definition.max_entries();
            let has_sizes = info.key_size() as usize == key_size && info.value_size() as usize == value_size;
            Some(kind as u32 == definition.map_type() && has_sizes && has_rows)
        };
        if !MapInfo::from_pin(&path).is_ok_and(|info| fits(&info) == Some(true)) {
            return Err(LoadError::Layout { path });
        }
    }
    Ok(())
}

/// Loads every program that the agent attaches in any case. The empty ones are the benchmark's.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, program) in ebpf.programs_mut() {
        let is_loaded_later =
            program::LAYER3.contains(&name) || [program::XDP, program::TC_FROM_REASSEMBLY].contains(&name);
        if !name.starts_with(program::EMPTY_PREFIX) && !is_loaded_later {
            load_program(name, program)?;
        }
    }
    Ok(())
}

/// The end of a verifier log says what is wrong; all of it is thousands of lines.
fn shorten(error: ProgramError) -> String {
    const LINES: usize = 12;
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let end = lines
                .get(lines.len().saturating_sub(LINES)..)
                .unwrap_or_default()
                .join("\n");
            format!("{io_error}\n{end}")
        }
        error => crate::describe(&error),
    }
}

/// Ticks ([`TICK_SHIFT`]) per 1000 seconds.
fn tick_rate(jiffies_per_second: u32) -> u32 {
    let rate = (u64::from(jiffies_per_second) * 1000) >> TICK_SHIFT;
    u32::try_from(rate).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel allocates at once: arrays and LRU maps; frontends and names grow with their use. An element of
    /// a hash has a header of 48 bytes (`struct htab_elem`, kernel/bpf/hashtab.c, Linux 6.18), values are rounded up
    /// to 8 bytes, and there is a 16-byte bucket for each element.
    #[test]
    fn the_default_sizes_take_what_the_readme_says() {
        let entries = |name| match name {
            map::SLOTS => DEFAULT_CAPACITY.slots,
            map::BACKENDS4 | map::BACKENDS6 => DEFAULT_CAPACITY.backends,
            map::FLOWS4 | map::FLOWS6 => DEFAULT_TABLES.flows,
            map::SOCKETS4 | map::SOCKETS6 => DEFAULT_TABLES.sockets,
            map::AFFINITY4 | map::AFFINITY6 => DEFAULT_TABLES.affinities,
            map::FRAGMENTS4 | map::FRAGMENTS6 => DEFAULT_TABLES.fragments,
            _ => 0,
        };
        let element = |key: usize, value: usize| match key {
            4 => value.next_multiple_of(8),
            key => 48 + key.next_multiple_of(8) + value.next_multiple_of(8) + 16,
        };
        let bytes: usize = MAPS
            .iter()
            .map(|(name, key, value)| entries(*name) as usize * element(*key, *value))
            .sum();
        assert!(bytes < 190_000_000, "{bytes}");
        assert!(bytes > 170_000_000, "{bytes}: say it in the README");
    }
}
