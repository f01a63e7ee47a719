//! The packet that the decision code processes, with the node's routing tables.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::address::Address;
use lb_common::host::Bytes;
use lb_common::layout::{Flow, FlowKey};
use lb_common::net::{Address4, Address6};
use lb_common::packet::{Headers, Hop, Packet, Reassembly, Route, Sender, Verdict, View};

use super::packet::NETWORK;

/// Result of a route lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteLookup {
    /// The kind of route.
    pub route: Route,
    /// Index of the output device; 0 if there is none.
    pub device: u32,
}

impl RouteLookup {
    /// There is no route.
    pub const NONE: Self = Self {
        route: Route::None,
        device: 0,
    };
}

/// The node's routing tables.
pub trait Routes {
    /// Looks up the route of packets to an address.
    fn lookup(&self, destination: IpAddr) -> RouteLookup;

    /// The sysctl that disables forwarding, if there is a route to an address but the node does not
    /// forward packets.
    fn forwarding_disabled_by(&self, _destination: IpAddr) -> Option<String> {
        None
    }
}

/// A packet in memory, for the decision code.
pub(super) struct Probe<'a> {
    pub(super) bytes: Bytes,
    routes: &'a dyn Routes,
    /// The last destination that was looked up, and its route.
    way: Cell<Option<(IpAddr, RouteLookup)>>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(bytes: Vec<u8>, routes: &'a dyn Routes) -> Self {
        Self {
            bytes: Bytes::from(bytes),
            routes,
            way: Cell::new(None),
        }
    }

    /// Returns true if an address is the packet's destination.
    fn is_for<A: Address>(&self, address: A) -> bool {
        let bytes: Vec<u8> = address.words().into_iter().flat_map(u32::to_ne_bytes).collect();
        let start = (NETWORK + A::DESTINATION_OFFSET) as usize;
        let length = size_of::<A>();
        self.bytes.bytes.get(start..start + length) == bytes.get(..length)
    }

    /// The last destination that the code looked up, and its route.
    pub(super) fn way(&self) -> Option<(IpAddr, RouteLookup)> {
        self.way.get()
    }
}

impl Packet for Probe<'_> {
    fn length(&self) -> u32 {
        self.bytes.length()
    }

    fn is_for_node(&self, network: u32) -> bool {
        self.bytes.is_for_node(network)
    }

    fn view<const N: usize>(&self, offset: u32) -> Option<View<'_, N>> {
        self.bytes.view(offset)
    }

    fn write<const N: usize>(&mut self, offset: u32, words: &[u32; N]) -> Option<()> {
        self.bytes.write(offset, words)
    }

    fn write_half(&mut self, offset: u32, half: u16) -> Option<()> {
        self.bytes.write_half(offset, half)
    }

    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()> {
        self.bytes.translate(headers, old, new)
    }

    fn grow_head(&mut self, network: u32, by: u32) -> Option<()> {
        self.bytes.grow_head(network, by)
    }

    fn truncate(&mut self, length: u32) -> Option<()> {
        self.bytes.truncate(length)
    }

    fn segment_size(&self) -> u32 {
        0
    }

    fn route<A: Address>(&self, _source: A, destination: A, _length: u32, hop: &mut Hop) -> Route {
        let way = self.routes.lookup(ip(destination));
        self.way.set(Some((ip(destination), way)));
        hop.device = way.device;
        way.route
    }

    fn can_send(&self, _route: Route, _hop: &Hop) -> bool {
        // Where XDP cannot send, the TC program after it can.
        true
    }

    fn send(&mut self, _network: u32, _hop: &Hop) -> Option<Verdict> {
        Some(Verdict::Redirect)
    }

    fn sender<A: Address>(&self, address: A) -> Sender {
        // The ingress device is unknown. So nothing is known about the sender.
        if self.is_for(address) && self.routes.lookup(ip(address)).route == Route::Local {
            Sender::Node
        } else {
            Sender::Here
        }
    }

    fn has_socket<A: Address>(&self, _key: &FlowKey<A>) -> bool {
        // Only the choice of the source port depends on it, and any port will do.
        false
    }

    fn is_forwarded(&self) -> bool {
        false
    }

    fn can_hand_over(&self, _network: u32, _hop: &Hop) -> bool {
        false
    }

    fn hand_over(&mut self, _hop: &Hop) -> Option<Verdict> {
        None
    }

    fn checksum_is_partial(&mut self, _offset: u32) -> bool {
        false
    }

    fn reassembly(&self, _network: u32) -> Reassembly {
        // The packet is not fragmented.
        Reassembly::None
    }

    fn detour(&mut self) -> Option<Verdict> {
        None
    }
}

fn ip<A: Address>(address: A) -> IpAddr {
    let words = address.words();
    if A::IS_IPV6 {
        Ipv6Addr::from(Address6::from_words(words)).into()
    } else {
        Ipv4Addr::from(Address4::from_word(words[0])).into()
    }
}
