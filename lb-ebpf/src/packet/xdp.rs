//! Packets in XDP programs.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::programs::XdpContext;
use lb_common::address::Address;
use lb_common::layout::{Flow, FlowKey};
use lb_common::packet::{
    DirectPacket, Headers, Hop, Packet, Reassembly, Route, Sender, Verdict, View, ViewMut, translate_directly,
};

use super::{destination_link, distance, part};
use crate::helpers::{self, Xdp as _};
use crate::maps;
use crate::node_sockets;
use crate::routes::{self, Query};

/// A packet in an XDP program. All its checksums are complete, unless the device is a veth.
pub struct XdpPacket {
    pub context: XdpContext,
}

impl XdpPacket {
    /// The index of the device through which the packet came in.
    #[inline(always)]
    fn device(&self) -> u32 {
        self.context.device()
    }

    /// The start of `length` bytes at `offset`, if they are available.
    #[inline(always)]
    fn part(&self, offset: u32, length: usize) -> Option<usize> {
        part(self.context.data(), self.context.data_end(), offset, length)
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn length(&self) -> u32 {
        distance(self.context.data(), self.context.data_end())
    }

    #[inline(always)]
    fn view<const N: usize>(&self, offset: u32) -> Option<View<'_, N>> {
        // SAFETY: `part` checks that N bytes are available. Helpers that move data need
        // `&mut self`.
        self.part(offset, N)
            .map(|start| unsafe { View::new(start as *const u8) })
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, words: &[u32; N]) -> Option<()> {
        let start = self.part(offset, N * 4)?;
        for (index, word) in words.iter().enumerate() {
            // SAFETY: `part` checks that N words are there.
            let mut view = unsafe { ViewMut::<4>::new((start + index * 4) as *mut u8) };
            view.set_u32::<0>(*word);
        }
        Some(())
    }

    #[inline(always)]
    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()> {
        translate_directly(self, headers, old, new)
    }

    #[inline(always)]
    fn grow_head(&mut self, _network: u32, by: u32) -> Option<()> {
        self.context.grow_head(by)
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> Option<()> {
        let by = length as i32 - self.length() as i32;
        self.context.adjust_tail(by)
    }

    #[inline(always)]
    fn write_half(&mut self, offset: u32, half: u16) -> Option<()> {
        let start = self.part(offset, size_of::<u16>())?;
        // SAFETY: `part` checks that the bytes are there.
        unsafe { ViewMut::<2>::new(start as *mut u8) }.set_u16::<0>(half);
        Some(())
    }

    #[inline(always)]
    fn is_for_node(&self, _network: u32) -> bool {
        let Some(frame) = self.view(0) else {
            return false;
        };
        maps::is_link_of(self.device(), destination_link(&frame))
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn route<A: Address>(&self, source: A, destination: A, length: u32, hop: &mut Hop) -> Route {
        let device = self.device();
        routes::look_up(
            self.context.as_context(),
            &Query {
                device,
                source,
                destination,
                length,
            },
            hop,
        )
    }

    #[inline(always)]
    fn can_send(&self, route: Route, hop: &Hop) -> bool {
        route == Route::Ready && (hop.device == self.device() || maps::transmits(hop.device))
    }

    #[inline(always)]
    fn send(&mut self, _network: u32, hop: &Hop) -> Option<Verdict> {
        self.write(0, &hop.link)?;
        if hop.device == self.device() {
            return Some(Verdict::Bounce);
        }
        let action = helpers::redirect(hop.device);
        (action == xdp_action::XDP_REDIRECT.into()).then_some(Verdict::Redirect)
    }

    #[inline(always)]
    fn sender<A: Address>(&self, source: A) -> Sender {
        routes::sender(self.context.as_context(), self.device(), source)
    }

    #[inline(always)]
    fn has_socket<A: Address>(&self, key: &FlowKey<A>) -> bool {
        node_sockets::has(self.context.as_context(), key)
    }

    #[inline(always)]
    fn is_forwarded(&self) -> bool {
        false
    }

    #[inline(always)]
    fn can_hand_over(&self, _network: u32, _hop: &Hop) -> bool {
        false
    }

    #[inline(always)]
    fn hand_over(&mut self, _hop: &Hop) -> Option<Verdict> {
        None
    }

    #[inline(always)]
    fn checksum_is_partial(&mut self, _offset: u32) -> bool {
        false
    }

    #[inline(always)]
    fn reassembly(&self, _network: u32) -> Reassembly {
        // TC hands the fragment over: XDP can send through few devices only.
        if maps::xdp_reassembly_device() == 0 {
            Reassembly::None
        } else {
            Reassembly::Next
        }
    }

    #[inline(always)]
    fn detour(&mut self) -> Option<Verdict> {
        None
    }
}

impl DirectPacket for XdpPacket {
    #[inline(always)]
    fn view_mut<const N: usize>(&mut self, offset: u32) -> Option<ViewMut<'_, N>> {
        // SAFETY: `part` checks that N bytes are available. Helpers that move data need
        // `&mut self`.
        self.part(offset, N)
            .map(|start| unsafe { ViewMut::new(start as *mut u8) })
    }
}
