//! Which packets a measurement sends: the part of the benchmark that kernel and user space share.
//! The tests include this file by its path.

/// What the packet generator is told, and its state.
///
/// The packet of a flow has a client's end and a service's end; either may be the sender. Numbers
/// are in host byte order, offsets count from the first byte of the frame.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Plan {
    /// Where the generator stands.
    pub state: u32,
    /// The order of the flows.
    pub order: Order,
    /// The number of flows less one; the number is a power of two.
    pub flow_mask: u32,
    /// The number of addresses on the service's end less one; the number is a power of two.
    pub service_mask: u32,
    /// The last word of the first client's address.
    pub client: u32,
    /// The last word of the first address on the service's end.
    pub service: u32,
    /// The port on the service's end.
    pub service_port: u16,
    /// The two bytes that hold the hop limit and the protocol, as they stand in memory: the
    /// programs count hops.
    pub hops: u16,
    /// Where they are.
    pub hops_at: u32,
    /// Where the fields of the client's end are.
    pub client_at: EndAt,
    /// Where the fields of the service's end are.
    pub service_at: EndAt,
}

/// Constants of a linear congruential generator whose low bits have the full period: it visits each
/// flow once before it comes back to the first.
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

/// Last word of an address, and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// The last word of the address.
    pub address: u32,
    /// The port.
    pub port: u16,
}

/// Client ports of one client address, as a power of two.
const PORT_BITS: u32 = 4;
/// The first client port.
const FIRST_PORT: u16 = 40_000;

impl Plan {
    /// Goes on to the next flow.
    #[inline(always)]
    pub fn advance(&mut self) {
        let Order {
            multiplier,
            increment,
        } = self.order;
        self.state = self.state.wrapping_mul(multiplier).wrapping_add(increment) & self.flow_mask;
    }

    /// The client's end of the present flow.
    #[inline(always)]
    pub fn client(&self) -> End {
        End {
            address: self.client.wrapping_add(self.state >> PORT_BITS),
            port: FIRST_PORT + (self.state & ((1 << PORT_BITS) - 1)) as u16,
        }
    }

    /// The service's end of the present flow.
    #[inline(always)]
    pub fn service(&self) -> End {
        End {
            address: self.service.wrapping_add(self.state & self.service_mask),
            port: self.service_port,
        }
    }
}
