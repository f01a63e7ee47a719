//! Remembered rewrites: the state of a flow, and what a packet does to it.
#![expect(
    unsafe_code,
    reason = "a flow entry is a pointer into a map that programs on other CPUs write too"
)]

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::checksum::Sum;
use crate::layout::{Flow, FlowKey, flow_flags, flow_state, hook, protocol};
use crate::parse::tcp_flags;

/// An entry of the flow table, in place.
///
/// The kernel may give the entry to another flow while a program looks at it (LRU maps, `aya`'s contract of `get`),
/// so everything is copied out at once and only single fields are written back.
pub struct FlowEntry<A> {
    flow: NonNull<Flow<A>>,
}

impl<A: Copy> FlowEntry<A> {
    /// An entry at this place.
    ///
    /// # Safety
    /// The pointer is valid for reads and writes while the value lives: for a map value until the program returns.
    #[inline(always)]
    pub const unsafe fn new(flow: NonNull<Flow<A>>) -> Self {
        Self { flow }
    }

    /// A copy of the entry.
    #[inline(always)]
    pub fn get(&self) -> Flow<A> {
        const { assert!(size_of::<Flow<A>>().is_multiple_of(size_of::<u32>())) };
        let mut copy = MaybeUninit::<Flow<A>>::uninit();
        let (from, to) = (self.flow.as_ptr().cast::<u32>(), copy.as_mut_ptr().cast::<u32>());
        for word in 0..size_of::<Flow<A>>() / size_of::<u32>() {
            // Each word is read once. Left to itself LLVM calls memcpy, which copies bytes.
            // SAFETY: valid for reads by the contract of `new`; a flow consists of whole words.
            unsafe { to.add(word).write(from.add(word).read_volatile()) }
        }
        // SAFETY: all words are written.
        unsafe { copy.assume_init() }
    }

    /// Notes when the flow was last seen.
    #[inline(always)]
    pub fn set_last_seen(&self, now: u32) {
        // SAFETY: valid for writes by the contract of `new`.
        unsafe { (&raw mut (*self.flow.as_ptr()).last_seen).write(now) }
    }

    /// Adds bits of [`flow_state`].
    #[inline(always)]
    pub fn add_state(&self, bits: u8) {
        // SAFETY: valid for reads and writes by the contract of `new`.
        unsafe {
            let state = &raw mut (*self.flow.as_ptr()).state;
            state.write(state.read() | bits);
        }
    }
}

/// How long idle flows live, in ticks (or in seconds, before they are given to the programs).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Lifetimes {
    /// TCP, answered.
    pub tcp_established: u32,
    /// TCP, not yet answered.
    pub tcp_opening: u32,
    /// TCP, closed or reset.
    pub tcp_closing: u32,
    /// UDP, answered.
    pub udp_answered: u32,
    /// UDP, not yet answered.
    pub udp_unanswered: u32,
}

impl Lifetimes {
    /// The defaults of Linux conntrack in seconds (sysctls `net.netfilter.nf_conntrack_*_timeout*`), but for shorter established and
    /// closing times.
    pub const DEFAULT_SECONDS: Self = Self {
        tcp_established: (2 * 60 + 13) * 60,
        tcp_opening: 60,
        tcp_closing: 10,
        udp_answered: 180,
        udp_unanswered: 60,
    };

    /// How long a flow in a state (bits of [`flow_state`]) lives.
    #[inline(always)]
    pub const fn of(&self, protocol: u8, state: u8) -> u32 {
        let is_answered = state & flow_state::ANSWERED != 0;
        match (protocol, is_answered) {
            (protocol::TCP | protocol::SCTP, _) if is_closed(state) => self.tcp_closing,
            (protocol::TCP | protocol::SCTP, true) => self.tcp_established,
            (protocol::TCP | protocol::SCTP, false) => self.tcp_opening,
            (_, true) => self.udp_answered,
            (_, false) => self.udp_unanswered,
        }
    }

    /// Those of all protocols and states, each where [`row`] says.
    #[must_use]
    pub const fn rows(&self) -> [u32; ROWS] {
        let mut rows = [0; ROWS];
        let mut state = 0;
        while state < flow_state::COUNT {
            rows[row(protocol::TCP, state)] = self.of(protocol::TCP, state);
            rows[row(protocol::UDP, state)] = self.of(protocol::UDP, state);
            state += 1;
        }
        rows
    }

