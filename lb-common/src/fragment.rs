//! Datagrams that travel in fragments. Only the first fragment has ports, so they are remembered
//! for the fragments that follow. A fragment is then handled like any other packet, except that
//! only the IP header of a later fragment is rewritten.
//!
//! A later fragment that arrives before the first one makes a detour. No program can hold a packet,
//! so the kernel's own reassembly does, in a network namespace of the agent. The detour is
//! remembered too, and all other fragments of the datagram follow. They come back in order.

use core::mem::MaybeUninit;

use crate::choose::find_frontend;
use crate::layout::{FlowKey, Fragment, FragmentKey, fragment_state, frontend_flags, hook};
use crate::net::{Port, protocol};
use crate::packet::{Headers, Packet, Part, Reassembly};
use crate::parse::{self, FragmentHeader, IpHeader, Parsed};
use crate::reason::Reason;
use crate::settings::TICK_SHIFT;
use crate::tables::Tables;

/// Seconds for which the ports of a first fragment are remembered, as long as the kernel's own
/// reassembly waits (`IP_FRAG_TIME`,
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/ip.h>).
const LIFETIME_SECONDS: u32 = 30;
/// Seconds for which the first fragment follows a detour of the others. The kernel's own reassembly
/// gives up on them earlier, after one second. Then a new datagram may use the identification.
const DETOUR_SECONDS: u32 = 3;

/// The kind of a packet that is not a whole TCP, UDP or SCTP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FragmentKind {
    /// A fragment that belongs, or may belong, to a flow or a frontend.
    Parsed,
    /// Not a fragment.
    None,
    /// A fragment that the programs pass without further checks.
    Foreign,
    /// A fragment to a VIP whose first fragment was not seen. No receiver can use it.
    Lost,
    /// A fragment whose ports or flow are not known. It may be for an address of a Service CIDR.
    Unknown,
    /// A fragment for the kernel's own reassembly.
    Detour,
}

/// Parses a fragment with its IP header at `network` that is seen at `hook`. With
/// [`FragmentKind::Parsed`], `parsed` is written. The ports of a first fragment are its own, and
/// they are remembered. A later fragment gets the ports of the first one.
#[inline(never)]
pub(crate) fn parse<A: IpHeader>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    hook: u8,
    parsed: &mut MaybeUninit<Parsed<A>>,
) -> FragmentKind {
    let Some(header) = A::parse_fragment(packet, network) else {
        return FragmentKind::None;
    };
    // Read one after the other: for a pair, LLVM would carry around the undefined half of a missing
    // address.
    let Some(source) = A::read(packet, network + A::SOURCE_OFFSET) else {
        return FragmentKind::Foreign;
    };
    let Some(destination) = A::read(packet, network + A::DESTINATION_OFFSET) else {
        return FragmentKind::Foreign;
    };
    if hook != hook::EGRESS && !(may_be_destination(tables, destination) && packet.is_for_node(network)) {
        return FragmentKind::Foreign;
    }
    let key = FragmentKey {
        source,
        destination,
        identification: header.identification,
        protocol: header.protocol,
        hook,
        pad: 0,
    };
    let parsed = parsed.write(Parsed {
        key: FlowKey {
            source,
            destination,
            source_port: Port::default(),
            destination_port: Port::default(),
            protocol: header.protocol,
            hook,
            pad: 0,
        },
        headers: Headers {
            network,
            transport: header.content,
            ip_length: header.ip_length,
            tcp_flags: 0,
            part: header.part,
        },
    });
    let reassembly = if hook == hook::EGRESS {
        Reassembly::None
    } else {
        packet.reassembly(network)
    };
    let mut known = Fragment::default();
    if header.part == Part::Later || reassembly != Reassembly::None {
        look_up(tables, &key, &mut known);
    }
    if known.state == fragment_state::DETOURED {
        match reassembly {
            Reassembly::None => known.state = fragment_state::UNKNOWN,
            Reassembly::Next => return FragmentKind::Foreign,
            Reassembly::Here => {}
        }
    }
    if header.part == Part::Later {
        later(tables, &key, reassembly, &mut known, parsed)
    } else {
        first(packet, tables, &key, reassembly, &header, &mut known, parsed)
    }
}

