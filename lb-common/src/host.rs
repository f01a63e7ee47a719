//! The decision code's surroundings on the host: packets of plain bytes and tables of plain maps.
#![expect(
    unsafe_code,
    reason = "hands out views and flow entries as the kernel programs do"
)]

use core::cell::{Cell, RefCell};
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::HashMap;
use std::hash::Hash;
use std::vec;
use std::vec::Vec;

use crate::address::Address;
use crate::budget::{Bucket, Limit};
use crate::cidr;
use crate::flow::{FlowEntry, Lifetimes};
use crate::layout::{
    Affinity, AffinityKey, Backend, BackendId, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey,
    Port, ServiceId, ServiceStats, Slot, Socket, SocketKey,
};
use crate::packet::Headers;
use crate::packet::{
    DirectPacket, Hop, Packet, Reassembly, Route, Sender, Verdict, View, ViewMut, translate_directly,
};
use crate::parse::BEHIND_ETHERNET;
use crate::reason::Reason;
use crate::socket::SocketTables;
use crate::tables::{PortRange, SourcePorts, TICK_SHIFT, Tables};

/// A packet of plain bytes with complete checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bytes {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Ways to single addresses; all others have [`HOP`].
    pub ways: Vec<Way>,
    /// Whether it can be sent to a next hop whose link-layer address is not known yet.
    pub asks_neighbours: bool,
    /// Devices whose other end is in a Pod.
    pub pod_devices: Vec<u32>,
    /// Where senders are: what the first network says that one is in. All others are here.
    pub senders: Vec<SenderNetwork>,
    /// Payload bytes of each packet that this one is cut into when it is sent; 0 if it is sent as it is.
    pub segment_size: u32,
    /// Whether the frame is for another machine.
    pub is_for_other: bool,
    /// Where fragments are handed to the kernel's own reassembly.
    pub reassembly: Reassembly,
    /// Ports of the node's sockets, with any address.
    pub sockets: Vec<Port>,
}

/// What the routing tables say of a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// The words of the destination's address ([`Address::words`]).
    pub destination: [u32; 4],
    /// What they say of packets that are not too big.
    pub route: Route,
    /// The next hop. Packets of more bytes than its MTU are too big, unless that is 0.
    pub hop: Hop,
}

/// Where the senders of a network are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SenderNetwork {
    /// The words of the network's address ([`Address::words`]).
    pub network: [u32; 4],
    /// The bits that all its addresses share.
    pub mask: [u32; 4],
    /// Where they are.
    pub sender: Sender,
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            ways: Vec::new(),
            asks_neighbours: true,
            pod_devices: Vec::new(),
            senders: Vec::new(),
            segment_size: 0,
            is_for_other: false,
            reassembly: Reassembly::None,
            sockets: Vec::new(),
        }
    }
}

impl Bytes {
    fn part<const N: usize>(&self, offset: u32) -> Option<*const u8> {
        let offset = usize::try_from(offset).ok()?;
        self.bytes.get(offset..offset.checked_add(N)?).map(<[u8]>::as_ptr)
    }
}

impl DirectPacket for Bytes {
    fn view_mut<const N: usize>(&mut self, offset: u32) -> Option<ViewMut<'_, N>> {
        let offset = usize::try_from(offset).ok()?;
        let part = self.bytes.get_mut(offset..offset.checked_add(N)?)?;
        // SAFETY: the slice has N bytes and stays mutably borrowed.
        Some(unsafe { ViewMut::new(part.as_mut_ptr()) })
    }
}

