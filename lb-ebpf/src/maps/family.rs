//! The maps that hold addresses of one family.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use lb_common::layout::{
    Affinity, AffinityKey, Backend, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey, Socket,
    SocketKey, SourceRange,
};
use lb_common::map::FamilySpecs;
use lb_common::net::{Address4, Address6};

use super::spec::{array, hash, lru_hash, trie};

#[map]
static FRONTENDS4: HashMap<FrontendKey<Address4>, Frontend> = hash(&Address4::FRONTENDS);
#[map]
static FRONTENDS6: HashMap<FrontendKey<Address6>, Frontend> = hash(&Address6::FRONTENDS);
#[map]
static BACKENDS4: Array<Backend<Address4>> = array(&Address4::BACKENDS);
#[map]
static BACKENDS6: Array<Backend<Address6>> = array(&Address6::BACKENDS);
#[map]
static FLOWS4: LruHashMap<FlowKey<Address4>, Flow<Address4>> = lru_hash(&Address4::FLOWS);
#[map]
static FLOWS6: LruHashMap<FlowKey<Address6>, Flow<Address6>> = lru_hash(&Address6::FLOWS);
#[map]
static SOCKETS4: LruHashMap<SocketKey<Address4>, Socket<Address4>> = lru_hash(&Address4::SOCKETS);
#[map]
static SOCKETS6: LruHashMap<SocketKey<Address6>, Socket<Address6>> = lru_hash(&Address6::SOCKETS);
#[map]
static AFFINITY4: LruHashMap<AffinityKey<Address4>, Affinity> = lru_hash(&Address4::AFFINITY);
#[map]
static AFFINITY6: LruHashMap<AffinityKey<Address6>, Affinity> = lru_hash(&Address6::AFFINITY);
#[map]
static SOURCE_RANGES4: LpmTrie<SourceRange<Address4>, u32> = trie(&Address4::SOURCE_RANGES);
#[map]
static SOURCE_RANGES6: LpmTrie<SourceRange<Address6>, u32> = trie(&Address6::SOURCE_RANGES);
#[map]
static FRAGMENTS4: LruHashMap<FragmentKey<Address4>, Fragment> = lru_hash(&Address4::FRAGMENTS);
#[map]
static FRAGMENTS6: LruHashMap<FragmentKey<Address6>, Fragment> = lru_hash(&Address6::FRAGMENTS);

/// The maps that hold addresses of one family.
pub trait FamilyMaps: FamilySpecs + 'static {
    fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend>;
    fn backends() -> &'static Array<Backend<Self>>;
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    fn sockets() -> &'static LruHashMap<SocketKey<Self>, Socket<Self>>;
    fn affinity() -> &'static LruHashMap<AffinityKey<Self>, Affinity>;
    fn source_ranges() -> &'static LpmTrie<SourceRange<Self>, u32>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment>;
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
}
