//! Which packets a measurement sends: code that the kernel programs and user space share. The tests
//! include this file by its path.

/// Configuration and state of the packet generator.
///
/// The packet of a flow has a client end and a service end. Either may be the sender. Numbers are
/// in host byte order, and offsets count from the first byte of the frame.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Plan {
    /// The number of the current flow.
    pub state: u32,
    /// The order of the flows.
    pub order: Order,
    /// The number of flows minus one. The number is a power of two.
    pub flow_mask: u32,
    /// The number of addresses at the service end minus one. The number is a power of two.
    pub service_mask: u32,
    /// The last word of the first client's address.
    pub client: u32,
    /// The last word of the first address at the service end.
    pub service: u32,
    /// The port at the service end.
    pub service_port: u16,
    /// The two bytes with hop limit and protocol, in memory order. They are written again because
    /// the programs decrement the hop limit.
    pub hops: u16,
    /// Offset of `hops`.
    pub hops_at: u32,
    /// Offsets of the fields of the client end.
    pub client_at: EndAt,
    /// Offsets of the fields of the service end.
    pub service_at: EndAt,
}

/// Constants of a linear congruential generator whose low bits have the full period. It visits each
/// flow once before it returns to the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Order {
    /// A multiple of four, plus one.
    pub multiplier: u32,
    /// Odd.
    pub increment: u32,
}

/// Offsets of an end's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct EndAt {
    /// The last word of the address.
    pub address: u32,
    /// The port.
    pub port: u32,
}

/// The last word of an address, and a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// The last word of the address.
    pub address: u32,
    /// The port.
    pub port: u16,
}

/// Client ports for each client address, as a power of two.
const PORT_BITS: u32 = 4;
/// The first client port.
const FIRST_PORT: u16 = 40_000;

impl Plan {
    /// Advances to the next flow.
    #[inline(always)]
    pub fn advance(&mut self) {
        let Order {
            multiplier,
            increment,
        } = self.order;
        self.state = self.state.wrapping_mul(multiplier).wrapping_add(increment) & self.flow_mask;
    }

    /// The client end of the current flow.
    #[inline(always)]
    pub fn client(&self) -> End {
        End {
            address: self.client.wrapping_add(self.state >> PORT_BITS),
            port: FIRST_PORT + (self.state & ((1 << PORT_BITS) - 1)) as u16,
        }
    }

    /// The service end of the current flow.
    #[inline(always)]
    pub fn service(&self) -> End {
        End {
            address: self.service.wrapping_add(self.state & self.service_mask),
            port: self.service_port,
        }
    }
}
