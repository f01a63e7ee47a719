//! The verdict for a packet at a hook: parse, decide, rewrite.
//!
//! Most packets are whole TCP, UDP or SCTP packets. Separate functions handle fragments and ICMP,
//! so that their stack is not added to that of other packets.
#![expect(
    unsafe_code,
    reason = "headers on the stack stay uninitialised until they are parsed"
)]

use core::mem::MaybeUninit;

use crate::choose::Origin;
use crate::cidr;
use crate::egress::egress;
use crate::fragment;
use crate::fragment::FragmentKind;
use crate::icmp::icmp;
use crate::ingress::ingress;
use crate::layout::hook;
use crate::packet::{Packet, Verdict};
use crate::parse::{IpHeader, Parsed};
use crate::reason::Reason;
use crate::tables::Tables;

/// Returns the verdict for a packet that enters the stack, and rewrites it. Its IP header is at
/// `network`.
#[inline(always)]
pub fn enter<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    origin: Origin,
) -> Verdict {
    match enter_transport(packet, tables, network, origin) {
        Some(verdict) => verdict,
        None => enter_icmp(packet, tables, network, origin),
    }
}

/// Returns the verdict for a packet that leaves the stack towards `destination`, and rewrites it.
/// Its IP header is at `network`.
#[inline(always)]
pub fn leave<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    destination: Origin,
) -> Verdict {
    match leave_transport(packet, tables, network, destination) {
        Some(verdict) => verdict,
        None => leave_icmp(packet, tables, network, destination),
    }
}

#[inline(never)]
fn enter_transport<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    origin: Origin,
) -> Option<Verdict> {
    let hook = (origin.hook(), true);
    parsed(packet, tables, network, hook, |packet, parsed| {
        ingress(packet, tables, parsed, origin)
    })
}

#[inline(never)]
fn leave_transport<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    destination: Origin,
) -> Option<Verdict> {
    let hook = (hook::EGRESS, destination == Origin::Outside);
    parsed(packet, tables, network, hook, |packet, parsed| {
        egress(packet, tables, parsed, destination)
    })
}

/// Parses a packet or a fragment and calls `decide` for it. Returns `None` if it is neither.
/// `drops` is true if this hook drops packets to unallocated addresses of Service CIDRs.
///
/// Packets and fragments share the call of `decide`, so that the verifier walks through it only
/// once.
#[inline(always)]
fn parsed<A: IpHeader, P: Packet>(
    packet: &mut P,
    tables: &impl Tables<A>,
    network: u32,
    (hook, drops): (u8, bool),
    decide: impl FnOnce(&mut P, &mut Parsed<A>) -> Verdict,
) -> Option<Verdict> {
    let mut parsed = if let Some(parsed) = A::parse(packet, network, hook) {
        parsed
    } else {
        let mut parsed = MaybeUninit::uninit();
        match fragment::parse(packet, tables, network, hook, &mut parsed) {
            // SAFETY: `fragment::parse` writes `parsed` before it returns `Parsed`.
            FragmentKind::Parsed => unsafe { parsed.assume_init() },
            FragmentKind::None => return None,
            FragmentKind::Foreign => return Some(Verdict::Pass),
            FragmentKind::Lost => return Some(Verdict::Drop),
            FragmentKind::Unknown if drops => return Some(unknown(packet, tables, network)),
            FragmentKind::Unknown => return Some(Verdict::Pass),
            FragmentKind::Detour => return Some(detour(packet, tables)),
        }
    };
    Some(decide(packet, &mut parsed))
}

#[inline(never)]
fn detour<A: IpHeader>(packet: &mut impl Packet, tables: &impl Tables<A>) -> Verdict {
    packet.detour().unwrap_or_else(|| {
        tables.count_reason(Reason::UnknownFragment);
        Verdict::Drop
    })
}

/// Returns the verdict for a fragment whose ports are not known.
#[inline(never)]
fn unknown<A: IpHeader>(packet: &impl Packet, tables: &impl Tables<A>, network: u32) -> Verdict {
    match A::read(packet, network + A::DESTINATION_OFFSET) {
        Some(destination) => cidr::pass_or_drop(packet, tables, destination),
        None => Verdict::Pass,
    }
}

#[inline(never)]
fn enter_icmp<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    origin: Origin,
) -> Verdict {
    icmp(packet, tables, network, origin.hook(), true)
}

#[inline(never)]
fn leave_icmp<A: IpHeader>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    destination: Origin,
) -> Verdict {
    icmp(
        packet,
        tables,
        network,
        hook::EGRESS,
        destination == Origin::Outside,
    )
}
