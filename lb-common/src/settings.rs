//! Settings with which the programs are loaded: lifetimes of flows, source ports, addresses of the
//! node.

use crate::address::Address;
use crate::layout::{assert_layout, flow_state};
use crate::net::{Address4, Address6, Port, protocol};
use crate::verifier;

/// What the programs are loaded with: their only global, and the value of the settings map, which
/// commands read.
///
/// The kernel freezes the global before the programs are loaded. So the verifier knows every number
/// in it, and skips the code of what is switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LoadedSettings {
    /// Idle lifetimes in ticks, each at its [`lifetime_row`].
    pub lifetimes: [u32; LIFETIME_ROWS],
    /// Input of the hash of outside clients: the same on all nodes.
    pub hash_seed: u64,
    /// The cookie of the node's network namespace; 0 if only programs can read cookies (before
    /// Linux 5.14): then it is the initial namespace.
    pub node_namespace: u64,
    /// The node's primary IPv6 address; unspecified if it has none.
    pub node_address6: Address6,
    /// The node's primary IPv4 address; unspecified if it has none.
    pub node_address4: Address4,
    /// The rate of the kernel's clock; 0 in a row that was never written.
    pub jiffies_per_second: u32,
    /// Source ports that the datapath gives out.
    pub source_ports: SourcePorts,
    /// Not zero if connections to removed backends go on.
    pub keeps_removed: u32,
    /// Not zero if packets between Pods of this node bypass its network stack.
    pub redirects_locally: u32,
    /// Not zero if only sockets of the node's network namespace are translated.
    pub only_node_sockets: u32,
    /// `BPF_FIB_LOOKUP_SKIP_NEIGH`, or 0 before Linux 6.3.
    pub skip_neighbour: u32,
    /// Not zero if the kernel has `bpf_set_retval` (Linux 5.18). The verifier accepts a call of a
    /// helper that the kernel lacks where it sees that the call is never made.
    pub sets_errors: u32,
    /// 0.
    pub reserved: u32,
}

assert_layout! {
    LoadedSettings: 584, align 8;
}

impl LoadedSettings {
    /// The defaults of the agent's options, for a kernel with 250 Hz, and ticks of a second.
    pub const DEFAULT: Self = Self {
        lifetimes: Lifetimes::DEFAULT_SECONDS.rows(),
        hash_seed: 0,
        node_namespace: 0,
        node_address6: Address6::from_words([0; 4]),
        node_address4: Address4::from_word(0),
        jiffies_per_second: 250,
        source_ports: SourcePorts::DEFAULT,
        keeps_removed: 0,
        redirects_locally: 0,
        only_node_sockets: 0,
        skip_neighbour: 0,
        sets_errors: 1,
        reserved: 0,
    };

    /// How long an idle flow of a protocol lives in a state ([`crate::layout::flow_state`]), in
    /// ticks.
    #[inline(always)]
    pub fn lifetime(&self, protocol: u8, state: u8) -> u32 {
        verifier::element(&self.lifetimes, lifetime_row(protocol, state))
    }

    /// The node's primary address of this IP version: it replaces the client's in hairpin
    /// connections. Unspecified if there is none.
    #[inline(always)]
    pub fn node_address<A: Address>(&self) -> A {
        A::select(self.node_address4, self.node_address6)
    }
}

/// A tick is `jiffies >> TICK_SHIFT`: 2.56 s at 100 Hz, 1.02 s at 250 Hz, 0.26 s at 1000 Hz. It is
/// coarse, so that the entry of a busy flow is written about once a second and not for each packet.
pub const TICK_SHIFT: u32 = 8;

/// A range of consecutive ports, in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The number of ports.
    pub count: u16,
}

impl PortRange {
    /// Returns true if the range contains a port (host byte order).
    pub fn contains(&self, port: u16) -> bool {
        port.checked_sub(self.first)
            .is_some_and(|offset| offset < self.count)
    }
}

/// Source ports with which the datapath replaces a client's port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SourcePorts {
    /// All source ports.
    pub all: PortRange,
    /// Ports in the kernel's ephemeral range. They are used only when a free port outside it is
    /// hard to find. Empty if all source ports are in that range.
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

    /// Picks a random port in the ephemeral range, or outside it. `chance` is a random number.
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
        // Branchless: after a branch the verifier would walk twice through what follows, in each
        // round of a loop.
        let is_below = u32::from(port).wrapping_sub(u32::from(self.local.first)) >> 31;
        Port::new(port.wrapping_add(self.local.count.wrapping_mul(1 - is_below as u16)))
    }
}

