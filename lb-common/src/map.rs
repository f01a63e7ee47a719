//! The maps: their names, rows and sizes, for the programs and for the agent.

use core::marker::PhantomData;

use crate::address::Address;
use crate::budget::{BUCKETS, Bucket};
use crate::cidr::ServiceCidrs;
use crate::filter;
use crate::layout::{
    Affinity, AffinityKey, Backend, BackendId, DEVICE_ROWS, Device, DeviceLinks, DeviceRole, Flow, FlowKey,
    Fragment, FragmentKey, Frontend, FrontendKey, LinkAddress, NAMESPACE_ROWS, ServiceId, ServiceName,
    ServiceStats, Slot, Socket, SocketKey, SourceRange,
};
use crate::net::{Address4, Address6};
use crate::reason::Reason;
use crate::settings::LoadedSettings;

/// Flag of hash maps and tries: a row's memory is allocated when the row is inserted
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>).
const BPF_F_NO_PREALLOC: u32 = 1;
/// Flag of arrays: user space can map the array into its memory
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>).
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// A map: keys of type `K`, values of type `V`.
#[derive(Debug)]
pub struct MapSpec<K, V> {
    /// The name in the kernel and under the pin path.
    pub name: &'static str,
    /// The size in rows, unless the agent's options say another.
    pub max_entries: u32,
    /// `BPF_F_*` of the map.
    pub flags: u32,
    rows: PhantomData<fn(K) -> V>,
}

impl<K, V> MapSpec<K, V> {
    const fn new(name: &'static str, max_entries: u32) -> Self {
        Self::with_flags(name, max_entries, 0)
    }

    const fn with_flags(name: &'static str, max_entries: u32, flags: u32) -> Self {
        Self {
            name,
            max_entries,
            flags,
            rows: PhantomData,
        }
    }

    /// The name, and the sizes of keys and values.
    pub const fn layout(&self) -> MapLayout {
        MapLayout {
            name: self.name,
            key_size: size_of::<K>(),
            value_size: size_of::<V>(),
        }
    }
}

/// A map without the types of its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapLayout {
    /// The name.
    pub name: &'static str,
    /// Size of a key in bytes.
    pub key_size: usize,
    /// Size of a value in bytes.
    pub value_size: usize,
}

/// Key of a trie: the number of bits that count, then the bits.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
pub struct PrefixKey<K> {
    /// Length of the prefix in bits, in host byte order.
    pub length: u32,
    /// The bits.
    pub data: K,
}

/// The maps that each IP version has of its own.
pub trait FamilySpecs: Address {
    /// Frontends. They are few and rarely written. Without preallocation the memory of a row is not
    /// given to another row while a program may still read it.
    const FRONTENDS: MapSpec<FrontendKey<Self>, Frontend>;
    /// Backends.
    const BACKENDS: MapSpec<BackendId, Backend<Self>>;
    /// Flows.
    const FLOWS: MapSpec<FlowKey<Self>, Flow<Self>>;
    /// Translated sockets.
    const SOCKETS: MapSpec<SocketKey<Self>, Socket<Self>>;
    /// Which client goes to which backend.
    const AFFINITY: MapSpec<AffinityKey<Self>, Affinity>;
    /// Clients that may use an address of a load balancer.
    const SOURCE_RANGES: MapSpec<PrefixKey<SourceRange<Self>>, u32>;
    /// Ports of datagrams in fragments.
    const FRAGMENTS: MapSpec<FragmentKey<Self>, Fragment>;
}

macro_rules! family {
    ($address:ty, $version:literal) => {
        impl FamilySpecs for $address {
            const FRONTENDS: MapSpec<FrontendKey<Self>, Frontend> =
                MapSpec::with_flags(concat!("FRONTENDS", $version), 65_536, BPF_F_NO_PREALLOC);
            const BACKENDS: MapSpec<BackendId, Backend<Self>> =
                MapSpec::new(concat!("BACKENDS", $version), 262_144);
            const FLOWS: MapSpec<FlowKey<Self>, Flow<Self>> =
                MapSpec::new(concat!("FLOWS", $version), 262_144);
            const SOCKETS: MapSpec<SocketKey<Self>, Socket<Self>> =
                MapSpec::new(concat!("SOCKETS", $version), 65_536);
            const AFFINITY: MapSpec<AffinityKey<Self>, Affinity> =
                MapSpec::new(concat!("AFFINITY", $version), 65_536);
            const SOURCE_RANGES: MapSpec<PrefixKey<SourceRange<Self>>, u32> = MapSpec::with_flags(
                concat!("SOURCE_RANGES", $version),
                65_536,
                BPF_F_NO_PREALLOC,
            );
            const FRAGMENTS: MapSpec<FragmentKey<Self>, Fragment> =
                MapSpec::new(concat!("FRAGMENTS", $version), 8_192);
        }
    };
}

family!(Address4, "4");
family!(Address6, "6");

