//! Writes to packets in TC programs.
//!
//! All writes go through helpers that handle partial and complete checksums (`CHECKSUM_PARTIAL`,
//! `CHECKSUM_COMPLETE`).

use core::mem::offset_of;

use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes};
use lb_common::address::Address;
use lb_common::checksum::Sum;
use lb_common::layout::Flow;
use lb_common::net::{Address6, Port};
use lb_common::packet::{Headers, Packet as _};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{TcPacket, ok};

impl TcPacket {
    #[inline(always)]
    pub(super) fn store<T>(&mut self, offset: u32, value: &T, flags: u32) -> Option<()> {
        let skb = self.context.skb.skb;
        let value: *const T = value;
        // SAFETY: the pointer and length are those of one readable value.
        ok(unsafe { bpf_skb_store_bytes(skb, offset, value.cast(), size_of::<T>() as u32, flags.into()) })
    }

    /// Writes the first `length` bytes of a flow. `length` is at most the size of the flow.
    #[inline(always)]
    pub(super) fn store_start<A>(&mut self, offset: u32, flow: &Flow<A>, length: u32) -> Option<()> {
        let skb = self.context.skb.skb;
        let flow: *const Flow<A> = flow;
        // SAFETY: the pointer is that of a readable value; the verifier checks the length.
        ok(unsafe { bpf_skb_store_bytes(skb, offset, flow.cast(), length, 0) })
    }

    /// Patches the transport checksum at `offset`.
    #[inline(always)]
    pub(super) fn patch_checksum(&mut self, offset: u32, difference: Sum, flags: u32) -> i64 {
        // SAFETY: plain helper call.
        unsafe {
            bpf_l4_csum_replace(
                self.context.skb.skb,
                offset,
                0,
                difference.fold32().into(),
                flags.into(),
            )
        }
    }

    /// Writes addresses, ports if they are rewritten, and the checksum of an IPv4 header.
    #[inline(always)]
    pub(super) fn write_fields<A: Address>(
        &mut self,
        headers: &Headers,
        new: &Flow<A>,
        difference: Sum,
        with_ports: bool,
    ) -> Option<()> {
        let (source, destination, ports) = (new.source.words(), new.destination.words(), new.ports_word());
        let is_plain = with_ports && headers.transport - headers.network == A::HEADER_LENGTH;
        if A::IS_IPV6 {
            // Addresses and ports are adjacent in a flow, as in the headers.
            const SOURCE: u32 = offset_of!(Ipv6Hdr, src_addr) as u32;
            const ADDRESSES: u32 = 2 * size_of::<Address6>() as u32;
            const PORTS: u32 = 2 * size_of::<Port>() as u32;
            let offset = headers.network + SOURCE;
            if is_plain {
                return self.store_start(offset, new, ADDRESSES + PORTS);
            }
            self.store_start(offset, new, ADDRESSES)?;
        } else {
            const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
            let checksum = self.view::<{ Ipv4Hdr::LEN }>(headers.network)?.u16::<CHECKSUM>();
            let checksum = difference.update(checksum);
            let [[a, b], [c, d], [e, f]] = [halves(source[0]), halves(destination[0]), halves(ports)];
            let offset = headers.network + CHECKSUM as u32;
            if is_plain {
                return self.store(
                    offset,
                    &Ipv4Fields {
                        checksum,
                        rest: [a, b, c, d, e, f],
                    },
                    0,
                );
            }
            self.store(offset, &[checksum, a, b, c, d], 0)?;
        }
        if with_ports {
            self.store(headers.transport, &ports, 0)?;
        }
        Some(())
    }
}

/// Consecutive fields of an IPv4 header without options and of the transport header behind it.
#[repr(C)]
struct Ipv4Fields {
    checksum: u16,
    rest: [u16; 6],
}

/// The halves of a word in memory order.
#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}
