//! A packet at a hook: parsed, decided about, rewritten.
//!
//! The usual packets are whole TCP, UDP or SCTP packets. Fragments and ICMP have functions of their own, for whose stack
//! the usual packets do not pay.
#![expect(
    unsafe_code,
    reason = "headers on the stack are not written before they are known"
)]

use core::mem::MaybeUninit;

use crate::address::Address;
use crate::choose::Origin;
use crate::egress::egress;
use crate::fragment;
use crate::icmp::icmp;
use crate::ingress::ingress;
use crate::layout::hook;
use crate::packet::{Packet, Verdict};
use crate::parse::Parsed;
use crate::tables::Tables;

/// Decides about a packet that enters the stack, and rewrites it. Its IP header is at `network`.
#[inline(always)]
pub fn enter<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    origin: Origin,
) -> Verdict {
    if let Some(verdict) = enter_whole(packet, tables, network, origin) {
        return verdict;
    }
    match enter_fragment(packet, tables, network, origin) {
        Some(verdict) => verdict,
        None => enter_icmp(packet, tables, network),
    }
}

/// Decides about a packet that leaves the stack, and rewrites it. Its IP header is at `network`.
#[inline(always)]
pub fn leave<A: Address>(packet: &mut impl Packet, tables: &impl Tables<A>, network: u32) -> Verdict {
    if let Some(verdict) = leave_whole(packet, tables, network) {
        return verdict;
    }
    match leave_fragment(packet, tables, network) {
        Some(verdict) => verdict,
        None => leave_icmp(packet, tables, network),
    }
}

#[inline(never)]
fn enter_whole<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    origin: Origin,
) -> Option<Verdict> {
    let parsed = A::parse(packet, network, hook::INGRESS)?;
    Some(ingress(packet, tables, &parsed, origin))
}

#[inline(never)]
fn leave_whole<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
) -> Option<Verdict> {
    let parsed = A::parse(packet, network, hook::EGRESS)?;
    Some(egress(packet, tables, &parsed))
}

#[inline(never)]
fn enter_fragment<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
    origin: Origin,
) -> Option<Verdict> {
    let mut parsed = MaybeUninit::uninit();
    match fragment::parse(packet, tables, network, hook::INGRESS, &mut parsed) {
        fragment::Kind::Parsed => {
            // SAFETY: written, as it says.
            let parsed: &Parsed<A> = unsafe { parsed.assume_init_ref() };
            Some(ingress(packet, tables, parsed, origin))
        }
        fragment::Kind::None => None,
        fragment::Kind::Foreign => Some(Verdict::Pass),
        fragment::Kind::Lost => Some(Verdict::Drop),
    }
}

#[inline(never)]
fn leave_fragment<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    network: u32,
) -> Option<Verdict> {
    let mut parsed = MaybeUninit::uninit();
    match fragment::parse(packet, tables, network, hook::EGRESS, &mut parsed) {
        fragment::Kind::Parsed => {
            // SAFETY: written, as it says.
            let parsed: &Parsed<A> = unsafe { parsed.assume_init_ref() };
            Some(egress(packet, tables, parsed))
        }
        fragment::Kind::None => None,
        fragment::Kind::Foreign | fragment::Kind::Lost => Some(Verdict::Pass),
    }
}

#[inline(never)]
fn enter_icmp<A: Address>(packet: &mut impl Packet, tables: &impl Tables<A>, network: u32) -> Verdict {
    icmp(packet, tables, network, hook::INGRESS)
}

#[inline(never)]
fn leave_icmp<A: Address>(packet: &mut impl Packet, tables: &impl Tables<A>, network: u32) -> Verdict {
    icmp(packet, tables, network, hook::EGRESS)
}
