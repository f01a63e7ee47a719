//! Datagrams that travel in fragments: only the first has ports, so they are remembered for those that follow. A
//! fragment then is a packet like any other, but that only its IP header is rewritten if it is not the first.

use core::mem::MaybeUninit;

use crate::address::Address;
use crate::choose::find_frontend;
use crate::layout::{FlowKey, Fragment, FragmentKey, Port, frontend_flags, hook};
use crate::packet::{Headers, Packet, Part};
use crate::parse::{self, Parsed};
use crate::reason::Reason;
use crate::tables::{TICK_SHIFT, Tables};

/// Seconds that the first fragment waits for the others, as in the kernel's own reassembly (`IP_FRAG_TIME`,
/// include/net/ip.h, Linux 6.18).
const LIFETIME_SECONDS: u32 = 30;

/// What a packet is that is not whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A fragment of ours, or one that may be.
    Parsed,
    /// No fragment.
    None,
    /// A fragment of others.
    Foreign,
    /// A fragment to a VIP whose first one was not seen: of no use to anybody.
    Lost,
}

/// Parses a fragment with its IP header at `network` that is seen at `hook`. With [`Kind::Parsed`], `parsed` is written:
/// the ports are the fragment's own if it is the first, and are remembered; else they are those of the first.
#[inline(never)]
pub(crate) fn parse<A: Address>(
    packet: &impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    hook: u8,
    parsed: &mut MaybeUninit<Parsed<A>>,
) -> Kind {
    let Some(header) = A::parse_fragment(packet, network) else {
        return Kind::None;
    };
    // One after the other: of a pair, LLVM would carry around what is undefined in the half that is not there.
    let Some(source) = A::read(packet, network + A::SOURCE_OFFSET) else {
        return Kind::Foreign;
    };
    let Some(destination) = A::read(packet, network + A::DESTINATION_OFFSET) else {
        return Kind::Foreign;
    };
    if hook != hook::EGRESS && !(tables.concerns(destination) && packet.is_for_node(network)) {
        return Kind::Foreign;
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
    if header.part == Part::Later {
        return match tables.fragment(&key) {
            Some(first) if is_fresh(tables, &first) => {
                parsed.key.source_port = first.source_port;
                parsed.key.destination_port = first.destination_port;
                Kind::Parsed
            }
            _ if hook != hook::EGRESS && is_vip(tables, destination) => {
                tables.count_reason(Reason::UnknownFragment);
                Kind::Lost
            }
            _ => Kind::Foreign,
        };
    }
    let Some(transport) = parse::transport(packet, header.content, header.protocol, header.room) else {
        return Kind::Foreign;
    };
    parsed.key.source_port = transport.source_port;
    parsed.key.destination_port = transport.destination_port;
    parsed.headers.tcp_flags = transport.tcp_flags;
    // Much leaves in fragments that is not ours; what enters was asked for by its destination.
    if hook == hook::EGRESS && tables.flow(&parsed.key).is_none() {
        return Kind::Foreign;
    }
    let ports = Fragment {
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        seen: tables.now(),
    };
    tables.insert_fragment(&key, &ports);
    Kind::Parsed
}

/// Whether the first fragment is young enough: identifications are used again.
#[inline(always)]
fn is_fresh<A: Address>(tables: &impl Tables<A>, first: &Fragment) -> bool {
    let age = u64::from(tables.now().wrapping_sub(first.seen)) << TICK_SHIFT;
    age <= u64::from(LIFETIME_SECONDS) * u64::from(tables.jiffies_per_second())
}

/// Whether an address has a wildcard row.
#[inline(always)]
fn is_vip<A: Address>(tables: &impl Tables<A>, address: A) -> bool {
    find_frontend(tables, address, Port::default(), 0)
        .is_some_and(|row| row.flags & frontend_flags::WILDCARD != 0)
}
