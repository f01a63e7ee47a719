//! Packets that are forwarded without the node's stack: between a client outside and a backend on
//! another node, and, with `--local-redirect`, between Pods of this node.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::address::Address;
use crate::checksum::Sum;
use crate::layout::Flow;
use crate::net::protocol;
use crate::packet::{Headers, Hop, Packet, Route, Verdict};
use crate::parse::{Parsed, TCP_DATA_OFFSET};
use crate::reason::Reason;
use crate::step::Step;

/// The decision about a packet that is to be forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForwardDecision {
    /// This hook sends it.
    Send,
    /// It stays unchanged, and the next hook sends it.
    Leave,
    /// It cannot be sent.
    Stop(Reason),
}

/// Decides how to forward a packet whose IP header is at `network`. `flow` holds its new addresses.
/// `length` is the length of IP header and payload. Stores the next hop in `hop` and does not
/// change the packet.
#[inline(always)]
pub fn decide<A: Address>(
    packet: &impl Packet,
    network: u32,
    length: u32,
    flow: &Flow<A>,
    hop: &mut Hop,
) -> ForwardDecision {
    match hop_limit::<A>(packet, network) {
        None => return ForwardDecision::Leave,
        Some(0 | 1) => return ForwardDecision::Stop(Reason::HopLimit),
        Some(_) => {}
    }
    match packet.route(flow.source, flow.destination, length, hop) {
        route @ (Route::Ready | Route::Unresolved) if packet.can_send(route, hop) => ForwardDecision::Send,
        Route::Ready | Route::Unresolved => ForwardDecision::Leave,
        Route::TooBig => ForwardDecision::Stop(Reason::TooBig),
        Route::Local | Route::None => ForwardDecision::Stop(Reason::NoRoute),
    }
}

/// Rewrites a packet according to its flow and forwards it. If the packet is too big, `mtu` is set
/// to the MTU of the route.
///
/// Not inlined, so that its stack is not added to that of packets that stay on this node.
#[inline(never)]
pub(crate) fn send_on<A: Address>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
    flow: &Flow<A>,
    mtu: &mut u32,
) -> Step {
    let network = parsed.headers.network;
    let mut hop = Hop::default();
    let length = sent_length(packet, parsed);
    match decide(packet, network, length, flow, &mut hop) {
        ForwardDecision::Send => {}
        ForwardDecision::Leave => return Step::Leave,
        ForwardDecision::Stop(reason) => {
            *mtu = hop.mtu;
            return Step::Stop(reason);
        }
    }
    let sent = rewrite(packet, parsed, flow).and_then(|()| packet.send(network, &hop));
    sent_step(sent)
}

/// Rewrites a packet according to its flow and hands it to the Pod of this node that it is for.
/// Returns [`Step::Leave`] and leaves the packet unchanged if the stack must handle it, or if the
/// Pod is not at the other end of a device.
///
/// Not inlined, like [`send_on`].
#[inline(never)]
pub(crate) fn hand_over<A: Address>(packet: &mut impl Packet, parsed: &Parsed<A>, flow: &Flow<A>) -> Step {
    let network = parsed.headers.network;
    if matches!(hop_limit::<A>(packet, network), None | Some(0 | 1)) {
        return Step::Leave;
    }
    let mut hop = Hop::default();
    let length = sent_length(packet, parsed);
    let route = packet.route(flow.source, flow.destination, length, &mut hop);
    if route != Route::Ready || !packet.can_hand_over(network, &hop) {
        return Step::Leave;
    }
    let sent = rewrite(packet, parsed, flow).and_then(|()| packet.hand_over(&hop));
    sent_step(sent)
}

/// Rewrites a packet according to its flow and decrements its hop limit.
#[inline(always)]
fn rewrite<A: Address>(packet: &mut impl Packet, parsed: &Parsed<A>, flow: &Flow<A>) -> Option<()> {
    // The hop limit comes first, because its word also holds the IPv4 checksum. After `translate`,
    // reading that word would stall on the half that `translate` has just written.
    decrement_hop_limit::<A>(packet, parsed.headers.network)?;
    packet.translate(&parsed.headers, &parsed.key, flow)
}

#[inline(always)]
fn sent_step(sent: Option<Verdict>) -> Step {
    match sent {
        Some(Verdict::Bounce) => Step::Bounce,
        Some(_) => Step::Redirect,
        None => Step::Stop(Reason::RewriteFailed),
    }
}