/// Which destination addresses to look up: words of [`crate::filter`].
pub const FILTER: MapSpec<u32, u64> = MapSpec::new("FILTER", filter::WORDS);
/// Which sources' packets to look up as replies: words of [`crate::filter`].
pub const REPLY_FILTER: MapSpec<u32, u64> = MapSpec::new("REPLY_FILTER", filter::REPLY_WORDS);
/// Where Service CIDRs are: one row.
pub const SERVICE_CIDRS: MapSpec<u32, ServiceCidrs> = MapSpec::new("SERVICE_CIDRS", 1);
/// Slots by index.
pub const SLOTS: MapSpec<u32, Slot> = MapSpec::with_flags("SLOTS", 8_388_608, BPF_F_MMAPABLE);
/// The device that leads to the kernel's own reassembly: one row. The kernel removes a device that
/// vanishes from a map of devices, so that no packet is sent to it.
pub const REASSEMBLY: MapSpec<u32, [u32; 2]> = MapSpec::new("REASSEMBLY", 1);
/// The index of that device for XDP, which only leaves fragments to TC: one row, 0 if there is
/// none. After an agent was killed the row may name a device that no longer exists; TC then passes
/// the fragment.
///
/// This is no map of devices: generic XDP of Linux 5.10 refuses a program that uses one
/// (`generic_xdp_install`), and the kernel lets programs of only one type use such a map
/// (`bpf_prog_map_compatible`).
pub const XDP_REASSEMBLY: MapSpec<u32, u32> = MapSpec::new("XDP_REASSEMBLY", 1);
/// The rate limit of all fragments that are sent to the kernel's own reassembly
/// ([`crate::budget::ALL_DETOURS`]): one row. All CPUs share it without a lock: two that count at
/// the same time may count one for both.
pub const DETOURS: MapSpec<u32, Bucket> = MapSpec::new("DETOURS", 1);
/// Devices that packets to Pods of other nodes leave by, by interface index.
pub const DEVICES: MapSpec<u32, Device> = MapSpec::with_flags("DEVICES", 1_024, BPF_F_NO_PREALLOC);
/// Devices that XDP programs of other devices can send through:
/// [`device_row`](crate::layout::device_row) to interface index.
pub const XDP_DEVICES: MapSpec<u32, u32> = MapSpec::new("XDP_DEVICES", DEVICE_ROWS);
/// Roles of devices, by [`device_row`](crate::layout::device_row).
pub const DEVICE_ROLES: MapSpec<u32, DeviceRole> = MapSpec::new("DEVICE_ROLES", DEVICE_ROWS);
/// Devices whose peer is in a Pod: [`device_row`](crate::layout::device_row) to interface index.
pub const POD_DEVICES: MapSpec<u32, u32> = MapSpec::new("POD_DEVICES", DEVICE_ROWS);
/// Which frames that a device receives XDP takes, by [`device_row`](crate::layout::device_row).
pub const DEVICE_LINKS: MapSpec<u32, DeviceLinks> = MapSpec::new("DEVICE_LINKS", DEVICE_ROWS);
/// Addresses of devices that take frames which arrive on other devices. The value has no meaning.
pub const NODE_LINKS: MapSpec<LinkAddress, u32> = MapSpec::with_flags("NODE_LINKS", 1_024, BPF_F_NO_PREALLOC);
/// Addresses of the node's devices, of both families: words of
/// [`Address::words`]. The value has no meaning.
pub const NODE_ADDRESSES: MapSpec<[u32; 4], u32> =
    MapSpec::with_flags("NODE_ADDRESSES", 16_384, BPF_F_NO_PREALLOC);
/// Roles of network namespaces ([`namespace_role`](crate::layout::namespace_role)) by their cookie.
pub const NAMESPACES: MapSpec<u64, u32> =
    MapSpec::with_flags("NAMESPACES", NAMESPACE_ROWS, BPF_F_NO_PREALLOC);
/// Names of Service ports.
pub const SERVICE_NAMES: MapSpec<ServiceId, ServiceName> =
    MapSpec::with_flags("SERVICE_NAMES", 65_536, BPF_F_NO_PREALLOC);
/// Counters of Service ports, for each CPU.
pub const SERVICE_STATS: MapSpec<ServiceId, ServiceStats> = MapSpec::new("SERVICE_STATS", 65_536);
/// Counters by [`Reason::index`], for each CPU. Rows are left for later reasons: an agent that has
/// more of them keeps the pinned map, and with it the layout and all open connections.
pub const REASONS: MapSpec<u32, u64> = MapSpec::new("REASONS", 64);
const _: () = assert!(Reason::ALL.len() <= REASONS.max_entries as usize);
/// Rate limits of answers by [`crate::budget::Limit::bucket`], for each CPU.
pub const ANSWERS: MapSpec<u32, Bucket> = MapSpec::new("ANSWERS", BUCKETS);
/// What the programs were loaded with: one row. No program reads it.
pub const SETTINGS: MapSpec<u32, LoadedSettings> = MapSpec::new("SETTINGS", 1);

/// All maps.
pub const ALL: [MapLayout; 34] = [
    Address4::FRONTENDS.layout(),
    Address6::FRONTENDS.layout(),
    Address4::BACKENDS.layout(),
    Address6::BACKENDS.layout(),
    Address4::FLOWS.layout(),
    Address6::FLOWS.layout(),
    Address4::SOCKETS.layout(),
    Address6::SOCKETS.layout(),
    Address4::AFFINITY.layout(),
    Address6::AFFINITY.layout(),
    Address4::SOURCE_RANGES.layout(),
    Address6::SOURCE_RANGES.layout(),
    Address4::FRAGMENTS.layout(),
    Address6::FRAGMENTS.layout(),
    FILTER.layout(),
    REPLY_FILTER.layout(),
    SERVICE_CIDRS.layout(),
    SLOTS.layout(),
    REASSEMBLY.layout(),
    XDP_REASSEMBLY.layout(),
    DETOURS.layout(),
    DEVICES.layout(),
    XDP_DEVICES.layout(),
    DEVICE_ROLES.layout(),
    POD_DEVICES.layout(),
    DEVICE_LINKS.layout(),
    NODE_LINKS.layout(),
    NODE_ADDRESSES.layout(),
    NAMESPACES.layout(),
    SERVICE_NAMES.layout(),
    SERVICE_STATS.layout(),
    REASONS.layout(),
    ANSWERS.layout(),
    SETTINGS.layout(),
];
