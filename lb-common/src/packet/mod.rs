//! Access to a packet, and the verdict for it.

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

/// The offsets and properties of a packet's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Offset of the IP header: the length of the Ethernet header, if there is one.
    pub network: u32,
    /// Offset of the TCP or UDP header.
    pub transport: u32,
    /// Length of IP header and payload in bytes, according to the IP header.
    pub ip_length: u32,
    /// [`crate::net::tcp_flags`]. SCTP has those with the same meaning, UDP has 0.
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
    /// Returns true if the packet contains ports that can be rewritten and a checksum that covers
    /// addresses. SCTP's checksum does not cover them (RFC 9260 section 6.8). Its ports stay,
    /// because the checksum would have to be computed again over the whole packet.
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

/// A packet. All offsets count from its first header byte.
pub trait Packet {
    /// The number of bytes, including those outside the linear part.
    fn length(&self) -> u32;

    /// `N` bytes at `offset`, or `None` if the packet is shorter.
    fn view<const N: usize>(&self, offset: u32) -> Option<View<'_, N>>;

    /// Writes whole words (in packet byte order) at `offset`, leaving all checksums to the caller.
    fn write<const N: usize>(&mut self, offset: u32, words: &[u32; N]) -> Option<()>;

    /// Writes half a word (in packet byte order) at `offset`, leaving all checksums to the caller.
    fn write_half(&mut self, offset: u32, half: u16) -> Option<()>;

    /// Replaces addresses and ports and patches the checksums that cover them (IPv4 header, TCP,
    /// UDP).
    ///
    /// If it fails, the packet may be partly rewritten and must be dropped.
    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()>;

    /// Inserts `by` bytes in front of the IP header at `network`. Afterwards the content of
    /// everything before the old IP header is unspecified.
    fn grow_head(&mut self, network: u32, by: u32) -> Option<()>;

    /// Truncates the packet to `length` bytes.
    fn truncate(&mut self, length: u32) -> Option<()>;

    /// Returns true if the frame with an IP header at `network` is for this node only. Frames for
    /// other nodes arrive if a switch floods them or if the device is promiscuous. Broadcast and
    /// multicast frames are for many nodes (RFC 1122 section 3.2.2). A hook that cannot tell
    /// returns false and leaves the frame to the next one.
    fn is_for_node(&self, network: u32) -> bool;

    /// Payload bytes of each segment into which this packet is cut when it is sent; 0 if it is sent
    /// as it is.
    fn segment_size(&self) -> u32;

    /// Looks up the route of a packet from `source` to `destination` with `length` bytes (IP header
    /// and payload; 0 for any length). Stores what is known of the next hop in `hop`.
    fn route<A: Address>(&self, source: A, destination: A, length: u32, hop: &mut Hop) -> Route;

    /// Returns true if this hook can send the packet along a route that is [`Route::Ready`] or
    /// [`Route::Unresolved`]. A hook that cannot leaves the packet to the next one.
    fn can_send(&self, route: Route, hop: &Hop) -> bool;

    /// Sends the packet, whose IP header is at `network`, to its next hop.
    fn send(&mut self, network: u32, hop: &Hop) -> Option<Verdict>;

    /// Where the sender of a packet that came in here is, according to the routing tables.
    fn sender<A: Address>(&self, source: A) -> Sender;

    /// Returns true if a socket of the node receives packets with these addresses and ports that
    /// come in from a device. The kernel finds connected, listening and UDP sockets, but no TCP
    /// socket that is only bound.
    fn has_socket<A: Address>(&self, key: &FlowKey<A>) -> bool;

    /// Returns true if one of the agent's programs has sent the packet to the device through which
    /// it leaves.
    fn is_forwarded(&self) -> bool;

    /// Returns true if this hook can hand the packet, whose IP header is at `network`, to the Pod
    /// behind a device.
    fn can_hand_over(&self, network: u32, hop: &Hop) -> bool;

    /// Hands the packet to the Pod behind a device. The Pod receives it immediately.
    fn hand_over(&mut self, hop: &Hop) -> Option<Verdict>;

    /// Returns true if the device still has to complete the transport checksum at `offset`
    /// (`CHECKSUM_PARTIAL`). The field then holds only the folded sum of the pseudo header. The
    /// call may change the field.
    fn checksum_is_partial(&mut self, offset: u32) -> bool;

    /// The hook that hands a fragment with its IP header at `network` to the kernel's own
    /// reassembly, if it must be handed there.
    fn reassembly(&self, network: u32) -> Reassembly;

    /// Hands the packet to the kernel's own reassembly, if [`Self::reassembly`] returns
    /// [`Reassembly::Here`].
    fn detour(&mut self) -> Option<Verdict>;
}

/// The hook that hands fragments to the kernel's own reassembly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reassembly {
    /// No hook.
    None,
    /// The next hook.
    Next,
    /// This hook.
    Here,
}

/// What to do with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The packet passes, translated or unchanged.
    Pass,
    /// The packet turns back: it goes out of the device that it came in on, or comes in through the
    /// device by which it was to leave.
    Bounce,
    /// The packet goes where [`Packet::send`], [`Packet::hand_over`] or [`Packet::detour`] has sent
    /// it.
    Redirect,
    /// The packet is dropped.
    Drop,
}

/// The next hop of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hop {
    /// Index of the device that leads to the next hop; 0 if there is none.
    pub device: u32,
    /// The MTU of the route in bytes, with [`Route::TooBig`].
    pub mtu: u32,
    /// Destination and source link-layer address in memory order, with [`Route::Ready`].
    pub link: [u32; 3],
}

/// Where a source address belongs, according to the route to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Sender {
    /// It may belong to what sends here. The route leads through the device that the packet came in
    /// on, or through a device that is neither a Pod's nor one to the network (a bridge, a CNI's
    /// own device), or there is no route.
    Here,
    /// Behind a router at the other end of the device that the packet came in on.
    Behind,
    /// In the network outside.
    Network,
    /// Another Pod of this node.
    Pod,
    /// This node itself.
    Node,
}

/// The result of a route lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Route {
    /// The next hop is known.
    Ready,
    /// The next hop's link-layer address is not known yet.
    Unresolved,
    /// The packet is larger than the MTU of the route.
    TooBig,
    /// The destination is the node itself.
    Local,
    /// There is no route.
    None,
}

/// A packet whose bytes are written directly and whose checksums are complete: in XDP, and plain
/// bytes.
pub trait DirectPacket: Packet {
    /// `N` writable bytes at `offset`, or `None` if the packet is shorter.
    fn view_mut<const N: usize>(&mut self, offset: u32) -> Option<ViewMut<'_, N>>;
}