/// Idle lifetimes of flows, in ticks (or in seconds, before they are passed to the programs).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Lifetimes {
    /// TCP, established.
    pub tcp_established: u32,
    /// TCP, not yet established.
    pub tcp_opening: u32,
    /// TCP, closed by one side.
    pub tcp_half_closed: u32,
    /// TCP, closed by both sides.
    pub tcp_closing: u32,
    /// TCP, reset.
    pub tcp_reset: u32,
    /// UDP, answered.
    pub udp_answered: u32,
    /// UDP, not yet answered.
    pub udp_unanswered: u32,
}

impl Lifetimes {
    /// The defaults of Linux conntrack in seconds (sysctls
    /// `net.netfilter.nf_conntrack_*_timeout*`), except for a shorter established time and longer
    /// times of UDP (conntrack: 120 and 30). Half-closed connections live as long as with
    /// kube-proxy (its option `--conntrack-tcp-timeout-close-wait`). Closed connections live as
    /// long as in conntrack's longest closing state (TIME_WAIT).
    pub const DEFAULT_SECONDS: Self = Self {
        tcp_established: (2 * 60 + 13) * 60,
        tcp_opening: 60,
        tcp_half_closed: 60 * 60,
        tcp_closing: 120,
        tcp_reset: 10,
        udp_answered: 180,
        udp_unanswered: 60,
    };

    /// The lifetime of a flow in a state (bits of [`flow_state`]).
    #[inline(always)]
    pub const fn of(&self, protocol: u8, state: u8) -> u32 {
        const FIN: u8 = flow_state::FIN_REQUEST | flow_state::FIN_REPLY;
        const fn is(state: u8, bits: u8) -> bool {
            state & bits != 0
        }
        match protocol {
            protocol::TCP | protocol::SCTP if is(state, flow_state::RESET) => self.tcp_reset,
            protocol::TCP | protocol::SCTP if is_closed(state) => self.tcp_closing,
            protocol::TCP | protocol::SCTP if !is(state, flow_state::CONFIRMED) => self.tcp_opening,
            protocol::TCP | protocol::SCTP if is(state, FIN) => self.tcp_half_closed,
            protocol::TCP | protocol::SCTP => self.tcp_established,
            _ if is(state, flow_state::ANSWERED) => self.udp_answered,
            _ => self.udp_unanswered,
        }
    }

    /// The lifetimes of all protocols and states. [`lifetime_row`] returns the index.
    #[must_use]
    pub const fn rows(&self) -> [u32; LIFETIME_ROWS] {
        let mut rows = [0; LIFETIME_ROWS];
        let mut state = 0;
        while state < flow_state::COUNT {
            rows[lifetime_row(protocol::TCP, state)] = self.of(protocol::TCP, state);
            rows[lifetime_row(protocol::UDP, state)] = self.of(protocol::UDP, state);
            state += 1;
        }
        rows
    }

    /// Converts seconds to ticks of this rate.
    #[must_use]
    pub const fn to_ticks(self, ticks_per_1000_seconds: u32) -> Self {
        const fn ticks(seconds: u32, rate: u32) -> u32 {
            (seconds as u64 * rate as u64).div_ceil(1000) as u32
        }
        let rate = ticks_per_1000_seconds;
        Self {
            tcp_established: ticks(self.tcp_established, rate),
            tcp_opening: ticks(self.tcp_opening, rate),
            tcp_half_closed: ticks(self.tcp_half_closed, rate),
            tcp_closing: ticks(self.tcp_closing, rate),
            tcp_reset: ticks(self.tcp_reset, rate),
            udp_answered: ticks(self.udp_answered, rate),
            udp_unanswered: ticks(self.udp_unanswered, rate),
        }
    }
}

/// Number of rows of [`Lifetimes::rows`].
pub const LIFETIME_ROWS: usize = 2 * flow_state::COUNT as usize;

/// The index in [`Lifetimes::rows`] of the lifetime of a protocol's flows in a state.
///
/// Programs read this table instead of checking one condition after the other, because the verifier
/// walks through each branch.
#[inline(always)]
pub const fn lifetime_row(protocol: u8, state: u8) -> usize {
    // The bit that distinguishes UDP's number from the others.
    const ODD: u8 = 1;
    const { assert!(protocol::UDP & ODD != 0 && (protocol::TCP | protocol::SCTP) & ODD == 0) };
    (state % flow_state::COUNT) as usize | ((protocol & ODD) * flow_state::COUNT) as usize
}

/// Returns true if a flow in this state has ended.
#[inline(always)]
pub(crate) const fn is_closed(state: u8) -> bool {
    /// A bit for each state, so that one check is enough.
    const CLOSED: u64 = {
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
