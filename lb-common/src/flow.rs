//! The state of a flow, and how packets change it.
#![expect(
    unsafe_code,
    reason = "a flow entry is a pointer into a map that programs on other CPUs write too"
)]

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::checksum::Sum;
use crate::layout::{Flow, FlowKey, flow_flags, flow_state, hook};
use crate::net::tcp_flags;
use crate::settings::is_closed;

/// An entry of the flow table, in place.
///
/// The kernel may reuse the entry for another flow while a program reads it (LRU maps; see aya's
/// contract of `get`). So the whole entry is copied immediately, and only single fields are written
/// back.
pub struct FlowEntry<A> {
    flow: NonNull<Flow<A>>,
}

impl<A: Copy> FlowEntry<A> {
    /// An entry at this address.
    ///
    /// # Safety
    /// The pointer is valid for reads and writes while the returned value is used: for a map value,
    /// until the program returns.
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
            // Each word is read once. Without `read_volatile`, LLVM would call memcpy, which copies
            // bytes.
            // SAFETY: valid for reads by the contract of `new`; a flow consists of whole words.
            unsafe { to.add(word).write(from.add(word).read_volatile()) }
        }
        // SAFETY: all words are written.
        unsafe { copy.assume_init() }
    }

    /// Records when the flow was last seen.
    #[inline(always)]
    pub fn set_last_seen(&self, now: u32) {
        // SAFETY: valid for writes by the contract of `new`.
        unsafe { (&raw mut (*self.flow.as_ptr()).last_seen).write(now) }
    }

    /// Records the acknowledgement number of a segment, in host byte order.
    #[inline(always)]
    pub fn set_acknowledged(&self, number: u32) {
        // SAFETY: valid for writes by the contract of `new`.
        unsafe { (&raw mut (*self.flow.as_ptr()).acknowledged).write(number) }
    }

    /// Adds and removes bits of [`flow_state`].
    #[inline(always)]
    pub fn change_state(&self, change: StateChange) {
        // SAFETY: valid for reads and writes by the contract of `new`.
        unsafe {
            let state = &raw mut (*self.flow.as_ptr()).state;
            state.write((state.read() & !change.removed) | change.added);
        }
    }
}

/// What a packet changes of a flow's state: bits of [`flow_state`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StateChange {
    /// Bits to set that are not set yet.
    pub added: u8,
    /// Bits to clear that are set.
    pub removed: u8,
}

impl StateChange {
    /// Whether nothing changes.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.added | self.removed == 0
    }
}

