//! The pinned maps for the decision code. Its writes go to memory; the maps in the kernel do not
//! change.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use lb_common::budget::Limit;
use lb_common::flow::FlowEntry;
use lb_common::host::HostTables;
use lb_common::layout::{
    Affinity, AffinityKey, Backend, BackendId, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey,
    ServiceId, Slot, Socket, SocketKey,
};
use lb_common::net::Port;
use lb_common::reason::Reason;
use lb_common::settings::LoadedSettings;
use lb_common::socket::SocketTables;
use lb_common::tables::Tables;

use crate::datapath::clock::Clock;
use crate::datapath::live::rows::LiveRows;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::maps::MapError;

/// The pinned maps, overlaid with the writes of the decision code.
pub(super) struct Recorder<'a, A: LiveFamily> {
    maps: &'a LiveMaps,
    rows: &'a LiveRows<A>,
    clock: Clock,
    /// Everything that was written, and the flows that were looked up: their entries are changed in
    /// place.
    memory: HostTables<A>,
    /// Keys of the flows that are read from `memory` instead of the kernel.
    known: RefCell<HashSet<FlowKey<A>>>,
    /// Whether a flow was written.
    opened: Cell<bool>,
    reason: Cell<Option<Reason>>,
    failure: RefCell<Option<MapError>>,
}

impl<'a, A: LiveFamily> Recorder<'a, A> {
    /// A recorder without writes.
    pub(super) fn new(maps: &'a LiveMaps, clock: Clock) -> Self {
        let mut memory = HostTables::default();
        memory.settings = LoadedSettings {
            jiffies_per_second: clock.jiffies_per_second,
            // The decision does not depend on it.
            redirects_locally: 0,
            ..*maps.settings()
        };
        Self {
            maps,
            rows: A::rows(maps),
            clock,
            memory,
            known: RefCell::default(),
            opened: Cell::new(false),
            reason: Cell::new(None),
            failure: RefCell::default(),
        }
    }

    /// Whether a flow was written.
    pub(super) fn wrote_flow(&self) -> bool {
        self.opened.get()
    }

    /// The drop or reject reason that the code counted.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.reason.get()
    }

    /// The pinned maps.
    pub(super) fn maps(&self) -> &'a LiveMaps {
        self.maps
    }

    /// Returns the last error of a map. The decision code treats such a lookup as a missing row.
    pub(super) fn check(&self) -> Result<(), MapError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn row<T: Default>(&self, row: Result<T, MapError>) -> T {
        row.unwrap_or_else(|error| {
            self.failure.replace(Some(error));
            T::default()
        })
    }

    fn load(&self, key: &FlowKey<A>) {
        if self.known.borrow_mut().insert(*key)
            && let Some(mut flow) = self.row(self.rows.flow(key))
        {
            flow.last_seen = self.clock.past_tick(flow.last_seen);
            self.memory.insert_flow(key, &flow);
        }
    }
}

impl<A: LiveFamily> Tables<A> for Recorder<'_, A> {
    fn may_be_destination(&self, destination: A) -> bool {
        // As in the kernel: replies of hairpin connections are sent to the node's address.
        self.row(self.maps.is_in_filter(destination))
            || destination == self.settings().node_address()
            || self.may_be_service(destination)
    }

    fn may_be_service(&self, address: A) -> bool {
        self.row(self.maps.may_be_service(address))
    }

    fn may_reply(&self, source: A, port: Port) -> bool {
        self.row(self.maps.is_in_reply_filter(source, port))
    }

    fn flow(&self, key: &FlowKey<A>) -> Option<FlowEntry<A>> {
        self.load(key);
        self.memory.flow(key)
    }

    fn add_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.load(key);
        self.opened.set(true);
        self.memory.add_flow(key, flow)
    }

    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.known.borrow_mut().insert(*key);
        self.opened.set(true);
        self.memory.insert_flow(key, flow)
    }

    fn remove_flow(&self, key: &FlowKey<A>) {
        self.known.borrow_mut().insert(*key);
        self.memory.remove_flow(key);
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        self.row(self.rows.frontend(key))
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        let region = lb_common::layout::Region {
            base: index,
            length: 1,
        };
        self.row(self.maps.slots(region)).first().copied()
    }

    fn backend(&self, id: BackendId) -> Option<Backend<A>> {
        self.row(self.rows.backend(id))
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity> {
        let past = |affinity: Affinity| Affinity {
            last_used: affinity.last_used.min(self.clock.jiffies),
            ..affinity
        };
        let written = self.memory.affinity(key);
        written.or_else(|| self.row(self.rows.affinity(key)).map(past))
    }

    fn insert_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity) {
        self.memory.insert_affinity(key, affinity);
    }

    fn allows(&self, set: u32, client: A) -> bool {
        self.row(self.rows.allows(set, client))
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment> {
        self.memory.fragment(key)
    }

    fn insert_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) {
        self.memory.insert_fragment(key, fragment);
    }

    fn add_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) -> bool {
        self.memory.add_fragment(key, fragment)
    }

    fn may_detour(&self, source: A) -> bool {
        self.memory.may_detour(source)
    }

    fn device_address(&self, device: u32) -> A {
        self.row(self.maps.device(device))
            .map_or(A::default(), |device| A::select(device.address4, device.address6))
    }

    fn now(&self) -> u32 {
        self.clock.ticks()
    }

    fn jiffies(&self) -> u64 {
        self.clock.jiffies
    }

    fn random(&self) -> u32 {
        self.memory.random()
    }

    fn settings(&self) -> &LoadedSettings {
        &self.memory.settings
    }

    fn may_answer(&self, _client: A, _limit: Limit) -> bool {
        true
    }

    fn count_connection(&self, _service: ServiceId) {}

    fn count_rejected(&self, _service: ServiceId) {}

    fn count_reason(&self, reason: Reason) {
        self.reason.set(Some(reason));
    }
}

impl<A: LiveFamily> SocketTables<A> for Recorder<'_, A> {
    fn socket(&self, key: &SocketKey<A>) -> Option<Socket<A>> {
        self.memory.socket(key)
    }

    fn insert_socket(&self, key: &SocketKey<A>, socket: &Socket<A>) {
        self.memory.insert_socket(key, socket);
    }

    fn remove_socket(&self, key: &SocketKey<A>) {
        self.memory.remove_socket(key);
    }

    fn is_of_pod(&self, namespace: u64) -> bool {
        self.memory.is_of_pod(namespace)
    }
}
