//! Source ports for connections whose client port must be replaced or is taken. Their replies go to
//! the node's own address, which others use too.

use crate::address::Address;
use crate::connection::is_requested;
use crate::layout::{Flow, FlowKey, FrontendKey, flow_state};
use crate::net::Port;
use crate::packet::Packet;
use crate::reason::Reason;
use crate::step::Step;
use crate::tables::Tables;

/// Number of source ports that are tried in one round.
const PORTS: u32 = 8;

/// Number of rounds. With 95 % of the ports in use, one of 200 connections finds none. Once only
/// ports of the ephemeral range are left, that point is at 91 % of them.
const ROUNDS: u32 = 8;

/// Finds a port for a reply's key. Returns [`Step::Translate`] if the entry was written,
/// [`Step::Open`] if the caller must replace an existing entry.
#[inline(always)]
pub(crate) fn find_port<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    reply_key: &mut FlowKey<A>,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> Step {
    reply_key.destination_port = tables.settings().source_ports.pick(tables.random(), false);
    if !is_taken(packet, tables, reply_key) && tables.add_flow(reply_key, flow) {
        return Step::Translate;
    }
    longest_free(tables, reply_key, key.protocol);
    for round in 0..ROUNDS {
        if round != 0 {
            next_free(tables, reply_key, key.protocol);
        }
        let free_for = free_for(tables, reply_key, key);
        if free_for != 0 && !is_taken(packet, tables, reply_key) {
            // Another CPU may have taken it in the meantime.
            return match free_for {
                UNKNOWN if tables.add_flow(reply_key, flow) => Step::Translate,
                UNKNOWN => Step::Stop(Reason::NoSourcePort),
                _ => Step::Open,
            };
        }
    }
    Step::Stop(Reason::NoSourcePort)
}

/// Tries ports outside the kernel's ephemeral range, and puts the best one into the key: one that
/// was never used, else the one that has been idle for the longest time. A backend's stack
/// remembers a TCP connection that it has closed for a minute (`TCP_TIMEWAIT_LEN`,
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/tcp.h>). In that time it may refuse a
/// new one from the same port, and the client waits for a second.
#[inline(never)]
fn longest_free<A: Address>(tables: &impl Tables<A>, reply_key: &mut FlowKey<A>, protocol: u8) {
    // The loop does as little as possible: the verifier walks through each round once for each path
    // through the previous one.
    let mut best = 0;
    for _ in 0..PORTS {
        let chance = tables.random();
        reply_key.destination_port = tables.settings().source_ports.pick(chance, false);
        let idle = idle_for(tables, reply_key, protocol);
        if idle == UNKNOWN {
            return;
        }
        best = max(
            best,
            u64::from(idle) << 16 | u64::from(reply_key.destination_port.get()),
        );
    }
    reply_key.destination_port = Port::new(best as u16);
}

/// The greater of two numbers below 2^63, branchless.
#[inline(always)]
fn max(a: u64, b: u64) -> u64 {
    let less = (a.wrapping_sub(b).cast_signed() >> 63).cast_unsigned();
    a ^ (a ^ b) & less
}

/// Tries ports in the kernel's ephemeral range, up to the first that seems to be free, and puts it
/// into the key.
#[inline(never)]
fn next_free<A: Address>(tables: &impl Tables<A>, reply_key: &mut FlowKey<A>, protocol: u8) {
    for _ in 0..PORTS {
        let chance = tables.random();
        let ports = tables.settings().source_ports;
        reply_key.destination_port = ports.pick(chance, ports.local.count != 0);
        if idle_for(tables, reply_key, protocol) != 0 {
            break;
        }
    }
}

/// Ticks since the last packet of the closed or expired connection that receives its replies under
/// this key, at least 1. [`UNKNOWN`] if there is no entry, 0 if its connection is alive.
#[inline(always)]
fn idle_for<A: Address>(tables: &impl Tables<A>, reply_key: &FlowKey<A>, protocol: u8) -> u32 {
    let Some(entry) = tables.flow(reply_key) else {
        return UNKNOWN;
    };
    let (entry, now) = (entry.get(), tables.now());
    let lifetime = |protocol, state| tables.settings().lifetime(protocol, state);
    if entry.is_closed() || entry.is_expired(protocol, now, lifetime) {
        now.wrapping_sub(entry.last_seen) | 1
    } else {
        0
    }
}

/// Returns true if packets with these addresses and ports belong to a NodePort or to a socket of
/// the node. Neither has a flow entry.
#[inline(never)]
fn is_taken<A: Address>(packet: &impl Packet, tables: &impl Tables<A>, reply_key: &FlowKey<A>) -> bool {
    let frontend = FrontendKey {
        address: reply_key.destination,
        port: reply_key.destination_port,
        protocol: reply_key.protocol,
        pad: 0,
    };
    tables.frontend(&frontend).is_some() || packet.has_socket(reply_key)
}

/// Result of [`free_for`] for keys without an entry.
const UNKNOWN: u32 = u32::MAX;
/// Result of [`free_for`] for a key whose entry belongs to the same connection.
const OWN: u32 = UNKNOWN - 1;