/// Length of IP header and payload of the longest packet that results when this one is sent.
#[inline(always)]
fn sent_length<A: Address>(packet: &impl Packet, parsed: &Parsed<A>) -> u32 {
    let Headers {
        network,
        transport,
        ip_length,
        ..
    } = parsed.headers;
    let segment = packet.segment_size();
    if segment == 0 {
        return ip_length;
    }
    let header = if parsed.key.protocol == protocol::TCP {
        packet
            .view::<{ TcpHdr::LEN }>(transport)
            .map_or(TcpHdr::LEN as u32, |header| {
                u32::from(header.u8::<TCP_DATA_OFFSET>() >> 4) * 4
            })
    } else {
        UdpHdr::LEN as u32
    };
    let mut before = transport - network;
    // The kernel adds a header for a length that the IPv6 header cannot hold. The segments do not
    // contain it (`ipv6_hopopt_jumbo_remove`,
    // <https://github.com/torvalds/linux/blob/v6.18/include/net/ipv6.h>).
    if A::IS_IPV6 && before == A::HEADER_LENGTH + JUMBO_LENGTH && ip_length > A::HEADER_LENGTH + LENGTH_MAX {
        before = A::HEADER_LENGTH;
    }
    before + header + segment
}

/// Length of a hop-by-hop header that contains only a jumbo payload option (RFC 2675).
const JUMBO_LENGTH: u32 = 8;
/// The largest payload length that an IPv6 header can hold.
const LENGTH_MAX: u32 = u16::MAX as u32;

/// Offset of the word that contains the hop limit: the first byte in IPv4, the last byte in IPv6.
#[inline(always)]
fn hop_limit_word<A: Address>() -> u32 {
    if A::IS_IPV6 {
        offset_of!(Ipv6Hdr, payload_len) as u32
    } else {
        offset_of!(Ipv4Hdr, ttl) as u32
    }
}

#[inline(always)]
fn hop_limit<A: Address>(packet: &impl Packet, network: u32) -> Option<u8> {
    let word = packet.view::<4>(network + hop_limit_word::<A>())?;
    Some(if A::IS_IPV6 {
        word.u8::<3>()
    } else {
        word.u8::<0>()
    })
}

/// Decrements the hop limit.
#[inline(always)]
pub fn decrement_hop_limit<A: Address>(packet: &mut impl Packet, network: u32) -> Option<()> {
    let limit = hop_limit::<A>(packet, network)?;
    set_hop_limit::<A>(packet, network, limit.wrapping_sub(1))
}

/// Sets the hop limit.
#[inline(always)]
pub(crate) fn set_hop_limit<A: Address>(packet: &mut impl Packet, network: u32, limit: u8) -> Option<()> {
    let offset = network + hop_limit_word::<A>();
    let [a, b, c, d] = packet.view::<4>(offset)?.u32::<0>().to_ne_bytes();
    if A::IS_IPV6 {
        return packet.write(offset, &[u32::from_ne_bytes([a, b, c, limit])]);
    }
    // Hop limit, protocol, checksum.
    let half = |limit| u32::from(u16::from_ne_bytes([limit, b]));
    let checksum = Sum::new()
        .replace(half(a), half(limit))
        .update(u16::from_ne_bytes([c, d]));
    let [c, d] = checksum.to_ne_bytes();
    packet.write(offset, &[u32::from_ne_bytes([limit, b, c, d])])
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::decrement_hop_limit;
    use crate::checksum::Sum;
    use crate::host::Bytes;
    use crate::net::{Address4, Address6};
    use proptest::prelude::*;

    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks_exact(4);
        words
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .fold(Sum::new(), Sum::add)
            .fold16()
    }

    proptest! {
        #[test]
        fn the_ipv4_checksum_stays_valid(mut header in prop::collection::vec(any::<u8>(), 20), limit in 1..=255_u8) {
            header[8] = limit;
            header[10..12].fill(0);
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_ne_bytes());
            let mut packet = Bytes::from(header.clone());
            decrement_hop_limit::<Address4>(&mut packet, 0).unwrap();
            prop_assert_eq!(packet.bytes[8], limit - 1);
            prop_assert_eq!(sum(&packet.bytes), 0xffff);
            header[8] -= 1;
            header[10..12].copy_from_slice(&packet.bytes[10..12]);
            prop_assert_eq!(packet.bytes, header);
        }
    }

    #[test]
    fn in_ipv6_only_the_hop_limit_changes() {
        let mut packet = Bytes::from(vec![0x60, 0, 0, 0, 1, 0, 6, 64]);
        decrement_hop_limit::<Address6>(&mut packet, 0).unwrap();
        let expected: Vec<u8> = vec![0x60, 0, 0, 0, 1, 0, 6, 63];
        assert_eq!(packet.bytes, expected);
    }
}
