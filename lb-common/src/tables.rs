//! What the decision code needs besides the packet: maps, clock, random numbers, settings.

use crate::address::Address;
use crate::budget::Limit;
use crate::flow::FlowEntry;
use crate::layout::{
    Affinity, AffinityKey, Backend, BackendId, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey,
    ServiceId, Slot,
};
use crate::net::Port;
use crate::reason::Reason;
use crate::settings::LoadedSettings;

/// The maps of one address family, with clock, random numbers and settings.
pub trait Tables<A: Address> {
    /// Returns true if packets to this address may have a flow or a frontend, or be for a Service
    /// CIDR. If false, they are not looked up (see [`crate::filter`] and [`crate::cidr`]).
    fn may_be_destination(&self, destination: A) -> bool;
    /// Returns true if this address may be in a Service CIDR (see [`crate::cidr`]).
    fn may_be_service(&self, address: A) -> bool;
    /// Returns true if packets from this address and port may be replies that leave through the
    /// stack. If false, they are not looked up (see [`crate::filter`]).
    fn may_reply(&self, source: A, port: Port) -> bool;
    /// The flow with this key.
    fn flow(&self, key: &FlowKey<A>) -> Option<FlowEntry<A>>;
    /// Adds a flow. Returns false if there is one with this key, or if the table did not accept it.
    fn add_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Adds or replaces a flow. Returns false if the table did not accept it.
    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Removes a flow if it exists.
    fn remove_flow(&self, key: &FlowKey<A>);
    /// The frontend with this key.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend>;
    /// The slot at this index.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// The backend row with this id.
    fn backend(&self, id: BackendId) -> Option<Backend<A>>;

    /// The backend that a client stays with.
    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity>;
    /// Records the backend that a client stays with. A full table evicts another row.
    fn insert_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity);
    /// Returns true if a set of source ranges contains a client.
    fn allows(&self, set: u32, client: A) -> bool;
    /// The fragment row of a datagram.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment>;
    /// Inserts or replaces the fragment row of a datagram. A full table evicts another row.
    fn insert_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment);
    /// As [`Self::insert_fragment`], but returns false if there is a row with this key already, or
    /// if the table did not accept it.
    fn add_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) -> bool;
    /// Returns true if one more fragment from this address may be handed to the kernel's own
    /// reassembly, and counts it.
    fn may_detour(&self, source: A) -> bool;
    /// The address that replaces a client's in packets that leave through this device; unspecified
    /// if there is none.
    fn device_address(&self, device: u32) -> A;

    /// The time in ticks: a counter with a resolution of about a second
    /// ([`crate::settings::TICK_SHIFT`]) that wraps after years.
    fn now(&self) -> u32;
    /// The time in jiffies, counted from about the start of the kernel.
    fn jiffies(&self) -> u64;
    /// A random number.
    fn random(&self) -> u32;
    /// What the programs are loaded with.
    fn settings(&self) -> &LoadedSettings;

    /// Returns true if a client with this address may get one more answer about a packet that is
    /// not delivered, and counts the answer.
    fn may_answer(&self, client: A, limit: Limit) -> bool;

    /// Counts a connection of a Service.
    fn count_connection(&self, service: ServiceId);
    /// Counts a first packet of a Service that found no usable backend.
    fn count_rejected(&self, service: ServiceId);
    /// Counts a packet by the reason why it was not translated.
    fn count_reason(&self, reason: Reason);
}