    /// From seconds to ticks of this rate.
    #[must_use]
    pub const fn to_ticks(self, ticks_per_1000_seconds: u32) -> Self {
        const fn ticks(seconds: u32, rate: u32) -> u32 {
            (seconds as u64 * rate as u64).div_ceil(1000) as u32
        }
        let rate = ticks_per_1000_seconds;
        Self {
            tcp_established: ticks(self.tcp_established, rate),
            tcp_opening: ticks(self.tcp_opening, rate),
            tcp_closing: ticks(self.tcp_closing, rate),
            udp_answered: ticks(self.udp_answered, rate),
            udp_unanswered: ticks(self.udp_unanswered, rate),
        }
    }
}

/// How many rows [`Lifetimes::rows`] has.
pub const ROWS: usize = 2 * flow_state::COUNT as usize;

/// Where the lifetime of a protocol's flows in a state stands in [`Lifetimes::rows`].
///
/// Programs look there instead of asking one question after the other: the verifier walks through each answer.
#[inline(always)]
pub const fn row(protocol: u8, state: u8) -> usize {
    // What tells UDP's number from the others.
    const ODD: u8 = 1;
    const { assert!(protocol::UDP & ODD != 0 && (protocol::TCP | protocol::SCTP) & ODD == 0) };
    (state % flow_state::COUNT) as usize | ((protocol & ODD) * flow_state::COUNT) as usize
}

/// Whether a flow in this state has ended.
#[inline(always)]
const fn is_closed(state: u8) -> bool {
    /// A bit for each state: one question instead of two.
    const CLOSED: u16 = {
        const FIN_BOTH: u8 = flow_state::FIN_REQUEST | flow_state::FIN_REPLY;
        let mut closed = 0;
        let mut state = 0;
        while state < flow_state::COUNT {
            if state & flow_state::RESET != 0 || state & FIN_BOTH == FIN_BOTH {
                closed |= 1 << state;
            }
            state += 1;
        }
        closed
    };
    (CLOSED >> (state % flow_state::COUNT)) & 1 != 0
}

impl<A: Copy + Eq> Flow<A> {
    /// The key of the entry for the opposite direction.
    #[inline(always)]
    pub fn peer_key(&self, protocol: u8) -> FlowKey<A> {
        const TO_INGRESS: u8 = flow_flags::REPLY | flow_flags::HAIRPIN | flow_flags::FORWARD;
        let to_egress = self.flags & TO_INGRESS == 0;
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            hook: if to_egress { hook::EGRESS } else { hook::INGRESS },
            pad: 0,
        }
    }

    /// Source and destination port after the rewrite, as they follow each other in a header.
    #[inline(always)]
    pub fn ports_word(&self) -> u32 {
        let ([a, b], [c, d]) = (self.source_port.to_bytes(), self.destination_port.to_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Whether the entry rewrites what the backend sends.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.flags & flow_flags::REPLY != 0
    }

    /// What the new addresses add to the IPv4 header's checksum and to that of the transport header.
    #[inline(always)]
    pub fn address_difference(&self) -> Sum {
        Sum::new().add(u32::from(self.difference))
    }

    /// Whether packets with this key and this flow's are the two directions of one connection.
    #[inline(always)]
    pub fn answers(&self, key: &FlowKey<A>) -> bool {
        self.source == key.destination
            && self.destination == key.source
            && self.source_port == key.destination_port
            && self.destination_port == key.source_port
    }

    /// Whether the connection has ended: a SYN on the same tuple begins a new one.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        is_closed(self.state)
    }

    /// Whether the flow has been idle for longer than it lives, as `lifetime` says of its protocol and state.
    #[inline(always)]
    pub fn is_expired(&self, protocol: u8, now: u32, lifetime: impl FnOnce(u8, u8) -> u32) -> bool {
        now.wrapping_sub(self.last_seen) > lifetime(protocol, self.state)
    }

    /// The bits of [`flow_state`] that a packet adds to this flow.
    #[inline(always)]
    pub fn news(&self, tcp_flags: u8) -> u8 {
        let mut bits = 0;
        if self.is_reply() {
            bits |= flow_state::ANSWERED;
        }
        if tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0 {
            if tcp_flags & tcp_flags::RST != 0 {
                bits |= flow_state::RESET;
            }
            if tcp_flags & tcp_flags::FIN != 0 {
                bits |= if self.is_reply() {
                    flow_state::FIN_REPLY
                } else {
                    flow_state::FIN_REQUEST
                };
            }
        }
        bits & !self.state
    }
}

#[cfg(test)]
mod tests {
    use super::{Lifetimes, row};
    use crate::layout::{Address4, Flow, Port, flow_flags, flow_state, hook, protocol};
    use crate::parse::tcp_flags;
    use proptest::prelude::*;

