//! The maps that hold addresses of one family.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use lb_common::layout::{
    Affinity, AffinityKey, Backend, Device, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey,
    Socket, SocketKey, SourceRange,
};
use lb_common::net::{Address4, Address6};

const FRONTENDS: u32 = 65_536;
const BACKENDS: u32 = 262_144;
const FLOWS: u32 = 262_144;
const SOCKETS: u32 = 65_536;
const AFFINITIES: u32 = 65_536;
const SOURCE_RANGES: u32 = 65_536;
const FRAGMENTS: u32 = 8_192;

/// Frontend rows are few and rarely written. The map does not preallocate them, so a row's memory
/// is not reused while a program may still read it.
#[map]
static FRONTENDS4: HashMap<FrontendKey<Address4>, Frontend> =
    HashMap::with_max_entries(FRONTENDS, BPF_F_NO_PREALLOC);
#[map]
static FRONTENDS6: HashMap<FrontendKey<Address6>, Frontend> =
    HashMap::with_max_entries(FRONTENDS, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS4: Array<Backend<Address4>> = Array::with_max_entries(BACKENDS, 0);
#[map]
static BACKENDS6: Array<Backend<Address6>> = Array::with_max_entries(BACKENDS, 0);
#[map]
static FLOWS4: LruHashMap<FlowKey<Address4>, Flow<Address4>> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static FLOWS6: LruHashMap<FlowKey<Address6>, Flow<Address6>> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static SOCKETS4: LruHashMap<SocketKey<Address4>, Socket<Address4>> = LruHashMap::with_max_entries(SOCKETS, 0);
#[map]
static SOCKETS6: LruHashMap<SocketKey<Address6>, Socket<Address6>> = LruHashMap::with_max_entries(SOCKETS, 0);
#[map]
static AFFINITY4: LruHashMap<AffinityKey<Address4>, Affinity> = LruHashMap::with_max_entries(AFFINITIES, 0);
#[map]
static AFFINITY6: LruHashMap<AffinityKey<Address6>, Affinity> = LruHashMap::with_max_entries(AFFINITIES, 0);
#[map]
static SOURCE_RANGES4: LpmTrie<SourceRange<Address4>, u32> = LpmTrie::with_max_entries(SOURCE_RANGES, 0);
#[map]
static SOURCE_RANGES6: LpmTrie<SourceRange<Address6>, u32> = LpmTrie::with_max_entries(SOURCE_RANGES, 0);
#[map]
static FRAGMENTS4: LruHashMap<FragmentKey<Address4>, Fragment> = LruHashMap::with_max_entries(FRAGMENTS, 0);
#[map]
static FRAGMENTS6: LruHashMap<FragmentKey<Address6>, Fragment> = LruHashMap::with_max_entries(FRAGMENTS, 0);

/// The maps that hold addresses of one family.
pub trait FamilyMaps: Sized + Copy + 'static {
    fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend>;
    fn backends() -> &'static Array<Backend<Self>>;
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    fn sockets() -> &'static LruHashMap<SocketKey<Self>, Socket<Self>>;
    fn affinity() -> &'static LruHashMap<AffinityKey<Self>, Affinity>;
    fn source_ranges() -> &'static LpmTrie<SourceRange<Self>, u32>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment>;
    /// The address of this family in a device's row.
    fn of_device(device: &Device) -> Self;
}

impl FamilyMaps for Address4 {
    #[inline(always)]
    fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend> {
        &FRONTENDS4
    }

    #[inline(always)]
    fn backends() -> &'static Array<Backend<Self>> {
        &BACKENDS4
    }

    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS4
    }

    #[inline(always)]
    fn sockets() -> &'static LruHashMap<SocketKey<Self>, Socket<Self>> {
        &SOCKETS4
    }

    #[inline(always)]
    fn affinity() -> &'static LruHashMap<AffinityKey<Self>, Affinity> {
        &AFFINITY4
    }

    #[inline(always)]
    fn source_ranges() -> &'static LpmTrie<SourceRange<Self>, u32> {
        &SOURCE_RANGES4
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment> {
        &FRAGMENTS4
    }

    #[inline(always)]
    fn of_device(device: &Device) -> Self {
        device.address4
    }
}

impl FamilyMaps for Address6 {
    #[inline(always)]
    fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend> {
        &FRONTENDS6
    }

    #[inline(always)]
    fn backends() -> &'static Array<Backend<Self>> {
        &BACKENDS6
    }

    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS6
    }

    #[inline(always)]
    fn sockets() -> &'static LruHashMap<SocketKey<Self>, Socket<Self>> {
        &SOCKETS6
    }

    #[inline(always)]
    fn affinity() -> &'static LruHashMap<AffinityKey<Self>, Affinity> {
        &AFFINITY6
    }

    #[inline(always)]
    fn source_ranges() -> &'static LpmTrie<SourceRange<Self>, u32> {
        &SOURCE_RANGES6
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment> {
        &FRAGMENTS6
    }

    #[inline(always)]
    fn of_device(device: &Device) -> Self {
        device.address6
    }
}
