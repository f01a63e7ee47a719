//! Rewrites packets whose bytes are written directly.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use super::{DirectPacket, Headers, ViewMut};
use crate::address::Address;
use crate::checksum::Sum;
use crate::layout::{Flow, FlowKey};
use crate::net::protocol;

/// [`Packet::translate`](super::Packet::translate) by direct writes.
#[inline(always)]
pub fn translate_directly<A: Address>(
    packet: &mut impl DirectPacket,
    headers: &Headers,
    old: &FlowKey<A>,
    new: &Flow<A>,
) -> Option<()> {
    let addresses = new.address_difference();
    if A::IS_IPV6 {
        set_ipv6(&mut packet.view_mut(headers.network)?, new);
    } else {
        set_ipv4(&mut packet.view_mut(headers.network)?, new, addresses);
    }
    if !headers.is_transport_rewritten(old.protocol) {
        return Some(());
    }
    let all = addresses.replace(old.ports_word(), new.ports_word());
    if old.protocol == protocol::TCP {
        set_tcp(&mut packet.view_mut(headers.transport)?, new, all);
    } else {
        set_udp(&mut packet.view_mut(headers.transport)?, new, all);
    }
    Some(())
}

#[inline(always)]
fn set_ipv4<A: Address>(header: &mut ViewMut<'_, { Ipv4Hdr::LEN }>, new: &Flow<A>, difference: Sum) {
    const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
    let checksum = header.as_view().u16::<CHECKSUM>();
    header.set_u16::<CHECKSUM>(difference.update(checksum));
    header.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(new.source.words()[0]);
    header.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(new.destination.words()[0]);
}

#[inline(always)]
fn set_ipv6<A: Address>(header: &mut ViewMut<'_, { Ipv6Hdr::LEN }>, new: &Flow<A>) {
    const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
    let (source, destination) = (new.source.words(), new.destination.words());
    header.set_u32::<SOURCE>(source[0]);
    header.set_u32::<{ SOURCE + 4 }>(source[1]);
    header.set_u32::<{ SOURCE + 8 }>(source[2]);
    header.set_u32::<{ SOURCE + 12 }>(source[3]);
    header.set_u32::<DESTINATION>(destination[0]);
    header.set_u32::<{ DESTINATION + 4 }>(destination[1]);
    header.set_u32::<{ DESTINATION + 8 }>(destination[2]);
    header.set_u32::<{ DESTINATION + 12 }>(destination[3]);
}

#[inline(always)]
fn set_tcp<A: Address>(header: &mut ViewMut<'_, { TcpHdr::LEN }>, new: &Flow<A>, difference: Sum) {
    const CHECKSUM: usize = offset_of!(TcpHdr, check);
    let checksum = header.as_view().u16::<CHECKSUM>();
    header.set_u16::<CHECKSUM>(difference.update(checksum));
    header.set_u32::<0>(new.ports_word());
}

#[inline(always)]
fn set_udp<A: Address>(header: &mut ViewMut<'_, { UdpHdr::LEN }>, new: &Flow<A>, difference: Sum) {
    const CHECKSUM: usize = offset_of!(UdpHdr, check);
    header.set_u32::<0>(new.ports_word());
    // 0 means "no checksum" (RFC 768). A computed 0 is sent as 0xffff.
    match header.as_view().u16::<CHECKSUM>() {
        0 => {}
        checksum => {
            let updated = difference.update(checksum);
            header.set_u16::<CHECKSUM>(if updated == 0 { 0xffff } else { updated });
        }
    }
}
