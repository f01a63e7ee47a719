//! Packets in TC programs.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_REDIRECT};
use aya_ebpf::programs::TcContext;
use lb_common::address::Address;
use lb_common::checksum::Sum;
use lb_common::layout::{DETOUR_LINK, Flow, FlowKey};
use lb_common::net::protocol;
use lb_common::packet::{Headers, Hop, Packet, Reassembly, Route, Sender, Verdict, View};
use lb_common::parse::{self, NetworkHeader};
use network_types::eth::EthHdr;

use super::{destination_link, distance, part};
use crate::helpers::{self, Skb as _, ok};
use crate::maps;
use crate::node_sockets;
use crate::routes::{self, Query};

/// A packet in a TC program. Its checksums may be partial, and the kernel may hold the sum of the
/// packet (`CHECKSUM_COMPLETE`). So all writes go through helpers that update both. Direct writes
/// would also make the kernel copy every shared packet before the program starts, even one that the
/// program does not change.
pub struct TcPacket {
    pub context: TcContext,
}

/// Returns true if a packet belongs to a VLAN: the kernel has moved its tag from the frame into the
/// metadata. Tag 0 belongs to no VLAN (IEEE 802.1Q section 9.6): it only holds a priority.
#[inline(always)]
pub fn is_of_vlan(context: &TcContext) -> bool {
    const VLAN: u32 = 0xfff;
    context.vlan_tag().is_some_and(|tag| tag & VLAN != 0)
}

impl TcPacket {
    /// A packet whose headers are in the linear part, unless the packet ends before.
    #[inline(always)]
    pub fn new(mut context: TcContext) -> Self {
        /// The headers of an ICMPv6 error that quotes a TCP segment's first fragment. This is more
        /// than the largest IPv4 header and TCP.
        const HEADERS_MAX: u32 = 14 + 40 + 8 + 40 + 8 + 20;
        let linear = distance(context.data(), context.data_end());
        if linear < HEADERS_MAX && linear < context.len() {
            // If it fails (no memory), the packet parses as truncated.
            context.pull(HEADERS_MAX.min(context.len()));
        }
        Self { context }
    }

    /// The network layer, according to the kernel.
    #[inline(always)]
    pub fn network(&self) -> NetworkHeader {
        parse::network_of(self.context.ethertype())
    }

    /// Removes a tag that belongs to no VLAN, before the packet bypasses the stack, which would
    /// remove it.
    #[inline(always)]
    pub fn remove_priority_tag(&self) {
        if self.context.vlan_tag().is_some() {
            // If it fails, the tag still holds only a priority.
            self.context.pop_vlan();
        }
    }

    /// The index of the device through which the packet came in or leaves.
    #[inline(always)]
    pub fn device(&self) -> u32 {
        self.context.device()
    }

    /// Returns true if the packet comes in again, after the kernel's own reassembly.
    ///
    /// A Pod that may load its own programs can set the mark. Its fragments then make no detour.
    #[inline(always)]
    fn is_returned(&self) -> bool {
        self.context.tc_index() == RETURNED
    }
}

/// A broadcast frame
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/if_packet.h>).
const PACKET_BROADCAST: u32 = 1;

/// A multicast frame.
const PACKET_MULTICAST: u32 = 2;

/// A frame for another link-layer address.
const PACKET_OTHERHOST: u32 = 3;

/// Flag of `bpf_l4_csum_replace` since Linux 6.16
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>); not in aya's bindings
/// yet.
const BPF_F_IPV6: u32 = 1 << 7;

/// Value of `tc_index` in a packet that a program has forwarded, for the program of the device
/// through which it leaves. The kernel leaves the field to classifiers.
const SENT_ON: u32 = 0x4c42;

/// Value of `tc_index` in a packet that comes in again, for the program of the device through which
/// it came in.
const RETURNED: u32 = 0x4c43;

/// `EINVAL`
const INVALID: i64 = -22;

