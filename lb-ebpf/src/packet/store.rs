//! Writes to packets in TC programs.
//!
//! All writes go through helpers that handle partial and complete checksums (`CHECKSUM_PARTIAL`,
//! `CHECKSUM_COMPLETE`).

use core::mem::offset_of;

use lb_common::address::Address;
use lb_common::checksum::Sum;
use lb_common::layout::Flow;
use lb_common::net::{Address6, Port};
use lb_common::packet::{Headers, Packet as _};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::TcPacket;
use crate::helpers::Skb as _;

impl TcPacket {
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
                return self.context.write_start(offset, new, ADDRESSES + PORTS);
            }
            self.context.write_start(offset, new, ADDRESSES)?;
        } else {
            const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
            let checksum = self.view::<{ Ipv4Hdr::LEN }>(headers.network)?.u16::<CHECKSUM>();
            let checksum = difference.update(checksum);
            let [[a, b], [c, d], [e, f]] = [halves(source[0]), halves(destination[0]), halves(ports)];
            let offset = headers.network + CHECKSUM as u32;
            if is_plain {
                return self.context.write(
                    offset,
                    &Ipv4Fields {
                        checksum,
                        rest: [a, b, c, d, e, f],
                    },
                    0,
                );
            }
            self.context.write(offset, &[checksum, a, b, c, d], 0)?;
        }
        if with_ports {
            self.context.write(headers.transport, &ports, 0)?;
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
