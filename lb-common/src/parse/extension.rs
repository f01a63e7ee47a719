//! IPv6 extension headers that may precede a transport header (RFC 8200 section 4; AH: RFC 4302).

use crate::net::protocol;
use crate::packet::Packet;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// As many of these headers as RFC 8200 section 4.1 lists for one packet, without fragment headers.
const MAX_DEPTH: u32 = 5;

/// Returns true if a header with this number is followed by another header.
#[inline(always)]
pub(crate) const fn is_one(number: u8) -> bool {
    matches!(
        number,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}

/// The length of the extension headers and the protocol behind them, in one number: the verifier
/// accepts no larger result of a function that is not inlined.
#[derive(Clone, Copy)]
pub(super) struct Behind(u32);

impl Behind {
    const NOTHING: Self = Self(0);

    #[inline(always)]
    fn new(length: u32, protocol: u8) -> Self {
        Self(length << 8 | u32::from(protocol))
    }

    /// The length of the extension headers and the protocol behind them.
    #[inline(always)]
    pub(super) fn get(self) -> Option<(u32, u8)> {
        (self.0 != Self::NOTHING.0).then_some((self.0 >> 8, self.0 as u8))
    }
}

/// Offset of the number of segments left in a routing header (RFC 8200 section 4.4).
const SEGMENTS_LEFT: usize = 3;

/// Skips extension headers. A fragment header ends the search without a result.
#[inline(never)]
pub(super) fn skip_extensions(packet: &impl Packet, offset: u32, first: u8) -> Behind {
    let mut next = first;
    let mut length = 0;
    for _ in 0..MAX_DEPTH {
        let unit = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8,
            AUTHENTICATION => 4,
            _ => break,
        };
        let Some(header) = packet.view::<4>(offset + length) else {
            return Behind::NOTHING;
        };
        // If segments are left, the IPv6 header does not contain the final destination, which
        // checksums cover (RFC 8200 section 8.1).
        if next == ROUTING && header.u8::<SEGMENTS_LEFT>() != 0 {
            return Behind::NOTHING;
        }
        next = header.u8::<0>();
        // An authentication header counts words minus 2, the others count units of 8 bytes minus 1.
        length += u32::from(header.u8::<1>()) * unit + 8;
    }
    match next {
        protocol::TCP | protocol::UDP | protocol::SCTP => Behind::new(length, next),
        _ => Behind::NOTHING,
    }
}
