//! Access to a packet, and what becomes of it.

mod translate;
mod view;

use core::mem::offset_of;

use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::address::Address;
use crate::layout::{Flow, FlowKey};
use crate::net::protocol;

pub use translate::translate_directly;
pub use view::{View, ViewMut};

/// Where the headers of a packet lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Offset of the IP header: the length of the Ethernet header, if there is one.
    pub network: u32,
    /// Offset of the TCP or UDP header.
    pub transport: u32,
    /// Length of IP header and payload in bytes, as the IP header says.
    pub ip_length: u32,
    /// [`crate::net::tcp_flags`]; for SCTP those that mean the same, for UDP 0.
    pub tcp_flags: u8,
    /// Which part of a datagram the packet is.
    pub part: Part,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first of several fragments: the only one with a transport header.
    First,
    /// Another fragment; `transport` is where its payload begins.
    Later,
}

impl Headers {
    /// Whether ports and a checksum that covers addresses are in the packet: SCTP's covers none
    /// (RFC 9260 section 6.8), and its ports stay, because it would have to be computed anew over
    /// the whole packet.
    #[inline(always)]
    pub fn is_transport_rewritten(&self, protocol: u8) -> bool {
        protocol != protocol::SCTP && self.part != Part::Later
    }

    /// Offset of the transport checksum.
    #[inline(always)]
    pub fn checksum_offset(&self, protocol: u8) -> u32 {
        let field = match protocol {
            protocol::TCP => offset_of!(TcpHdr, check),
            _ => offset_of!(UdpHdr, check),
        };
        self.transport + field as u32
    }
}

/// A packet, from its first header byte on. All offsets count from there.
pub trait Packet {
    /// The number of bytes, those outside the linear part included.
    fn length(&self) -> u32;

    /// `N` bytes at `offset`, or `None` if the packet ends before.
    fn view<const N: usize>(&self, offset: u32) -> Option<View<'_, N>>;

    /// Writes whole words (in packet byte order) at `offset`, leaving all checksums to the caller.
    fn write<const N: usize>(&mut self, offset: u32, words: &[u32; N]) -> Option<()>;

    /// Writes half a word (in packet byte order) at `offset`, leaving all checksums to the caller.
    fn write_half(&mut self, offset: u32, half: u16) -> Option<()>;

    /// Replaces addresses and ports and patches the checksums that cover them (IPv4 header, TCP,
    /// UDP).
    ///
    /// If it fails the packet may be half rewritten and must be dropped.
    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()>;

    /// Makes the packet longer by `by` bytes in front of the IP header at `network`. All before the
    /// old IP header may be of any content then.
    fn grow_head(&mut self, network: u32, by: u32) -> Option<()>;

    /// Cuts the packet to `length` bytes.
    fn cut(&mut self, length: u32) -> Option<()>;

    /// Whether the frame with an IP header at `network` is for this node: neither for another one,
    /// whose frames come in by a switch that floods them or are listened to, nor for many at once
    /// (RFC 1122 section 3.2.2). A hook that cannot tell says no and leaves it to the next one.
    fn is_for_node(&self, network: u32) -> bool;

    /// Payload bytes of each packet that this one is cut into when it is sent; 0 if it is sent as
    /// it is.
    fn segment_size(&self) -> u32;

    /// Asks the node's routing tables for the way of a packet from `source` to `destination` of so
    /// many bytes (IP header and payload; 0 if any length will do), and says it in `hop` as far as
    /// it is known.
    fn route<A: Address>(&self, source: A, destination: A, length: u32, hop: &mut Hop) -> Route;

    /// Whether this hook can send the packet along a route that is [`Route::Ready`] or
    /// [`Route::Unresolved`]. One that cannot leaves the packet to the next hook.
    fn can_send(&self, route: Route, hop: &Hop) -> bool;

    /// Sends the packet, whose IP header is at `network`, to its next hop.
    fn send(&mut self, network: u32, hop: &Hop) -> Option<Verdict>;

    /// Where the routing tables say that the sender of a packet is which came in here.
    fn sender<A: Address>(&self, source: A) -> Sender;

    /// Whether a socket of the node receives packets with these addresses and ports, which come in
    /// from a device. The kernel finds connected, listening and UDP sockets, but no TCP socket that
    /// is bound and nothing else.
    fn has_socket<A: Address>(&self, key: &FlowKey<A>) -> bool;

    /// Whether a program of ours has sent the packet to the device that it leaves by.
    fn is_sent_on(&self) -> bool;

    /// Whether this hook can hand the packet, whose IP header is at `network`, over to the Pod
    /// behind a device.
    fn can_hand_over(&self, network: u32, hop: &Hop) -> bool;

    /// Hands the packet over to the Pod behind a device: the Pod receives it at once.
    fn hand_over(&mut self, hop: &Hop) -> Option<Verdict>;

    /// Whether the transport checksum at `offset` is still to be completed by the device
    /// (`CHECKSUM_PARTIAL`), so that the field holds the folded sum of the pseudo header only.
    fn checksum_is_partial(&mut self, offset: u32) -> bool;

    /// Where a fragment with its IP header at `network` is handed to the kernel's own reassembly,
    /// if it must be.
    fn reassembly(&self, network: u32) -> Reassembly;

    /// Hands the packet to the kernel's own reassembly, where [`Self::reassembly`] says
    /// [`Reassembly::Here`].
    fn detour(&mut self) -> Option<Verdict>;
}

/// Where fragments are handed to the kernel's own reassembly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reassembly {
    /// Nowhere.
    None,
    /// By the next hook.
    Next,
    /// By this hook.
    Here,
}

/// What to do with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Goes on, translated or untouched.
    Pass,
    /// Turns back: goes out of the device it came in on, or comes in by the one it was to leave by.
    Bounce,
    /// Goes where [`Packet::send`] or [`Packet::hand_over`] has sent it.
    Redirect,
    /// Ends here.
    Drop,
}

/// The next hop of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hop {
    /// Index of the device that leads to it; 0 if there is none.
    pub device: u32,
    /// The largest packet that the route takes, in bytes, if [`Route::TooBig`].
    pub mtu: u32,
    /// Destination and source address of the link layer, if [`Route::Ready`], as they follow each
    /// other in memory.
    pub link: [u32; 3],
}

/// Where a source address belongs, as the way to it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Sender {
    /// It may be what sends here: the way leads to the device that the packet came by, or by a
    /// device that is neither a Pod's nor one to the network (a bridge, a CNI's own device), or
    /// there is none.
    Here,
    /// Behind a router which is at the other end of the device that the packet came by.
    Behind,
    /// Outside.
    Network,
    /// Another Pod of this node.
    Pod,
    /// This node itself.
    Node,
}

/// What the routing tables say of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Route {
    /// The next hop is known.
    Ready,
    /// The next hop's link-layer address is not known yet.
    Unresolved,
    /// The packet is larger than the route takes.
    TooBig,
    /// The destination is the node itself.
    Local,
    /// There is no way.
    None,
}

/// A packet whose bytes are written directly and whose checksums are complete: XDP, plain bytes.
pub trait DirectPacket: Packet {
    /// `N` bytes at `offset` for writing, or `None` if the packet ends before.
    fn view_mut<const N: usize>(&mut self, offset: u32) -> Option<ViewMut<'_, N>>;
}