/// Decides about a fragment without ports.
#[inline(always)]
fn later<A: IpHeader>(
    tables: &impl Tables<A>,
    key: &FragmentKey<A>,
    reassembly: Reassembly,
    known: &mut Fragment,
    parsed: &mut Parsed<A>,
) -> FragmentKind {
    if reassembly == Reassembly::Here
        && matches!(known.state, fragment_state::UNKNOWN | fragment_state::DETOURED)
        && has_ports(key.protocol)
    {
        if !tables.may_detour(key.source) {
            known.state = fragment_state::UNKNOWN;
        } else if known.state == fragment_state::UNKNOWN {
            detour(tables, key, known);
        }
    }
    match known.state {
        fragment_state::PORTS => {
            parsed.key.source_port = known.source_port;
            parsed.key.destination_port = known.destination_port;
            FragmentKind::Parsed
        }
        fragment_state::DETOURED => FragmentKind::Detour,
        fragment_state::UNKNOWN if reassembly == Reassembly::Next => FragmentKind::Foreign,
        _ if key.hook != hook::EGRESS && is_vip(tables, key.destination) => {
            tables.count_reason(Reason::UnknownFragment);
            FragmentKind::Lost
        }
        _ => FragmentKind::Unknown,
    }
}

/// Decides about the fragment that has the ports.
#[inline(always)]
fn first<A: IpHeader>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    key: &FragmentKey<A>,
    reassembly: Reassembly,
    header: &FragmentHeader,
    known: &mut Fragment,
    parsed: &mut Parsed<A>,
) -> FragmentKind {
    if known.state == fragment_state::DETOURED {
        return FragmentKind::Detour;
    }
    let is_new = known.state == fragment_state::UNKNOWN && reassembly != Reassembly::None;
    *known = Fragment {
        seen: tables.now(),
        state: fragment_state::FOREIGN,
        ..Fragment::default()
    };
    let Some(transport) = parse::transport(packet, header.content, header.protocol, header.content_length)
    else {
        if reassembly != Reassembly::None && has_ports(header.protocol) {
            // The fragments that follow pass too. The reassembly would wait for this one in vain.
            tables.insert_fragment(key, known);
        }
        return FragmentKind::Foreign;
    };
    let [source_port, destination_port] = transport.ports();
    parsed.key.source_port = source_port;
    parsed.key.destination_port = destination_port;
    parsed.headers.tcp_flags = transport.tcp_flags;
    // Many fragments that leave belong to no flow. For those that enter, the destination was
    // checked before.
    if key.hook == hook::EGRESS && tables.flow(&parsed.key).is_none() {
        return FragmentKind::Unknown;
    }
    known.source_port = source_port;
    known.destination_port = destination_port;
    known.state = fragment_state::PORTS;
    if !is_new {
        tables.insert_fragment(key, known);
        return FragmentKind::Parsed;
    }
    // A later fragment on another CPU may have won the race.
    match claim(tables, key, known) {
        true => FragmentKind::Parsed,
        false if reassembly == Reassembly::Here => FragmentKind::Detour,
        false => FragmentKind::Foreign,
    }
}

/// [`Tables::may_be_destination`], not inlined to save stack.
#[inline(never)]
fn may_be_destination<A: IpHeader>(tables: &impl Tables<A>, destination: A) -> bool {
    tables.may_be_destination(destination)
}

