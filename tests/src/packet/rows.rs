//! Other rows of Services than frontends, and rows that the programs write.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use lb_agent::datapath::clock;
use lb_agent::datapath::devices::DeviceTable;
use lb_agent::devices::{Attachment, Role};
use lb_agent::maps::{FrontendKey, MapOp};
use lb_common::budget::{Bucket, Limit};
use lb_common::layout::{
    Affinity, AffinityKey, Flow, FlowKey, Fragment, FragmentKey, Frontend, Region, SourceRange,
};
use lb_common::map::{self, FamilySpecs as _};
use lb_common::net::{Address4, Address6};
use lb_common::settings::TICK_SHIFT;

use super::Datapath;

impl Datapath {
    /// The frontend row that [`Datapath::service`] writes for a Service with this number of
    /// backends.
    pub fn row(service: u32, backends: u32) -> Frontend {
        let region = Region {
            base: service * 100,
            length: backends,
        };
        Frontend {
            service,
            cluster: region,
            local: region,
            ..Frontend::default()
        }
    }

    /// Writes a frontend row.
    pub fn frontend(&mut self, key: FrontendKey, value: Frontend) {
        self.frontends.insert(key, value);
        self.apply(&MapOp::SetFrontend { key, value });
    }

    /// Changes a frontend row.
    pub fn change_frontend(&mut self, key: FrontendKey, change: impl FnOnce(&mut Frontend)) {
        let mut value = self.frontends[&key];
        change(&mut value);
        self.frontend(key, value);
    }

    /// Adds a network to a set of source ranges.
    pub fn allow(&self, set: u32, network: IpAddr, prefix: u32) {
        match network {
            IpAddr::V4(network) => {
                self.allow_in(Address4::SOURCE_RANGES.name, set, Address4::from(network), prefix)
            }
            IpAddr::V6(network) => {
                self.allow_in(Address6::SOURCE_RANGES.name, set, Address6::from(network), prefix)
            }
        }
    }

    fn allow_in<A: Pod>(&self, name: &str, set: u32, network: A, prefix: u32)
    where
        SourceRange<A>: Pod,
    {
        let mut trie: LpmTrie<MapData, SourceRange<A>, u32> = self.pinned(name).try_into().expect("a trie");
        let key = Key::new(SourceRange::<A>::SET_BITS + prefix, SourceRange { set, network });
        trie.insert(&key, 1, 0).expect("the map accepts it");
    }

    pub(super) fn pinned(&self, name: &str) -> Map {
        let map = MapData::from_pin(self.pins.path().join(name)).and_then(Map::from_map_data);
        map.expect("the map is pinned")
    }