/// Ticks for which no other live connection has received its replies under this key, at least 1. 0
/// if one does, or if its client still sends: one client port may talk to two frontends that share
/// a backend.
#[inline(never)]
pub(crate) fn free_for<A: Address>(tables: &impl Tables<A>, reply_key: &FlowKey<A>, key: &FlowKey<A>) -> u32 {
    let Some(entry) = tables.flow(reply_key) else {
        return UNKNOWN;
    };
    let reply = entry.get();
    let is_clash = reply.state & flow_state::CLASH != 0;
    if reply.answers(key) && !is_clash {
        return OWN;
    }
    // Called before `now` to save stack: only a small part of the entry is needed after it.
    let is_closed = reply.is_closed();
    let now = tables.now();
    // At least 1, branchless. A tick more or less makes no difference.
    let idle = now.wrapping_sub(reply.last_seen) | 1;
    if is_closed {
        return idle;
    }
    let is_expired = reply.is_expired(key.protocol, now, |protocol, state| {
        tables.settings().lifetime(protocol, state)
    });
    if is_expired && !is_requested(tables, reply_key) {
        idle
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::vec;

    use super::find_port;
    use crate::host::{Bytes, HostTables, only_ports};
    use crate::layout::{Flow, FlowKey, Frontend, FrontendKey, flow_flags, hook};
    use crate::net::{Address4, Port, protocol};
    use crate::reason::Reason;
    use crate::settings::{PortRange, SourcePorts};
    use crate::step::Step;
    use crate::tables::Tables as _;

    const BACKEND: Address4 = Address4::from_bytes([10, 0, 0, 11]);
    const NODE: Address4 = Address4::from_bytes([10, 0, 0, 99]);

    /// Source ports: the whole range and then the ephemeral range, each as first port and number.
    fn source_ports(all: (u16, u16), local: (u16, u16)) -> SourcePorts {
        let [all, local] = [all, local].map(|(first, count)| PortRange { first, count });
        SourcePorts { all, local }
    }

    fn tables(source_ports: SourcePorts) -> HostTables<Address4> {
        let mut tables = HostTables::default();
        tables.settings.source_ports = source_ports;
        tables
    }

    /// Opens a client's connection to the backend. Returns the source port that it gets.
    fn opened(tables: &HostTables<Address4>, packet: &Bytes, client: u16) -> Result<u16, Step> {
        let client_address = Address4::from_word(u32::from(client).to_be() | 10);
        let frontend = (Address4::from_bytes([10, 0, 0, 1]), Port::new(80));
        let key = FlowKey {
            source: client_address,
            destination: frontend.0,
            source_port: Port::new(1000),
            destination_port: frontend.1,
            protocol: protocol::TCP,
            hook: hook::INGRESS_OUTSIDE,
            pad: 0,
        };
        let mut reply_key = FlowKey {
            source: BACKEND,
            destination: NODE,
            source_port: Port::new(8080),
            destination_port: key.source_port,
            ..key
        };
        let flow = Flow {
            source: frontend.0,
            destination: client_address,
            source_port: frontend.1,
            destination_port: key.source_port,
            service: 1,
            backend: 1,
            generation: 1,
            last_seen: tables.now(),
            acknowledged: 0,
            state: 0,
            flags: flow_flags::REPLY | flow_flags::FORWARD,
            difference: 0,
        };
        match find_port(packet, tables, &mut reply_key, &key, &flow) {
            Step::Open => {
                tables.insert_flow(&reply_key, &flow);
            }
            Step::Translate => assert!(tables.flow(&reply_key).is_some()),
            step => return Err(step),
        }
        Ok(reply_key.destination_port.get())
    }

    #[test]
    fn nine_of_ten_ports_can_be_allocated() {
        let two_ranges = source_ports((20_000, 1000), (20_300, 500));
        for ports in [only_ports(20_000, 1000), two_ranges] {
            let (tables, packet) = (tables(ports), Bytes::from(vec![]));
            let given: HashSet<u16> = (0..900)
                .map(|client| opened(&tables, &packet, client).unwrap())
                .collect();
            assert_eq!(given.len(), 900, "each port is different");
            assert!(given.iter().all(|port| ports.all.contains(*port)));
        }
    }

    #[test]
    fn ephemeral_ports_are_used_last() {
        let ports = source_ports((20_000, 1000), (20_000, 500));
        let (tables, packet) = (tables(ports), Bytes::from(vec![]));
        let is_local = |client| ports.local.contains(opened(&tables, &packet, client).unwrap());
        assert!(!(0..200).any(is_local));
        let later = (200..900).filter(|client| is_local(*client)).count();
        assert!((400..500).contains(&later), "{later}");
    }

    #[test]
    fn ports_of_sockets_and_frontends_are_not_allocated() {
        let (mut tables, mut packet) = (tables(only_ports(61_000, 4)), Bytes::from(vec![]));
        packet.sockets = vec![Port::new(61_000)];
        let node_port = FrontendKey {
            address: NODE,
            port: Port::new(61_003),
            protocol: protocol::TCP,
            pad: 0,
        };
        tables.frontends.insert(node_port, Frontend::default());
        let mut ports = [0, 1].map(|client| opened(&tables, &packet, client).unwrap());
        ports.sort_unstable();
        assert_eq!(ports, [61_001, 61_002]);
        assert_eq!(opened(&tables, &packet, 2), Err(Step::Stop(Reason::NoSourcePort)));
        // The same port of another protocol or another address does not conflict.
        tables.frontends.clear();
        for key in [
            FrontendKey {
                protocol: protocol::UDP,
                ..node_port
            },
            FrontendKey {
                address: BACKEND,
                ..node_port
            },
        ] {
            tables.frontends.insert(key, Frontend::default());
        }
        assert_eq!(opened(&tables, &packet, 2), Ok(61_003));
    }

    #[test]
    fn ports_of_idle_connections_are_reused_in_both_ranges() {
        for local in [0, 16] {
            let ports = source_ports((61_000, 16 + local), (61_000, local));
            let (tables, packet) = (tables(ports), Bytes::from(vec![]));
            let opened = |client| opened(&tables, &packet, client);
            let taken = (0..1000).filter(|client| opened(*client).is_ok()).count();
            assert_eq!(taken, usize::from(16 + local));
            tables.now.set(tables.now.get() + (1 << 20));
            assert!(opened(2000).is_ok());
        }
    }
}