/// Returns true for a transport protocol whose ports the programs read.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Looks up what is known of a datagram. Old entries do not count, because identifications are
/// reused.
#[inline(always)]
fn look_up<A: IpHeader>(tables: &impl Tables<A>, key: &FragmentKey<A>, known: &mut Fragment) -> bool {
    let Some(found) = tables.fragment(key) else {
        return false;
    };
    let lifetime = if found.state == fragment_state::DETOURED {
        DETOUR_SECONDS
    } else {
        LIFETIME_SECONDS
    };
    let age = u64::from(tables.now().wrapping_sub(found.seen)) << TICK_SHIFT;
    let is_fresh = age <= u64::from(lifetime) * u64::from(tables.settings().jiffies_per_second);
    if is_fresh {
        *known = found;
    }
    is_fresh
}

/// Records that a datagram makes the detour. If a fragment on another CPU won the race, `known` is
/// the entry that it wrote.
#[inline(never)]
fn detour<A: IpHeader>(tables: &impl Tables<A>, key: &FragmentKey<A>, known: &mut Fragment) {
    *known = Fragment {
        seen: tables.now(),
        state: fragment_state::DETOURED,
        ..Fragment::default()
    };
    if !tables.add_fragment(key, known) && !look_up(tables, key, known) {
        // The existing entry is too old.
        tables.insert_fragment(key, known);
    }
}

/// Records the ports of a first fragment. Returns false if a later fragment on another CPU won the
/// race and makes the detour.
#[inline(never)]
fn claim<A: IpHeader>(tables: &impl Tables<A>, key: &FragmentKey<A>, ports: &Fragment) -> bool {
    if tables.add_fragment(key, ports) {
        return true;
    }
    let mut known = Fragment::default();
    look_up(tables, key, &mut known);
    if known.state == fragment_state::DETOURED {
        return false;
    }
    tables.insert_fragment(key, ports);
    true
}

/// Returns true if an address has a wildcard row.
#[inline(always)]
fn is_vip<A: IpHeader>(tables: &impl Tables<A>, address: A) -> bool {
    find_frontend(tables, address, Port::default(), 0)
        .is_some_and(|row| row.flags & frontend_flags::WILDCARD != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostTables;
    use crate::net::Address4;

    const KEY: FragmentKey<Address4> = FragmentKey {
        source: Address4::from_bytes([192, 0, 2, 1]),
        destination: Address4::from_bytes([10, 96, 0, 1]),
        identification: 7,
        protocol: protocol::UDP,
        hook: hook::EGRESS,
        pad: 0,
    };

    fn ports(tables: &HostTables<Address4>) -> Fragment {
        Fragment {
            source_port: Port::new(1000),
            destination_port: Port::new(53),
            seen: tables.now(),
            state: fragment_state::PORTS,
        }
    }

    fn known(tables: &HostTables<Address4>) -> Fragment {
        tables.fragment(&KEY).unwrap()
    }

    #[test]
    fn a_first_fragment_follows_a_later_one_that_won_the_race() {
        let tables = HostTables::default();
        let mut later = Fragment::default();
        detour(&tables, &KEY, &mut later);
        assert_eq!(later.state, fragment_state::DETOURED);
        assert!(!claim(&tables, &KEY, &ports(&tables)));
        assert_eq!(known(&tables), later);
    }

    #[test]
    fn a_later_fragment_has_the_ports_of_a_first_one_that_won_the_race() {
        let tables = HostTables::default();
        assert!(claim(&tables, &KEY, &ports(&tables)));
        let mut later = Fragment::default();
        detour(&tables, &KEY, &mut later);
        assert_eq!(later, ports(&tables));
        assert_eq!(known(&tables), ports(&tables));
    }

    #[test]
    fn old_entries_are_replaced() {
        let tables = HostTables::default();
        let mut later = Fragment::default();
        detour(&tables, &KEY, &mut later);
        tables.now.set(tables.now.get() + DETOUR_SECONDS + 1);
        assert!(claim(&tables, &KEY, &ports(&tables)));
        assert_eq!(known(&tables), ports(&tables));
        tables.now.set(tables.now.get() + LIFETIME_SECONDS + 1);
        detour(&tables, &KEY, &mut later);
        assert_eq!(later.state, fragment_state::DETOURED);
        assert_eq!(known(&tables), later);
    }
}