impl<A: Copy + Eq> Flow<A> {
    /// The key of the entry for the opposite direction.
    #[inline(always)]
    pub fn peer_key(&self, protocol: u8) -> FlowKey<A> {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            hook: self.flags >> flow_flags::PEER_HOOK_SHIFT,
            pad: 0,
        }
    }

    /// Sets the [`crate::layout::hook`] at which the opposite direction is seen.
    #[inline(always)]
    pub fn set_peer_hook(&mut self, hook: u8) {
        const MASK: u8 = (1 << flow_flags::PEER_HOOK_SHIFT) - 1;
        self.flags = (self.flags & MASK) | hook << flow_flags::PEER_HOOK_SHIFT;
    }

    /// The [`crate::layout::hook`] at which replies to a request of this flow are seen. Replies
    /// that do not leave through the stack are seen where they enter it.
    #[inline(always)]
    pub fn reply_hook(&self) -> u8 {
        match self.flags & (flow_flags::HAIRPIN | flow_flags::FORWARD | flow_flags::LOCAL) {
            flow_flags::FORWARD => hook::INGRESS_OUTSIDE,
            0 | flow_flags::LOCAL => hook::EGRESS,
            _ => hook::INGRESS_INSIDE,
        }
    }

    /// Source and destination port after the rewrite, as one word in header order.
    #[inline(always)]
    pub fn ports_word(&self) -> u32 {
        let ([a, b], [c, d]) = (self.source_port.to_bytes(), self.destination_port.to_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Returns true if the entry rewrites what the backend sends.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.flags & flow_flags::REPLY != 0
    }

    /// The difference that the new addresses make to the checksums of the IPv4 header and the
    /// transport header.
    #[inline(always)]
    pub fn address_difference(&self) -> Sum {
        Sum::new().add(u32::from(self.difference))
    }

    /// Returns true if packets with this key and packets of this flow, after its rewrite, are the
    /// two directions of one connection.
    #[inline(always)]
    pub fn answers(&self, key: &FlowKey<A>) -> bool {
        self.source == key.destination
            && self.destination == key.source
            && self.source_port == key.destination_port
            && self.destination_port == key.source_port
    }

    /// Returns true if the connection has ended. A SYN on the same tuple then opens a new one.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        is_closed(self.state)
    }

    /// Returns true if the flow has been idle for longer than its lifetime. `lifetime` returns the
    /// lifetime for a protocol and a state.
    #[inline(always)]
    pub fn is_expired(&self, protocol: u8, now: u32, lifetime: impl FnOnce(u8, u8) -> u32) -> bool {
        now.wrapping_sub(self.last_seen) > lifetime(protocol, self.state)
    }

    /// Returns true if the connection is established and the packet does not change its state.
    /// Nearly all packets pass this single check and skip the many checks of
    /// [`Self::state_change`].
    #[inline(always)]
    pub const fn is_unchanged_by(&self, tcp_flags: u8) -> bool {
        const OPEN: u8 = flow_state::ANSWERED | flow_state::CONFIRMED;
        const ENDS: u8 = tcp_flags::FIN | tcp_flags::RST;
        let others = (self.state & (OPEN | flow_state::RESET)) ^ OPEN;
        others | (tcp_flags & (tcp_flags::SYN | ENDS)) == 0
    }

    /// The bits of this flow's state that a packet changes. [`Self::is_in_window`] decides whether
    /// a RST is valid.
    #[inline(always)]
    pub fn state_change(&self, tcp_flags: u8) -> StateChange {
        const OPENS_OR_RESETS: u8 = tcp_flags::SYN | tcp_flags::RST;
        // Both entries of a connection have the same state. The direction decides which bits a
        // packet sets.
        let (answers, fin) = if self.is_reply() {
            (flow_state::ANSWERED, flow_state::FIN_REPLY)
        } else {
            let answered = self.state & flow_state::ANSWERED != 0;
            let confirms = answered && tcp_flags & OPENS_OR_RESETS == 0;
            (
                if confirms { flow_state::CONFIRMED } else { 0 },
                flow_state::FIN_REQUEST,
            )
        };
        let mut added = answers;
        let mut removed = 0;
        if tcp_flags & tcp_flags::FIN != 0 {
            added |= fin;
        }
        if tcp_flags & tcp_flags::RST != 0 {
            added |= flow_state::RESET;
        } else if tcp_flags & tcp_flags::SYN == 0 {
            // A sender that continues has not been reset, or did not send the RST.
            removed = flow_state::RESET;
        }
        StateChange {
            added: added & !self.state,
            removed: removed & self.state,
        }
    }

    /// Returns true if a segment's number is near [`Flow::acknowledged`], the number that the
    /// segments of this flow's direction have acknowledged. A sender that cannot see the connection
    /// has to guess such a number.
    #[inline(always)]
    pub fn is_in_window(&self, number: u32) -> bool {
        /// Bytes behind and ahead. More than a window of Linux' default sizes (`tcp_rmem`, at most
        /// 6 MiB) is rarely in flight, and the recorded number is up to a tick old.
        const WINDOW: u32 = 4 << 20;
        number.wrapping_sub(self.acknowledged).wrapping_add(WINDOW) <= 2 * WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::StateChange;
    use crate::layout::{Flow, flow_flags, flow_state, hook};
    use crate::net::tcp_flags;
    use crate::net::{Address4, Port, protocol};
    use crate::settings::{Lifetimes, lifetime_row};
    use proptest::prelude::*;

    const LIFETIMES: Lifetimes = Lifetimes {
        tcp_established: 50,
        tcp_opening: 40,
        tcp_half_closed: 45,
        tcp_closing: 15,
        tcp_reset: 10,
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
    const OPEN: u8 = flow_state::ANSWERED | flow_state::CONFIRMED;

    #[test]
    fn flows_that_both_sides_closed_or_one_reset_are_closed() {
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

    /// docs/semantics.md and the help text state these numbers.
    #[test]
    fn default_lifetimes_match_the_documentation() {
        let Lifetimes {
            tcp_established,
            tcp_opening,
            tcp_half_closed,
            tcp_closing,
            tcp_reset,
            udp_answered,
            udp_unanswered,
        } = Lifetimes::DEFAULT_SECONDS;
        assert_eq!((tcp_established, tcp_opening, tcp_half_closed), (7980, 60, 3600));
        assert_eq!((tcp_closing, tcp_reset), (120, 10));
        assert_eq!((udp_answered, udp_unanswered), (180, 60));
    }

    #[test]
    fn the_lifetime_depends_on_protocol_and_state() {
        for (protocol, state, lifetime) in [
            (protocol::TCP, 0, 40),
            (protocol::TCP, flow_state::ANSWERED, 40),
            (protocol::TCP, OPEN, 50),
            (protocol::TCP, OPEN | flow_state::FIN_REQUEST, 45),
            (protocol::TCP, OPEN | flow_state::FIN_REPLY, 45),
            (protocol::TCP, flow_state::FIN_REQUEST, 40),
            (protocol::TCP, OPEN | BOTH, 15),
            (protocol::TCP, flow_state::RESET, 10),
            (protocol::TCP, OPEN | BOTH | flow_state::RESET, 10),
            (protocol::UDP, 0, 20),
            (protocol::UDP, flow_state::ANSWERED, 30),
            (protocol::UDP, OPEN, 30),
            (protocol::SCTP, 0, 40),
            (protocol::SCTP, flow_state::ANSWERED, 40),
            (protocol::SCTP, OPEN, 50),
        ] {
            let of = |protocol, state| LIFETIMES.of(protocol, state);
            assert_eq!(LIFETIMES.rows()[lifetime_row(protocol, state)], lifetime);
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
    fn a_packet_changes_only_bits_that_differ() {
        const ACK: u8 = tcp_flags::ACK;
        const SYN: u8 = tcp_flags::SYN;
        const ANSWERED: u8 = flow_state::ANSWERED;
        const RESET: u8 = flow_state::RESET;
        let reply = flow_flags::REPLY;
        for (state, flags, tcp_flags, added, removed) in [
            (0, 0, SYN, 0, 0),
            // The backend has not answered yet.
            (0, 0, ACK, 0, 0),
            (0, 0, tcp_flags::FIN | ACK, flow_state::FIN_REQUEST, 0),
            (0, 0, tcp_flags::RST, RESET, 0),
            (flow_state::FIN_REQUEST, 0, tcp_flags::FIN, 0, 0),
            (0, reply, SYN | ACK, ANSWERED, 0),
            (ANSWERED, 0, SYN, 0, 0),
            (ANSWERED, 0, tcp_flags::RST, RESET, 0),
            (ANSWERED, 0, ACK, flow_state::CONFIRMED, 0),
            (OPEN, 0, ACK, 0, 0),
            (ANSWERED, reply, ACK, 0, 0),
            (ANSWERED, reply, tcp_flags::FIN, flow_state::FIN_REPLY, 0),
            (0, reply, tcp_flags::RST, ANSWERED | RESET, 0),
            // A segment after a RST shows that the connection was not reset.
            (OPEN | RESET, 0, ACK, 0, RESET),
            (OPEN | RESET, reply, ACK, 0, RESET),
            (OPEN | RESET, 0, tcp_flags::RST, 0, 0),
            (OPEN | RESET, 0, SYN, 0, 0),
        ] {
            assert_eq!(
                flow(state, flags).state_change(tcp_flags),
                StateChange { added, removed },
                "{state} {flags} {tcp_flags}"
            );
        }
    }

    #[test]
    fn packets_of_established_connections_change_nothing() {
        let mut unchanged = 0;
        for state in 0..flow_state::COUNT {
            for flags in [0, flow_flags::REPLY] {
                for tcp_flags in 0..=u8::MAX {
                    let flow = flow(state, flags);
                    if flow.is_unchanged_by(tcp_flags) {
                        unchanged += 1;
                        assert!(
                            flow.state_change(tcp_flags).is_empty(),
                            "{state} {flags} {tcp_flags}"
                        );
                    }
                }
            }
        }
        assert!(flow(OPEN, 0).is_unchanged_by(tcp_flags::ACK));
        // Three bits of the state and three flags are fixed.
        assert_eq!(unchanged, usize::from(flow_state::COUNT / 8) * 2 * 256 / 8);
    }

    #[test]
    fn replies_are_seen_where_they_leave_the_stack_or_else_enter_it() {
        const FORWARD: u8 = flow_flags::FORWARD;
        for (flags, at) in [
            (0, hook::EGRESS),
            (flow_flags::LOCAL, hook::EGRESS),
            (flow_flags::HAIRPIN, hook::INGRESS_INSIDE),
            (FORWARD, hook::INGRESS_OUTSIDE),
            (FORWARD | flow_flags::LOCAL, hook::INGRESS_INSIDE),
        ] {
            assert_eq!(flow(0, flags).reply_hook(), at, "{flags}");
        }
        for hook in [hook::EGRESS, hook::INGRESS_INSIDE, hook::INGRESS_OUTSIDE] {
            let mut flow = flow(0, flow_flags::REPLY | FORWARD);
            flow.set_peer_hook(hook::EGRESS);
            flow.set_peer_hook(hook);
            assert_eq!(flow.peer_key(protocol::TCP).hook, hook);
            assert!(flow.is_reply());
        }
    }

    #[test]
    fn only_numbers_near_the_acknowledged_one_are_in_the_window() {
        const MIB: u32 = 1 << 20;
        for acknowledged in [0, 1000, u32::MAX - 1000, 1 << 31] {
            let flow = Flow {
                acknowledged,
                ..flow(0, 0)
            };
            for (distance, expected) in [(0, true), (MIB, true), (5 * MIB, false), (1 << 31, false)] {
                assert_eq!(flow.is_in_window(acknowledged.wrapping_add(distance)), expected);
                assert_eq!(flow.is_in_window(acknowledged.wrapping_sub(distance)), expected);
            }
        }
    }

    proptest! {
        #[test]
        fn the_peer_key_is_the_key_of_answers(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) {
            let flow: Flow<Address4> = Flow {
                source: Address4::from_bytes(source),
                destination: Address4::from_bytes(destination),
                source_port: Port::new(ports[0]),
                destination_port: Port::new(ports[1]),
                ..Flow::default()
            };
            let key = flow.peer_key(protocol::UDP);
            prop_assert!(flow.answers(&key));
            let back = key.reversed(hook::INGRESS_INSIDE);
            prop_assert_eq!((back.source, back.destination), (flow.source, flow.destination));
            prop_assert_eq!(back.ports_word(), flow.ports_word());
        }
    }
}
