//! What the decision code asks for outside the packet: maps, clock, chance, settings.

use crate::address::Address;
use crate::budget::Limit;
use crate::flow::FlowEntry;
use crate::layout::{
    Affinity, AffinityKey, Backend, BackendId, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey,
    Port, ServiceId, Slot,
};
use crate::reason::Reason;

/// The maps of one address family and what goes with them.
pub trait Tables<A: Address> {
    /// Whether packets to this address may have a flow or a frontend, or be for a Service CIDR; if not, they are not
    /// looked up (see [`crate::filter`] and [`crate::cidr`]).
    fn concerns(&self, destination: A) -> bool;
    /// Whether this address may be of a Service CIDR (see [`crate::cidr`]).
    fn may_be_service(&self, address: A) -> bool;
    /// Whether packets from this address and port may be replies that leave through the stack; if not, they are not
    /// looked up (see [`crate::filter`]).
    fn may_reply(&self, source: A, port: Port) -> bool;
    /// The flow with this key.
    fn flow(&self, key: &FlowKey<A>) -> Option<FlowEntry<A>>;
    /// Adds a flow; `false` if there is one with this key, or the table did not take it.
    fn add_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Adds or replaces a flow; `false` if the table did not take it.
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
    /// Remembers the backend that a client stays with. A full table forgets another one.
    fn insert_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity);
    /// Whether a set of source ranges holds a client.
    fn allows(&self, set: u32, client: A) -> bool;
    /// The ports of a datagram in fragments.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment>;
    /// Remembers the ports of a datagram in fragments. A full table forgets another one.
    fn insert_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment);
    /// As [`Self::insert_fragment`]; `false` if something is remembered with this key already, or the table did not take
    /// it.
    fn add_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) -> bool;
    /// Whether one more fragment from this address may be handed to the kernel's own reassembly; counts it.
    fn may_detour(&self, source: A) -> bool;
    /// The address that replaces a client's in packets that leave by this device; unspecified if there is none.
    fn device_address(&self, device: u32) -> A;

    /// The time in ticks: a counter of about a second's resolution ([`TICK_SHIFT`]) that wraps after years.
    fn now(&self) -> u32;
    /// The time in jiffies, since about the start of the kernel.
    fn jiffies(&self) -> u64;
    /// How many jiffies a second has.
    fn jiffies_per_second(&self) -> u32;
    /// A random number.
    fn random(&self) -> u32;
    /// How long idle flows of a protocol live in a state ([`crate::layout::flow_state`]), in ticks.
    fn lifetime(&self, protocol: u8, state: u8) -> u32;
    /// The address of this node that replaces the client's in hairpin connections; unspecified if there is none.
    fn node_address(&self) -> A;

    /// What the hash of outside clients begins with: the same on all nodes.
    fn hash_seed(&self) -> u64;
    /// Whether a client of this address may be told once more that a packet of its goes no further; counts the answer.
    fn may_answer(&self, client: A, limit: Limit) -> bool;

    /// Source ports that the datapath gives out when it must replace one.
    fn source_ports(&self) -> SourcePorts;
    /// Whether connections to removed backends go on as if nothing had happened.
    fn keeps_removed(&self) -> bool;
    /// Whether packets between Pods of this node go without its stack.
    fn redirects_locally(&self) -> bool;

    /// Counts a connection of a Service.
    fn count_connection(&self, service: ServiceId);
    /// Counts a first packet of a Service that found no usable backend.
    fn count_rejected(&self, service: ServiceId);
    /// Counts a packet by what kept it from being translated.
    fn count_reason(&self, reason: Reason);
}

/// A tick is `jiffies >> TICK_SHIFT`: 2.56 s at 100 Hz, 1.02 s at 250 Hz, 0.26 s at 1000 Hz. Coarse, so that the
/// entry of a busy flow is written about once a second and not with each packet.
pub const TICK_SHIFT: u32 = 8;

/// Ports that follow each other, in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// How many.
    pub count: u16,
}

impl PortRange {
    /// Whether a port (host byte order) is one of them.
    pub fn contains(&self, port: u16) -> bool {
        port.checked_sub(self.first)
            .is_some_and(|offset| offset < self.count)
    }
}

/// Source ports that the datapath gives out where it must replace a client's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SourcePorts {
    /// All of them.
    pub all: PortRange,
    /// Those of them that the kernel gives to sockets of the node. They are given out when others are hard to find.
    /// Empty if all of them are.
    pub local: PortRange,
}

impl SourcePorts {
    /// All ports above the well-known ones, with the kernel's default of `ip_local_port_range`.
    pub const DEFAULT: Self = Self {
        all: PortRange {
            first: 1024,
            count: 64_512,
        },
        local: PortRange {
            first: 32_768,
            count: 28_232,
        },
    };

    /// One of the local ports, or of the others, by chance.
    #[inline(always)]
    pub fn pick(&self, chance: u32, is_local: bool) -> Port {
        let count = if is_local {
            self.local.count
        } else {
            self.all.count.wrapping_sub(self.local.count)
        };
        let offset = ((u64::from(chance) * u64::from(count)) >> 32) as u16;
        if is_local {
            return Port::new(self.local.first.wrapping_add(offset));
        }
        let port = self.all.first.wrapping_add(offset);
        // Without a branch: the verifier would walk twice through what follows, in each round of a loop.
        let is_below = u32::from(port).wrapping_sub(u32::from(self.local.first)) >> 31;
        Port::new(port.wrapping_add(self.local.count.wrapping_mul(1 - is_below as u16)))
    }
}