    pub(super) fn table<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        HashMap::try_from(self.pinned(name)).expect("a hash map")
    }

    /// Makes all flows older by this number of ticks.
    pub fn age(&self, ticks: u32) {
        self.age_if(ticks, |_, _| true);
    }

    /// Makes the flows between matching sources and destinations older by this number of ticks.
    pub fn age_if(&self, ticks: u32, which: impl Fn(SocketAddr, SocketAddr) -> bool) {
        age(self.flows4(), ticks, &which);
        age(self.flows6(), ticks, &which);
    }

    /// Refills the buckets of all rate limits.
    pub fn forget_answers(&mut self) {
        self.answers = 0;
        let mut buckets = self.buckets();
        for index in 0..buckets.len() {
            change_buckets(&mut buckets, index, |bucket| *bucket = Bucket::default());
        }
        self.set_detours(|_| Bucket::default());
    }

    /// Empties a client's bucket.
    pub fn drain(&self, limit: Limit, client: IpAddr) {
        let index = match client {
            IpAddr::V4(client) => limit.bucket(Address4::from(client)),
            IpAddr::V6(client) => limit.bucket(Address6::from(client)),
        };
        change_buckets(&mut self.buckets(), index, |bucket| bucket.tokens = 0);
    }

    fn buckets(&self) -> PerCpuArray<MapData, Bucket> {
        self.pinned(map::ANSWERS.name)
            .try_into()
            .expect("a per-CPU array")
    }

    /// Empties the common bucket of detours through the kernel's reassembly.
    pub fn drain_detours(&self) {
        self.set_detours(|bucket| Bucket { tokens: 0, ..bucket });
    }

    fn set_detours(&self, new: impl FnOnce(Bucket) -> Bucket) {
        let map = self.pinned(map::DETOURS.name);
        let mut buckets: Array<_, Bucket> = map.try_into().expect("an array");
        let bucket = buckets.get(&0, 0).expect("the bucket is read");
        buckets.set(0, new(bucket), 0).expect("the bucket is written");
    }

    /// Lets the programs send fragments to the kernel's reassembly through the loopback device,
    /// which gets this role. `None` disables the detour.
    pub fn reassemble(&mut self, role: Option<Role>) {
        const LOOPBACK: u32 = 1;
        let mut view = super::loopback_as_bridge();
        if let Some(role) = role {
            let attachment = Attachment {
                name: String::new(),
                kind: String::new(),
                instance: 0,
                role,
                ethernet: true,
            };
            view.attachments.insert(LOOPBACK, attachment);
        }
        let mut devices = DeviceTable::open(self.directory()).expect("the maps are pinned");
        devices
            .set(&view, &BTreeSet::new(), self.maps.filter())
            .expect("the maps accept it");
        let device = if role.is_some() { LOOPBACK } else { 0 };
        devices.set_reassembly(device).expect("the map accepts it");
    }

    /// Makes the fragment rows older by this number of seconds.
    pub fn age_fragments(&self, seconds: u32) {
        let ticks = (seconds * clock::jiffies_per_second()) >> TICK_SHIFT;
        let older = |row: &mut Fragment| row.seen = row.seen.wrapping_sub(ticks);
        update(&mut self.fragments4(), older);
        update(&mut self.fragments6(), older);
    }

    /// Makes the affinity rows older by this number of seconds.
    pub fn age_affinities(&self, seconds: u32) {
        let jiffies = u64::from(seconds) * u64::from(clock::jiffies_per_second());
        let older = |row: &mut Affinity| row.last_used -= jiffies;
        update(&mut self.affinities4(), older);
        update(&mut self.affinities6(), older);
    }

    /// The fragment table of IPv4.
    pub fn fragments4(&self) -> HashMap<MapData, FragmentKey<Address4>, Fragment> {
        self.table(Address4::FRAGMENTS.name)
    }

    /// The fragment table of IPv6.
    pub fn fragments6(&self) -> HashMap<MapData, FragmentKey<Address6>, Fragment> {
        self.table(Address6::FRAGMENTS.name)
    }

    fn affinities4(&self) -> HashMap<MapData, AffinityKey<Address4>, Affinity> {
        self.table(Address4::AFFINITY.name)
    }

    fn affinities6(&self) -> HashMap<MapData, AffinityKey<Address6>, Affinity> {
        self.table(Address6::AFFINITY.name)
    }

    /// The number of fragment rows of both families.
    pub fn fragment_count(&self) -> usize {
        self.fragments4().keys().count() + self.fragments6().keys().count()
    }

    /// The number of affinity rows of both families.
    pub fn affinity_count(&self) -> usize {
        self.affinities4().keys().count() + self.affinities6().keys().count()
    }

    /// Deletes all flow, fragment and affinity rows.
    pub fn forget(&self) {
        clear(&mut self.flows4());
        clear(&mut self.flows6());
        clear(&mut self.fragments4());
        clear(&mut self.fragments6());
        clear(&mut self.affinities4());
        clear(&mut self.affinities6());
    }
}

/// Changes a bucket on every CPU. Writes it only if its value differs.
fn change_buckets(buckets: &mut PerCpuArray<MapData, Bucket>, index: u32, change: impl Fn(&mut Bucket)) {
    let old = buckets.get(&index, 0).expect("a bucket is read");
    let mut new = old.to_vec();
    new.iter_mut().for_each(change);
    if new[..] != old[..] {
        let new = PerCpuValues::try_from(new).expect("a value for each");
        buckets.set(index, new, 0).expect("a bucket is written");
    }
}

fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().map(|key| key.expect("a key")).collect();
    for key in keys {
        map.remove(&key).expect("it was there");
    }
}

fn update<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, change: impl Fn(&mut V)) {
    let rows: Vec<(K, V)> = map.iter().map(|row| row.expect("a row")).collect();
    for (key, mut value) in rows {
        change(&mut value);
        map.insert(key, value, 0).expect("the map accepts it");
    }
}

fn age<A: Pod + Into<IpAddr>>(
    mut flows: HashMap<MapData, FlowKey<A>, Flow<A>>,
    ticks: u32,
    which: impl Fn(SocketAddr, SocketAddr) -> bool,
) where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let rows: Vec<_> = flows.iter().map(|row| row.expect("a flow")).collect();
    for (key, mut flow) in rows {
        let source = SocketAddr::new(key.source.into(), key.source_port.get());
        let destination = SocketAddr::new(key.destination.into(), key.destination_port.get());
        if which(source, destination) {
            flow.last_seen = flow.last_seen.wrapping_sub(ticks);
            flows.insert(key, flow, 0).expect("the map accepts it");
        }
    }
}
