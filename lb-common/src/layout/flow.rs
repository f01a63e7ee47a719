//! Flows: the remembered state of connections.
#![expect(
    unsafe_code,
    reason = "the key of a flow is built from words, not from its fields"
)]

use core::mem::offset_of;

use super::service::{BackendId, ServiceId};
use crate::net::Port;

/// A packet's addresses and ports on the wire, and the hook at which it is seen: key of the flows
/// maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// One of [`crate::net::protocol`].
    pub protocol: u8,
    /// One of [`hook`].
    pub hook: u8,
    /// Zero.
    pub pad: u16,
}

/// Values of [`FlowKey::hook`].
pub mod hook {
    /// The packet enters the node's stack from a Pod.
    pub const INGRESS_INSIDE: u8 = 0;
    /// The packet leaves the node's stack towards a Pod or a network device.
    pub const EGRESS: u8 = 1;
    /// The packet enters the node's stack from a network device. It does not find the flows of a
    /// Pod, even if its source is the Pod's address.
    pub const INGRESS_OUTSIDE: u8 = 2;
}

/// The remembered rewrite of one direction of a connection: value of the flows maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(C)]
pub struct Flow<A> {
    /// Source address after the rewrite.
    pub source: A,
    /// Destination address after the rewrite.
    pub destination: A,
    /// Source port after the rewrite.
    pub source_port: Port,
    /// Destination port after the rewrite.
    pub destination_port: Port,
    /// The service port that the connection belongs to.
    pub service: ServiceId,
    /// The backend that was chosen.
    pub backend: BackendId,
    /// The backend row's generation when it was chosen.
    pub generation: u32,
    /// When a packet was last seen, in ticks (see [`crate::tables::Tables::now`]).
    pub last_seen: u32,
    /// The acknowledgement number of this direction's TCP segments, about a tick old. Before the
    /// first segment of a reply, the sequence number of the segment that opened the flow. Host byte
    /// order.
    pub acknowledged: u32,
    /// Bits of [`flow_state`].
    pub state: u8,
    /// Bits of [`flow_flags`].
    pub flags: u8,
    /// The ones' complement difference that the new addresses make to checksums, in memory order.
    pub difference: u16,
}

/// Bits of [`Flow::state`], the same in the entries of both directions.
pub mod flow_state {
    /// The backend has answered.
    pub const ANSWERED: u8 = 1;
    /// The client has sent FIN.
    pub const FIN_REQUEST: u8 = 1 << 1;
    /// The backend has sent FIN.
    pub const FIN_REPLY: u8 = 1 << 2;
    /// Either side has sent RST.
    pub const RESET: u8 = 1 << 3;
    /// The client has sent another packet after the backend's answer. Only then is a TCP connection
    /// established: a client with a forged address does not receive the answer.
    pub const CONFIRMED: u8 = 1 << 4;
    /// The backend has answered the SYN as if the connection were already open: the client has
    /// another connection from the same port directly to the backend. What the backend sends
    /// belongs to that one.
    pub const CLASH: u8 = 1 << 5;
    /// Number of combinations.
    pub const COUNT: u8 = 1 << 6;
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// The entry rewrites what the backend sends.
    pub const REPLY: u8 = 1;
    /// The client is the chosen backend: the packet goes back out of the device it came in on.
    pub const HAIRPIN: u8 = 1 << 1;
    /// The client's address is replaced by one of this node, and the packet is forwarded without
    /// the node's stack.
    pub const FORWARD: u8 = 1 << 2;
    /// Client and backend are on this node: the packet may be handed to the Pod without the node's
    /// stack.
    pub const LOCAL: u8 = 1 << 3;
    /// A TCP segment other than a SYN opened the flow: its connection began elsewhere, or its entry
    /// was lost.
    pub const MIDSTREAM: u8 = 1 << 4;
    /// Nothing is rewritten: the connection is the node's own from a port that is also a
    /// frontend's, or another service proxy translates it.
    pub const PASS: u8 = 1 << 5;
    /// Shift of the bits that hold the [`super::hook`] at which the opposite direction is seen.
    pub const PEER_HOOK_SHIFT: u8 = 6;
}

impl<A: Copy> FlowKey<A> {
    /// Builds a key. `ports` holds source and destination port in header order.
    ///
    /// The ports are written as one word because the kernel reads them as one when it hashes the
    /// key. A CPU can read a word that was written in parts only when the parts have reached the
    /// cache.
    #[inline(always)]
    pub fn new(source: A, destination: A, ports: u32, protocol: u8, hook: u8) -> Self {
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct Words<A> {
            source: A,
            destination: A,
            ports: u32,
            rest: [u8; 4],
        }
        const {
            assert!(size_of::<Words<A>>() == size_of::<Self>());
            assert!(offset_of!(Words<A>, ports) == offset_of!(Self, source_port));
            assert!(offset_of!(Words<A>, rest) == offset_of!(Self, protocol));
        }
        let words = Words {
            source,
            destination,
            ports,
            rest: [protocol, hook, 0, 0],
        };
        // SAFETY: both types have the addresses, then eight bytes of numbers. The assertions
        // compare the offsets.
        unsafe { core::mem::transmute_copy(&words) }
    }

    /// Source and destination port as one word in header order.
    #[inline(always)]
    pub fn ports_word(&self) -> u32 {
        let ([a, b], [c, d]) = (self.source_port.to_bytes(), self.destination_port.to_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    /// The key of packets in the opposite direction, seen at `hook`.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self, hook: u8) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            hook,
            pad: 0,
        }
    }
}