    const LIFETIMES: Lifetimes = Lifetimes {
        tcp_established: 50,
        tcp_opening: 40,
        tcp_closing: 10,
        udp_answered: 30,
        udp_unanswered: 20,
    };

    fn flow(state: u8, flags: u8) -> Flow<Address4> {
        Flow {
            source: Address4::from_bytes([10, 0, 0, 1]),
            destination: Address4::from_bytes([10, 0, 0, 2]),
            source_port: Port::new(1),
            destination_port: Port::new(2),
            state,
            flags,
            ..Flow::default()
        }
    }

    const BOTH: u8 = flow_state::FIN_REQUEST | flow_state::FIN_REPLY;

    #[test]
    fn closed_by_both_or_reset() {
        for (state, closed) in [
            (0, false),
            (flow_state::ANSWERED, false),
            (flow_state::FIN_REQUEST, false),
            (flow_state::FIN_REPLY, false),
            (BOTH, true),
            (flow_state::RESET, true),
            (flow_state::ANSWERED | flow_state::RESET, true),
        ] {
            assert_eq!(flow(state, 0).is_closed(), closed, "{state}");
        }
    }

    #[test]
    fn lifetime_follows_from_state() {
        for (protocol, state, lifetime) in [
            (protocol::TCP, 0, 40),
            (protocol::TCP, flow_state::ANSWERED, 50),
            (protocol::TCP, flow_state::ANSWERED | BOTH, 10),
            (protocol::TCP, flow_state::RESET, 10),
            (protocol::UDP, 0, 20),
            (protocol::UDP, flow_state::ANSWERED, 30),
            (protocol::SCTP, 0, 40),
            (protocol::SCTP, flow_state::ANSWERED, 50),
        ] {
            let of = |protocol, state| LIFETIMES.of(protocol, state);
            assert_eq!(LIFETIMES.rows()[row(protocol, state)], lifetime);
            // The clock wraps.
            for seen in [0, 1000, u32::MAX - 5] {
                let flow = Flow {
                    last_seen: seen,
                    ..flow(state, 0)
                };
                assert!(
                    !flow.is_expired(protocol, seen.wrapping_add(lifetime), of),
                    "{protocol} {state}"
                );
                assert!(
                    flow.is_expired(protocol, seen.wrapping_add(lifetime + 1), of),
                    "{protocol} {state}"
                );
            }
        }
    }

    #[test]
    fn news_are_what_is_not_known_yet() {
        let reply = flow_flags::REPLY;
        for (state, flags, tcp_flags, news) in [
            (0, 0, tcp_flags::SYN, 0),
            (0, 0, tcp_flags::FIN | tcp_flags::ACK, flow_state::FIN_REQUEST),
            (0, 0, tcp_flags::RST, flow_state::RESET),
            (flow_state::FIN_REQUEST, 0, tcp_flags::FIN, 0),
            (0, reply, tcp_flags::SYN | tcp_flags::ACK, flow_state::ANSWERED),
            (flow_state::ANSWERED, reply, tcp_flags::ACK, 0),
            (flow_state::ANSWERED, reply, tcp_flags::FIN, flow_state::FIN_REPLY),
            (0, reply, tcp_flags::RST, flow_state::ANSWERED | flow_state::RESET),
        ] {
            assert_eq!(
                flow(state, flags).news(tcp_flags),
                news,
                "{state} {flags} {tcp_flags}"
            );
        }
    }

    #[test]
    fn peer_is_seen_at_the_other_end_of_the_stack() {
        for (flags, at) in [
            (0, hook::EGRESS),
            (flow_flags::REPLY, hook::INGRESS),
            (flow_flags::HAIRPIN, hook::INGRESS),
            (flow_flags::HAIRPIN | flow_flags::REPLY, hook::INGRESS),
            (flow_flags::FORWARD, hook::INGRESS),
            (flow_flags::FORWARD | flow_flags::REPLY, hook::INGRESS),
        ] {
            assert_eq!(flow(0, flags).peer_key(protocol::TCP).hook, at, "{flags}");
        }
    }

    proptest! {
        #[test]
        fn peer_key_is_that_of_the_answer(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) {
            let flow: Flow<Address4> = Flow {
                source: Address4::from_bytes(source),
                destination: Address4::from_bytes(destination),
                source_port: Port::new(ports[0]),
                destination_port: Port::new(ports[1]),
                ..Flow::default()
            };
            let key = flow.peer_key(protocol::UDP);
            prop_assert!(flow.answers(&key));
            let back = key.reversed(hook::INGRESS);
            prop_assert_eq!((back.source, back.destination), (flow.source, flow.destination));
            prop_assert_eq!(back.ports_word(), flow.ports_word());
        }
    }
}
