//! Packets of plain bytes.
#![expect(unsafe_code, reason = "hands out views as the kernel programs do")]

use std::vec;
use std::vec::Vec;

use crate::address::Address;
use crate::layout::{Flow, FlowKey};
use crate::net::Port;
use crate::packet::{
    DirectPacket, Headers, Hop, Packet, Reassembly, Route, Sender, Verdict, View, ViewMut, translate_directly,
};
use crate::parse::BEHIND_ETHERNET;

/// A packet of plain bytes with complete checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bytes {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Routes to single addresses. All other addresses use [`HOP`].
    pub routes: Vec<HostRoute>,
    /// Whether the packet can be sent to a next hop whose link-layer address is not known yet.
    pub resolves_neighbours: bool,
    /// Devices whose other end is in a Pod.
    pub pod_devices: Vec<u32>,
    /// Where senders are: the first network that contains an address decides. Addresses in no
    /// network are [`Sender::Here`].
    pub senders: Vec<SenderNetwork>,
    /// Payload bytes of each segment into which this packet is cut when it is sent; 0 if it is sent
    /// as it is.
    pub segment_size: u32,
    /// Whether the frame is for another machine.
    pub is_for_other: bool,
    /// Where fragments are handed to the kernel's own reassembly.
    pub reassembly: Reassembly,
    /// Ports of the node's sockets, with any address.
    pub sockets: Vec<Port>,
}

/// The route to a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRoute {
    /// The words of the destination's address ([`Address::words`]).
    pub destination: [u32; 4],
    /// The result for packets that are not too big.
    pub route: Route,
    /// The next hop. Packets larger than its MTU are too big, unless the MTU is 0.
    pub hop: Hop,
}

/// Where the senders in a network are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SenderNetwork {
    /// The words of the network's address ([`Address::words`]).
    pub network: [u32; 4],
    /// The bits that all its addresses share.
    pub mask: [u32; 4],
    /// Where they are.
    pub sender: Sender,
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            routes: Vec::new(),
            resolves_neighbours: true,
            pod_devices: Vec::new(),
            senders: Vec::new(),
            segment_size: 0,
            is_for_other: false,
            reassembly: Reassembly::None,
            sockets: Vec::new(),
        }
    }
}

impl Bytes {
    fn part<const N: usize>(&self, offset: u32) -> Option<*const u8> {
        let offset = usize::try_from(offset).ok()?;
        self.bytes.get(offset..offset.checked_add(N)?).map(<[u8]>::as_ptr)
    }
}

impl DirectPacket for Bytes {
    fn view_mut<const N: usize>(&mut self, offset: u32) -> Option<ViewMut<'_, N>> {
        let offset = usize::try_from(offset).ok()?;
        let part = self.bytes.get_mut(offset..offset.checked_add(N)?)?;
        // SAFETY: the slice has N bytes and stays mutably borrowed.
        Some(unsafe { ViewMut::new(part.as_mut_ptr()) })
    }
}

impl Packet for Bytes {
    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn view<const N: usize>(&self, offset: u32) -> Option<View<'_, N>> {
        // SAFETY: `part` checks that N bytes are there; they stay borrowed.
        self.part::<N>(offset).map(|start| unsafe { View::new(start) })
    }

    fn write<const N: usize>(&mut self, offset: u32, words: &[u32; N]) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        let target = self.bytes.get_mut(offset..offset + N * 4)?;
        for (part, word) in target.chunks_exact_mut(4).zip(words) {
            part.copy_from_slice(&word.to_ne_bytes());
        }
        Some(())
    }

    fn write_half(&mut self, offset: u32, half: u16) -> Option<()> {
        let offset = usize::try_from(offset).ok()?;
        let target = self.bytes.get_mut(offset..offset + 2)?;
        target.copy_from_slice(&half.to_ne_bytes());
        Some(())
    }

    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()> {
        translate_directly(self, headers, old, new)
    }

    fn grow_head(&mut self, _network: u32, by: u32) -> Option<()> {
        self.bytes.splice(0..0, vec![0; usize::try_from(by).ok()?]);
        Some(())
    }

    fn truncate(&mut self, length: u32) -> Option<()> {
        self.bytes.truncate(usize::try_from(length).ok()?);
        Some(())
    }

    fn is_for_node(&self, _network: u32) -> bool {
        !self.is_for_other
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn route<A: Address>(&self, _source: A, destination: A, length: u32, hop: &mut Hop) -> Route {
        let destination = destination.words();
        let Some(known) = self.routes.iter().find(|known| known.destination == destination) else {
            *hop = HOP;
            return Route::Ready;
        };
        *hop = known.hop;
        if known.hop.mtu != 0 && length > known.hop.mtu {
            return Route::TooBig;
        }
        known.route
    }

    fn can_send(&self, route: Route, _hop: &Hop) -> bool {
        self.resolves_neighbours || route == Route::Ready
    }

    fn send(&mut self, network: u32, hop: &Hop) -> Option<Verdict> {
        if network == 0 {
            // The link of the next hop has Ethernet headers.
            self.grow_head(network, BEHIND_ETHERNET)?;
        }
        self.write(0, &hop.link)?;
        Some(Verdict::Redirect)
    }

    fn sender<A: Address>(&self, source: A) -> Sender {
        let words = source.words();
        let is_in = |found: &&SenderNetwork| (0..4).all(|at| words[at] & found.mask[at] == found.network[at]);
        let found = self.senders.iter().find(is_in);
        found.map_or(Sender::Here, |found| found.sender)
    }

    fn has_socket<A: Address>(&self, key: &FlowKey<A>) -> bool {
        self.sockets.contains(&key.destination_port)
    }

    fn is_forwarded(&self) -> bool {
        false
    }

    fn can_hand_over(&self, network: u32, hop: &Hop) -> bool {
        network != 0 && self.pod_devices.contains(&hop.device)
    }

    fn hand_over(&mut self, hop: &Hop) -> Option<Verdict> {
        self.write(0, &hop.link)?;
        Some(Verdict::Redirect)
    }

    fn checksum_is_partial(&mut self, _offset: u32) -> bool {
        false
    }

    fn reassembly(&self, _network: u32) -> Reassembly {
        self.reassembly
    }

    fn detour(&mut self) -> Option<Verdict> {
        Some(Verdict::Redirect)
    }
}

/// The next hop of addresses without another one.
pub const HOP: Hop = Hop {
    device: 1,
    mtu: 0,
    link: [0x0202_0202, 0x0202_0202, 0x0202_0202],
};
