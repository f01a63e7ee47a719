//! Maps as `lb-common` specifies them.

use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, DevMap, HashMap, LruHashMap, PerCpuArray};
use lb_common::map::{MapSpec, PrefixKey};

pub const fn array<V>(spec: &MapSpec<u32, V>) -> Array<V> {
    Array::with_max_entries(spec.max_entries, spec.flags)
}

pub const fn per_cpu_array<V>(spec: &MapSpec<u32, V>) -> PerCpuArray<V> {
    PerCpuArray::with_max_entries(spec.max_entries, spec.flags)
}

pub const fn device_map(spec: &MapSpec<u32, [u32; 2]>) -> DevMap {
    DevMap::with_max_entries(spec.max_entries, spec.flags)
}

pub const fn hash<K, V>(spec: &MapSpec<K, V>) -> HashMap<K, V> {
    HashMap::with_max_entries(spec.max_entries, spec.flags)
}

pub const fn lru_hash<K, V>(spec: &MapSpec<K, V>) -> LruHashMap<K, V> {
    LruHashMap::with_max_entries(spec.max_entries, spec.flags)
}

pub const fn trie<K, V>(spec: &MapSpec<PrefixKey<K>, V>) -> LpmTrie<K, V> {
    LpmTrie::with_max_entries(spec.max_entries, spec.flags)
}
