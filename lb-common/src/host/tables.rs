//! Tables of plain maps.
#![expect(unsafe_code, reason = "hands out flow entries as the kernel programs do")]

use core::cell::{Cell, RefCell};
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::HashMap;
use std::hash::Hash;
use std::vec::Vec;

use crate::address::Address;
use crate::budget::{Bucket, Limit};
use crate::cidr;
use crate::flow::FlowEntry;
use crate::layout::{
    Affinity, AffinityKey, Backend, BackendId, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey,
    ServiceId, ServiceStats, Slot, Socket, SocketKey,
};
use crate::net::Port;
use crate::reason::Reason;
use crate::settings::{LoadedSettings, PortRange, SourcePorts, TICK_SHIFT};
use crate::socket::SocketTables;
use crate::tables::Tables;

/// Source ports without the kernel's ephemeral range.
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
    /// What programs would be loaded with. A tick is a second.
    pub settings: LoadedSettings,
    /// Frontend rows.
    pub frontends: HashMap<FrontendKey<A>, Frontend>,
    /// Slots by index.
    pub slots: HashMap<u32, Slot>,
    /// Backend rows by id.
    pub backends: HashMap<BackendId, Backend<A>>,
    /// The clock.
    pub now: Cell<u32>,
    /// The last random number: the next one is a multiple of it plus a constant.
    pub random: Cell<u32>,
    /// Connections and rejected packets by service.
    pub stats: RefCell<HashMap<ServiceId, ServiceStats>>,
    /// Packets by [`Reason::index`].
    pub reasons: RefCell<HashMap<u32, u64>>,
    /// Which client stays with which backend.
    pub affinities: RefCell<HashMap<AffinityKey<A>, Affinity>>,
    /// Service CIDRs. Their addresses are also in [`Self::allowed`], in the set [`cidr::SET`].
    pub service_cidrs: cidr::ServiceCidrs,
    /// Members of sets of source ranges: number of the set, and address.
    pub allowed: Vec<(u32, A)>,
    /// Ports of datagrams in fragments.
    pub fragments: RefCell<HashMap<FragmentKey<A>, Fragment>>,
    /// Replaces the client's address in forwarded packets.
    pub device_address: A,
    /// Addresses whose bit in the filter is not set.
    pub filtered: Vec<A>,
    /// Token buckets of answers.
    pub budgets: RefCell<HashMap<u32, Bucket>>,
    /// Translated sockets.
    pub sockets: RefCell<HashMap<SocketKey<A>, Socket<A>>>,
    /// Cookies of the network namespaces of Pods.
    pub pod_namespaces: Vec<u64>,
    flows: RefCell<HashMap<FlowKey<A>, Box<Flow<A>>>>,
}

impl<A: Address + Hash> Default for HostTables<A> {
    fn default() -> Self {
        Self {
            settings: LoadedSettings {
                jiffies_per_second: 1 << TICK_SHIFT,
                ..LoadedSettings::DEFAULT
            },
            frontends: HashMap::new(),
            slots: HashMap::new(),
            backends: HashMap::new(),
            now: Cell::new(1),
            random: Cell::new(1),
            stats: RefCell::default(),
            reasons: RefCell::default(),
            affinities: RefCell::default(),
            service_cidrs: cidr::ServiceCidrs::default(),
            allowed: Vec::new(),
            fragments: RefCell::default(),
            device_address: A::default(),
            filtered: Vec::new(),
            budgets: RefCell::default(),
            sockets: RefCell::default(),
            pod_namespaces: Vec::new(),
            flows: RefCell::default(),
        }
    }
}

impl<A: Address + Hash> HostTables<A> {
    /// Forgets all flows, fragments and affinities.
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
            self.settings.jiffies_per_second,
            limit.rate(),
        )
    }

    fn count(&self, service: ServiceId, add: impl FnOnce(&mut ServiceStats)) {
        add(self.stats.borrow_mut().entry(service).or_default());
    }
}

impl<A: Address + Hash> Tables<A> for HostTables<A> {
    fn may_be_destination(&self, destination: A) -> bool {
        !self.filtered.contains(&destination) || self.may_be_service(destination)
    }

    fn may_be_service(&self, address: A) -> bool {
        self.service_cidrs.may_contain(address)
    }

    fn may_reply(&self, source: A, port: Port) -> bool {
        let mut backends = self.backends.values();
        backends.any(|backend| (backend.address, backend.port) == (source, port))
    }

    fn flow(&self, key: &FlowKey<A>) -> Option<FlowEntry<A>> {
        let mut flows = self.flows.borrow_mut();
        let flow = flows.get_mut(key)?;
        // SAFETY: the box stays in its place until the flow is removed. The decision code uses no
        // entry after it has removed or replaced the flow.
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

    fn may_answer(&self, client: A, limit: Limit) -> bool {
        self.take(client, limit)
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        // Constants of the generator in Numerical Recipes: it has the full period, and the high
        // bits vary.
        self.random.set(
            self.random
                .get()
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223),
        );
        self.random.get()
    }

    fn settings(&self) -> &LoadedSettings {
        &self.settings
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