impl Packet for Bytes {
    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn view<const N: usize>(&self, offset: u32) -> Option<View<'_, N>> {
        // SAFETY: `part` checks that N bytes are there; they stay borrowed.
        self.part::<N>(offset).map(|start| unsafe { View::new(start) })
    }

    fn write<const N: usize>(&mut self, offset: u32, words: &[u32; N]) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        let target = self.bytes.get_mut(offset..offset + N * 4)?;
        for (part, word) in target.chunks_exact_mut(4).zip(words) {
            part.copy_from_slice(&word.to_ne_bytes());
        }
        Some(())
    }

    fn write_half(&mut self, offset: u32, half: u16) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        let target = self.bytes.get_mut(offset..offset + 2)?;
        target.copy_from_slice(&half.to_ne_bytes());
        Some(())
    }

    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()> {
        translate_directly(self, headers, old, new)
    }

    fn grow_head(&mut self, _network: u32, by: u32) -> Option<()> {
        self.bytes.splice(0..0, vec![0; usize::try_from(by).ok()?]);
        Some(())
    }

    fn cut(&mut self, length: u32) -> Option<()> {
        self.bytes.truncate(usize::try_from(length).ok()?);
        Some(())
    }

    fn is_for_node(&self, _network: u32) -> bool {
        !self.is_for_other
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn route<A: Address>(&self, _source: A, destination: A, length: u32, hop: &mut Hop) -> Route {
        let destination = destination.words();
        let Some(way) = self.ways.iter().find(|way| way.destination == destination) else {
            *hop = HOP;
            return Route::Ready;
        };
        *hop = way.hop;
        if way.hop.mtu != 0 && length > way.hop.mtu {
            return Route::TooBig;
        }
        way.route
    }

    fn can_send(&self, route: Route, _hop: &Hop) -> bool {
        self.asks_neighbours || route == Route::Ready
    }

    fn send(&mut self, network: u32, hop: &Hop) -> Option<Verdict> {
        if network == 0 {
            // The next hop's link has Ethernet headers.
            self.grow_head(network, BEHIND_ETHERNET)?;
        }
        self.write(0, &hop.link)?;
        Some(Verdict::Redirect)
    }

    fn sender<A: Address>(&self, source: A) -> Sender {
        let words = source.words();
        let is_in = |found: &&SenderNetwork| (0..4).all(|at| words[at] & found.mask[at] == found.network[at]);
        let found = self.senders.iter().find(is_in);
        found.map_or(Sender::Here, |found| found.sender)
    }

    fn has_socket<A: Address>(&self, key: &FlowKey<A>) -> bool {
        self.sockets.contains(&key.destination_port)
    }

    fn is_sent_on(&self) -> bool {
        false
    }

    fn can_hand_over(&self, network: u32, hop: &Hop) -> bool {
        network != 0 && self.pod_devices.contains(&hop.device)
    }

    fn hand_over(&mut self, hop: &Hop) -> Option<Verdict> {
        self.write(0, &hop.link)?;
        Some(Verdict::Redirect)
    }

    fn checksum_is_partial(&mut self, _offset: u32) -> bool {
        false
    }

    fn reassembly(&self, _network: u32) -> Reassembly {
        self.reassembly
    }

    fn detour(&mut self) -> Option<Verdict> {
        Some(Verdict::Redirect)
    }
}

/// The next hop where no other is set.
pub const HOP: Hop = Hop {
    device: 1,
    mtu: 0,
    link: [0x0202_0202, 0x0202_0202, 0x0202_0202],
};

/// Source ports of which none is the node's own.
pub const fn only_ports(first: u16, count: u16) -> SourcePorts {
    SourcePorts {
        all: PortRange { first, count },
        local: PortRange { first, count: 0 },
    }
}

/// Tables in memory.
#[expect(
    missing_debug_implementations,
    reason = "holds entries that are written through pointers"
)]
pub struct HostTables<A> {
    /// Frontend rows.
    pub frontends: HashMap<FrontendKey<A>, Frontend>,
    /// Slots by index.
    pub slots: HashMap<u32, Slot>,
    /// Backend rows by id.
    pub backends: HashMap<BackendId, Backend<A>>,
    /// Replaces the client's address in hairpin connections.
    pub node_address: A,
    /// The clock.
    pub now: Cell<u32>,
    /// The next random numbers: each is the one before, times a constant, plus one.
    pub random: Cell<u32>,
    /// Idle lifetimes.
    pub lifetimes: Lifetimes,
    /// Connections and rejected packets by service.
    pub stats: RefCell<HashMap<ServiceId, ServiceStats>>,
    /// Packets by [`Reason::index`].
    pub reasons: RefCell<HashMap<u32, u64>>,
    /// Which client stays with which backend.
    pub affinities: RefCell<HashMap<AffinityKey<A>, Affinity>>,
    /// Where Service CIDRs are. Their addresses are also among [`Self::allowed`], in the set [`cidr::SET`].
    pub service_cidrs: cidr::Networks,
    /// Clients that a set of source ranges holds.
    pub allowed: Vec<(u32, A)>,
    /// Ports of datagrams in fragments.
    pub fragments: RefCell<HashMap<FragmentKey<A>, Fragment>>,
    /// Replaces the client's address in packets that are sent on.
    pub device_address: A,
    /// Whether connections to removed backends go on.
    pub keeps_removed: bool,
    /// Whether packets between Pods of this node go without its stack.
    pub redirects_locally: bool,
    /// Addresses without a bit in the filter.
    pub filtered: Vec<A>,
    /// Source ports to give out.
    pub source_ports: SourcePorts,
    /// What the hash of outside clients begins with.
    pub hash_seed: u64,
    /// Answers that are left.
    pub budgets: RefCell<HashMap<u32, Bucket>>,
    /// Translated sockets.
    pub sockets: RefCell<HashMap<SocketKey<A>, Socket<A>>>,
    /// Cookies of network namespaces that are Pods'.
    pub pod_namespaces: Vec<u64>,
    flows: RefCell<HashMap<FlowKey<A>, Box<Flow<A>>>>,
}

impl<A: Address + Hash> Default for HostTables<A> {
    fn default() -> Self {
        Self {
            frontends: HashMap::new(),
            slots: HashMap::new(),
            backends: HashMap::new(),
            node_address: A::default(),
            now: Cell::new(1),
            random: Cell::new(1),
            lifetimes: Lifetimes::DEFAULT_SECONDS,
            stats: RefCell::default(),
            reasons: RefCell::default(),
            affinities: RefCell::default(),
            service_cidrs: cidr::Networks::default(),
            allowed: Vec::new(),
            fragments: RefCell::default(),
            device_address: A::default(),
            keeps_removed: false,
            redirects_locally: false,
            filtered: Vec::new(),
            source_ports: SourcePorts::DEFAULT,
            hash_seed: 0,
            budgets: RefCell::default(),
            sockets: RefCell::default(),
            pod_namespaces: Vec::new(),
            flows: RefCell::default(),
        }
    }
}

