//! The kernel's maps and helpers as [`Tables`].

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::budget::Limit;
use lb_common::flow::FlowEntry;
use lb_common::layout::{
    Affinity, AffinityKey, Backend, BackendId, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey,
    ServiceId, Slot, Socket, SocketKey,
};
use lb_common::net::Port;
use lb_common::reason::Reason;
use lb_common::settings::{LoadedSettings, TICK_SHIFT};
use lb_common::socket::SocketTables;
use lb_common::tables::Tables;

use crate::helpers;
use crate::maps::{self, FamilyMaps};
use crate::settings::settings;
use crate::socket_address::has_namespace_cookies;

/// The kernel's maps, clock and random numbers.
pub struct KernelTables;

impl<A: FamilyMaps> Tables<A> for KernelTables {
    #[inline(always)]
    fn may_be_destination(&self, destination: A) -> bool {
        // Replies of hairpin connections are addressed to the node.
        maps::filter(destination)
            || destination == settings().node_address()
            || maps::may_be_service(destination)
    }

    #[inline(always)]
    fn may_be_service(&self, address: A) -> bool {
        maps::may_be_service(address)
    }

    #[inline(always)]
    fn may_reply(&self, source: A, port: Port) -> bool {
        maps::reply_filter(source, port)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey<A>) -> Option<FlowEntry<A>> {
        maps::flow(key)
    }

    #[inline(always)]
    fn add_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        A::flows().insert(key, flow, BPF_NOEXIST.into()).is_ok()
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        A::flows().insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey<A>) {
        // A flow that is already gone is not an error.
        let _ = A::flows().remove(key);
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        maps::frontend(key)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        maps::slot(index)
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend<A>> {
        maps::backend(id)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity> {
        maps::affinity(key)
    }

    #[inline(always)]
    fn insert_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity) {
        // If there is no memory, the client's next connection may get another backend.
        let _ = A::affinity().insert(key, affinity, 0);
    }

    #[inline(always)]
    fn allows(&self, set: u32, client: A) -> bool {
        maps::allows(set, client)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment> {
        maps::fragment(key)
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) {
        // If there is no memory, the other fragments are lost, as on any network.
        let _ = A::fragments().insert(key, fragment, 0);
    }

    #[inline(always)]
    fn add_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) -> bool {
        A::fragments().insert(key, fragment, BPF_NOEXIST.into()).is_ok()
    }

    #[inline(never)]
    fn may_detour(&self, source: A) -> bool {
        let (now, rate) = (helpers::jiffies(), settings().jiffies_per_second);
        maps::take_answer(source, Limit::Detours, now, rate) && maps::take_detour(now, rate)
    }

    #[inline(always)]
    fn device_address(&self, device: u32) -> A {
        maps::device(device).map_or(A::default(), |device| A::select(device.address4, device.address6))
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        now()
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        helpers::jiffies()
    }

    #[inline(never)]
    fn may_answer(&self, client: A, limit: Limit) -> bool {
        maps::take_answer(client, limit, helpers::jiffies(), settings().jiffies_per_second)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        helpers::random()
    }

    #[inline(always)]
    fn settings(&self) -> &LoadedSettings {
        settings()
    }

    #[inline(always)]
    fn count_connection(&self, service: ServiceId) {
        maps::count_connection(service);
    }

    #[inline(always)]
    fn count_rejected(&self, service: ServiceId) {
        maps::count_rejected(service);
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason) {
        maps::count_reason(reason);
    }
}

impl<A: FamilyMaps> SocketTables<A> for KernelTables {
    #[inline(always)]
    fn socket(&self, key: &SocketKey<A>) -> Option<Socket<A>> {
        maps::socket(key)
    }

    #[inline(always)]
    fn insert_socket(&self, key: &SocketKey<A>, socket: &Socket<A>) {
        // A full LRU map evicts a row. If there is no memory, the socket shows the backend as its
        // peer.
        let _ = A::sockets().insert(key, socket, 0);
    }

    #[inline(always)]
    fn remove_socket(&self, key: &SocketKey<A>) {
        // Most closed sockets have no row, and a lookup takes no lock.
        if maps::socket(key).is_some() {
            // A row that is already gone is not an error.
            let _ = A::sockets().remove(key);
        }
    }

    #[inline(always)]
    fn is_of_pod(&self, namespace: u64) -> bool {
        // Without cookies the agent cannot tell namespaces apart.
        !has_namespace_cookies() || maps::is_of_pod(namespace)
    }
}

/// The kernel's clock in ticks.
#[inline(always)]
fn now() -> u32 {
    (helpers::jiffies() >> TICK_SHIFT) as u32
}