impl Packet for TcPacket {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn view<const N: usize>(&self, offset: u32) -> Option<View<'_, N>> {
        let start = part(self.context.data(), self.context.data_end(), offset, N)?;
        // SAFETY: `part` checks that N bytes are available. Helpers that move data need
        // `&mut self`.
        Some(unsafe { View::new(start as *const u8) })
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, words: &[u32; N]) -> Option<()> {
        self.context.write(offset, words, BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()> {
        let addresses = new.address_difference();
        let checksum = headers.checksum_offset(old.protocol);
        let is_rewritten = headers.is_transport_rewritten(old.protocol);
        self.write_fields(headers, new, addresses, is_rewritten)?;
        if !is_rewritten {
            return Some(());
        }
        // A UDP checksum of 0 means that there is none, and stays. A computed 0 is sent as 0xffff.
        let udp = if old.protocol == protocol::UDP {
            BPF_F_MARK_MANGLED_0
        } else {
            0
        };
        // Ports are part of the data: a partial checksum does not cover them yet.
        if old.ports_word() != new.ports_word() {
            let ports = Sum::new().replace(old.ports_word(), new.ports_word());
            ok(self.context.patch_checksum(checksum, ports.fold32(), udp))?;
        }
        // Addresses are part of the pseudo header, which a partial checksum covers.
        let flags = udp | BPF_F_PSEUDO_HDR;
        if A::IS_IPV6 {
            // Without this flag CHECKSUM_COMPLETE becomes wrong, because IPv6 has no header
            // checksum that balances the addresses. Kernels before 6.16 do not have the flag.
            match self
                .context
                .patch_checksum(checksum, addresses.fold32(), flags | BPF_F_IPV6)
            {
                INVALID => ok(self.context.patch_checksum(checksum, addresses.fold32(), flags)),
                result => ok(result),
            }
        } else {
            ok(self.context.patch_checksum(checksum, addresses.fold32(), flags))
        }
    }

    #[inline(always)]
    fn grow_head(&mut self, network: u32, by: u32) -> Option<()> {
        // Without a link layer, the kernel would cut off bytes in front of the network header when
        // it sends the packet. With one, the helper that works for all packets is used.
        if network == 0 {
            self.context.grow_behind_link(by)
        } else {
            self.context.change_head(by)
        }
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> Option<()> {
        self.context.change_tail(length)
    }

    #[inline(always)]
    fn write_half(&mut self, offset: u32, half: u16) -> Option<()> {
        self.context.write(offset, &half, BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn is_for_node(&self, network: u32) -> bool {
        if network == 0 {
            // Without a link-layer header there is no destination address to check.
            return true;
        }
        match self.context.packet_type() {
            PACKET_BROADCAST | PACKET_MULTICAST => false,
            // The frame is not for the device's own address, but it may be for the bridge that the
            // device is a port of.
            PACKET_OTHERHOST => {
                let Some(frame) = self.view(0) else {
                    return false;
                };
                maps::is_node_link(&destination_link(&frame))
            }
            _ => true,
        }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        self.context.segment_size()
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
    fn can_send(&self, _route: Route, _hop: &Hop) -> bool {
        true
    }

    #[inline(always)]
    fn send(&mut self, network: u32, hop: &Hop) -> Option<Verdict> {
        self.context.set_tc_index(SENT_ON);
        if network == 0 {
            // The next call accepts only packets with an Ethernet header, whatever it contains.
            self.context.change_head(EthHdr::LEN as u32)?;
        }
        let action = helpers::redirect_to_neighbour(hop.device);
        (action == TC_ACT_REDIRECT.into()).then_some(Verdict::Redirect)
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
        self.context.tc_index() == SENT_ON
    }

    #[inline(always)]
    fn can_hand_over(&self, network: u32, hop: &Hop) -> bool {
        network != 0 && maps::leads_to_pod(hop.device)
    }

    #[inline(always)]
    fn hand_over(&mut self, hop: &Hop) -> Option<Verdict> {
        self.context.write(0, &hop.link, 0)?;
        let action = helpers::redirect_to_peer(hop.device);
        (action == TC_ACT_REDIRECT.into()).then_some(Verdict::Redirect)
    }

    #[inline(always)]
    fn checksum_is_partial(&mut self, offset: u32) -> bool {
        let Some(before) = self.view::<2>(offset).map(|field| field.u16::<0>()) else {
            return false;
        };
        // A change of the data patches a complete checksum and leaves a partial one unchanged.
        self.context.patch_checksum(offset, Sum::new().add(1).fold32(), 0);
        self.view::<2>(offset)
            .is_some_and(|field| field.u16::<0>() == before)
    }

    #[inline(always)]
    fn reassembly(&self, network: u32) -> Reassembly {
        if network == 0 || maps::reassembly_device() == 0 {
            return Reassembly::None;
        }
        let device = self.device();
        // The way back from the reassembly needs both the role and the link-layer address.
        if maps::role_of(device) == 0 || maps::link_of(device).is_none() || self.is_returned() {
            return Reassembly::None;
        }
        Reassembly::Here
    }

    #[inline(always)]
    fn detour(&mut self) -> Option<Verdict> {
        let reassembly = maps::reassembly_device();
        if reassembly == 0 {
            return None;
        }
        let [a, b, c, d] = self.device().to_be_bytes();
        let [first, second] = DETOUR_LINK;
        self.context
            .write(0, &[first, second, a, b, c, d], BPF_F_RECOMPUTE_CSUM)?;
        let action = helpers::redirect(reassembly);
        (action == TC_ACT_REDIRECT.into()).then_some(Verdict::Redirect)
    }
}

impl TcPacket {
    /// Restores the link-layer address that a packet had before the detour, or one that leads to
    /// the same place, and makes the packet come in through its device again. Returns `None` if it
    /// made no detour, or if the agent's programs no longer handle that device.
    #[inline(always)]
    pub fn reinject(&mut self) -> Option<i32> {
        let frame = self.view::<6>(0)?;
        if frame.u16::<0>() != u16::from_ne_bytes(DETOUR_LINK) {
            return None;
        }
        let (high, low) = (u16::from_be(frame.u16::<2>()), u16::from_be(frame.u16::<4>()));
        let device = u32::from(high) << 16 | u32::from(low);
        if maps::role_of(device) == 0 {
            return None;
        }
        let link = maps::link_of(device)?;
        let [a, b, c, d] = link.start.to_ne_bytes();
        let [e, f, ..] = link.end.to_ne_bytes();
        self.context.write(0, &[a, b, c, d, e, f], BPF_F_RECOMPUTE_CSUM)?;
        self.context.set_tc_index(RETURNED);
        Some(helpers::receive_at(device))
    }
}