impl<A: Address + Hash> HostTables<A> {
    /// Forgets everything that was remembered of packets.
    pub fn forget(&self) {
        self.flows.borrow_mut().clear();
        self.fragments.borrow_mut().clear();
        self.affinities.borrow_mut().clear();
    }

    /// The number of flow entries.
    pub fn flow_count(&self) -> usize {
        self.flows.borrow().len()
    }

    /// How often a reason was counted.
    pub fn reason_count(&self, reason: Reason) -> u64 {
        self.reasons.borrow().get(&reason.index()).copied().unwrap_or(0)
    }

    fn take(&self, client: A, limit: Limit) -> bool {
        let mut budgets = self.budgets.borrow_mut();
        let bucket = budgets.entry(limit.bucket(client)).or_default();
        bucket.take(
            self.jiffies() + (1 << 20),
            self.jiffies_per_second(),
            limit.rate(),
        )
    }

    fn count(&self, service: ServiceId, add: impl FnOnce(&mut ServiceStats)) {
        add(self.stats.borrow_mut().entry(service).or_default());
    }
}

impl<A: Address + Hash> Tables<A> for HostTables<A> {
    fn concerns(&self, destination: A) -> bool {
        !self.filtered.contains(&destination) || self.may_be_service(destination)
    }

    fn may_be_service(&self, address: A) -> bool {
        self.service_cidrs.may_hold(address)
    }

    fn may_reply(&self, source: A, port: Port) -> bool {
        let mut backends = self.backends.values();
        backends.any(|backend| (backend.address, backend.port) == (source, port))
    }

    fn flow(&self, key: &FlowKey<A>) -> Option<FlowEntry<A>> {
        let mut flows = self.flows.borrow_mut();
        let flow = flows.get_mut(key)?;
        // SAFETY: the box keeps its place until the flow is removed; the decision code does not use an entry after
        // removing or replacing its flow.
        Some(unsafe { FlowEntry::new(NonNull::from(flow.as_mut())) })
    }

    fn add_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        !self.flows.borrow().contains_key(key) && self.insert_flow(key, flow)
    }

    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.flows.borrow_mut().insert(*key, Box::new(*flow));
        true
    }

    fn remove_flow(&self, key: &FlowKey<A>) {
        self.flows.borrow_mut().remove(key);
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.slots.get(&index).copied()
    }

    fn backend(&self, id: BackendId) -> Option<Backend<A>> {
        self.backends.get(&id).copied()
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn insert_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn allows(&self, set: u32, client: A) -> bool {
        self.allowed.contains(&(set, client))
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn add_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) -> bool {
        let is_new = !self.fragments.borrow().contains_key(key);
        if is_new {
            self.insert_fragment(key, fragment);
        }
        is_new
    }

    fn may_detour(&self, source: A) -> bool {
        self.take(source, Limit::Detours)
    }

    fn device_address(&self, _device: u32) -> A {
        self.device_address
    }

    fn jiffies(&self) -> u64 {
        u64::from(self.now.get()) << TICK_SHIFT
    }

    fn jiffies_per_second(&self) -> u32 {
        // As many as a tick has: a tick is a second here.
        1 << TICK_SHIFT
    }

    fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    fn may_answer(&self, client: A, limit: Limit) -> bool {
        self.take(client, limit)
    }

    fn source_ports(&self) -> SourcePorts {
        self.source_ports
    }

    fn keeps_removed(&self) -> bool {
        self.keeps_removed
    }

    fn redirects_locally(&self) -> bool {
        self.redirects_locally
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        // Constants of Numerical Recipes' generator: the whole period, and the high bits vary.
        self.random.set(
            self.random
                .get()
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223),
        );
        self.random.get()
    }

    fn lifetime(&self, protocol: u8, state: u8) -> u32 {
        self.lifetimes.of(protocol, state)
    }

    fn node_address(&self) -> A {
        self.node_address
    }

    fn count_connection(&self, service: ServiceId) {
        self.count(service, |stats| stats.connections += 1);
    }

    fn count_rejected(&self, service: ServiceId) {
        self.count(service, |stats| stats.rejected += 1);
    }

    fn count_reason(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason.index()).or_default() += 1;
    }
}

impl<A: Address + Hash> SocketTables<A> for HostTables<A> {
    fn socket(&self, key: &SocketKey<A>) -> Option<Socket<A>> {
        self.sockets.borrow().get(key).copied()
    }

    fn insert_socket(&self, key: &SocketKey<A>, socket: &Socket<A>) {
        self.sockets.borrow_mut().insert(*key, *socket);
    }

    fn remove_socket(&self, key: &SocketKey<A>) {
        self.sockets.borrow_mut().remove(key);
    }

    fn is_of_pod(&self, namespace: u64) -> bool {
        self.pod_namespaces.contains(&namespace)
    }
}
