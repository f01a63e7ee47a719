//! Access to the bytes of a packet.
//!
//! A [`View`] proves with one bounds check that `N` bytes are there and then reads fields at constant offsets that
//! the compiler checks. It borrows the packet, so that it cannot outlive a call that moves the packet's data.
#![expect(
    unsafe_code,
    reason = "reads packet bytes behind a bounds check that the constructor's caller has made"
)]

use core::marker::PhantomData;
use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::address::Address;
use crate::checksum::Sum;
use crate::layout::{Flow, FlowKey};
use crate::net::protocol;

/// `N` readable bytes of a packet.
#[derive(Clone, Copy)]
pub struct View<'packet, const N: usize> {
    start: *const u8,
    packet: PhantomData<&'packet [u8]>,
}

macro_rules! load {
    ($name:ident, $type:ty, $size:literal) => {
        /// The field at offset `AT`, in the byte order of the packet.
        #[inline(always)]
        pub fn $name<const AT: usize>(&self) -> $type {
            const { assert!(AT + size_of::<$type>() <= N) };
            // LLVM's BPF back end splits an unaligned read into single bytes; the kernel's verifier allows it whole.
            #[cfg(target_arch = "bpf")]
            {
                let value: u64;
                // SAFETY: the constant assertion keeps the read inside the N bytes that `new` vouches for.
                unsafe {
                    core::arch::asm!(
                        concat!("{value} = *(", $size, " *)({start} + {at})"),
                        value = lateout(reg) value,
                        start = in(reg) self.start,
                        at = const AT,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                value as $type
            }
            #[cfg(not(target_arch = "bpf"))]
            {
                // SAFETY: the constant assertion keeps the read inside the N bytes that `new` vouches for.
                unsafe { self.start.add(AT).cast::<$type>().read_unaligned() }
            }
        }
    };
}

impl<const N: usize> View<'_, N> {
    /// A view of the bytes at `start`.
    ///
    /// # Safety
    /// `N` bytes from `start` are readable while the returned value lives.
    #[inline(always)]
    pub unsafe fn new(start: *const u8) -> Self {
        Self {
            start,
            packet: PhantomData,
        }
    }

    load!(u8, u8, "u8");
    load!(u16, u16, "u16");
    load!(u32, u32, "u32");
}

/// `N` readable and writable bytes of a packet.
pub struct ViewMut<'packet, const N: usize> {
    start: *mut u8,
    packet: PhantomData<&'packet mut [u8]>,
}

macro_rules! store {
    ($name:ident, $type:ty, $size:literal) => {
        /// Writes the field at offset `AT`; the value is in the byte order of the packet.
        #[inline(always)]
        pub fn $name<const AT: usize>(&mut self, value: $type) {
            const { assert!(AT + size_of::<$type>() <= N) };
            #[cfg(target_arch = "bpf")]
            // SAFETY: the constant assertion keeps the write inside the N bytes that `new` vouches for.
            unsafe {
                core::arch::asm!(
                    concat!("*(", $size, " *)({start} + {at}) = {value}"),
                    value = in(reg) u64::from(value),
                    start = in(reg) self.start,
                    at = const AT,
                    options(nostack, preserves_flags),
                );
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: the constant assertion keeps the write inside the N bytes that `new` vouches for.
            unsafe {
                self.start.add(AT).cast::<$type>().write_unaligned(value);
            }
        }
    };
}

impl<const N: usize> ViewMut<'_, N> {
    /// A view of the bytes at `start`.
    ///
    /// # Safety
    /// `N` bytes from `start` are readable, writable and not otherwise borrowed while the returned value lives.
    #[inline(always)]
    pub unsafe fn new(start: *mut u8) -> Self {
        Self {
            start,
            packet: PhantomData,
        }
    }

    /// The same bytes for reading.
    #[inline(always)]
    pub fn as_view(&self) -> View<'_, N> {
        View {
            start: self.start,
            packet: PhantomData,
        }
    }

    store!(set_u16, u16, "u16");
    store!(set_u32, u32, "u32");
}

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
    /// Whether ports and a checksum that covers addresses are in the packet: SCTP's covers none (RFC 9260 section 6.8),
    /// and its ports stay, because it would have to be computed anew over the whole packet.
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

    /// Replaces addresses and ports and patches the checksums that cover them (IPv4 header, TCP, UDP).
    ///
    /// If it fails the packet may be half rewritten and must be dropped.
    fn translate<A: Address>(&mut self, headers: &Headers, old: &FlowKey<A>, new: &Flow<A>) -> Option<()>;

    /// Makes the packet longer by `by` bytes in front of the IP header at `network`. All before the old IP header may be of
    /// any content then.
    fn grow_head(&mut self, network: u32, by: u32) -> Option<()>;

    /// Cuts the packet to `length` bytes.
    fn cut(&mut self, length: u32) -> Option<()>;

    /// Whether the frame with an IP header at `network` is for this node: neither for another one, whose frames come in by
    /// a switch that floods them or are listened to, nor for many at once (RFC 1122 section 3.2.2). A hook that cannot
    /// tell says no and leaves it to the next one.
    fn is_for_node(&self, network: u32) -> bool;

    /// Payload bytes of each packet that this one is cut into when it is sent; 0 if it is sent as it is.
    fn segment_size(&self) -> u32;

    /// Asks the node's routing tables for the way of a packet from `source` to `destination` of so many bytes (IP header
    /// and payload; 0 if any length will do), and says it in `hop` as far as it is known.
    fn route<A: Address>(&self, source: A, destination: A, length: u32, hop: &mut Hop) -> Route;

    /// Whether this hook can send the packet along a route that is [`Route::Ready`] or [`Route::Unresolved`]. One that
    /// cannot leaves the packet to the next hook.
    fn can_send(&self, route: Route, hop: &Hop) -> bool;

    /// Sends the packet, whose IP header is at `network`, to its next hop.
    fn send(&mut self, network: u32, hop: &Hop) -> Option<Verdict>;

    /// Where the routing tables say that the sender of a packet is which came in here.
    fn sender<A: Address>(&self, source: A) -> Sender;

    /// Whether a socket of the node receives packets with these addresses and ports, which come in from a device.
    /// The kernel finds connected, listening and UDP sockets, but no TCP socket that is bound and nothing else.
    fn has_socket<A: Address>(&self, key: &FlowKey<A>) -> bool;

    /// Whether a program of ours has sent the packet to the device that it leaves by.
    fn is_sent_on(&self) -> bool;

    /// Whether this hook can hand the packet, whose IP header is at `network`, over to the Pod behind a device.
    fn can_hand_over(&self, network: u32, hop: &Hop) -> bool;

    /// Hands the packet over to the Pod behind a device: the Pod receives it at once.
    fn hand_over(&mut self, hop: &Hop) -> Option<Verdict>;

    /// Whether the transport checksum at `offset` is still to be completed by the device (`CHECKSUM_PARTIAL`), so
    /// that the field holds the folded sum of the pseudo header only.
    fn checksum_is_partial(&mut self, offset: u32) -> bool;

    /// Where a fragment with its IP header at `network` is handed to the kernel's own reassembly, if it must be.
    fn reassembly(&self, network: u32) -> Reassembly;

    /// Hands the packet to the kernel's own reassembly, where [`Self::reassembly`] says [`Reassembly::Here`].
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
    /// Destination and source address of the link layer, if [`Route::Ready`], as they follow each other in memory.
    pub link: [u32; 3],
}

/// Where a source address belongs, as the way to it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Sender {
    /// It may be what sends here: the way leads to the device that the packet came by, or by a device that is neither a
    /// Pod's nor one to the network (a bridge, a CNI's own device), or there is none.
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

/// [`Packet::translate`] by direct writes.
#[inline(always)]
pub fn translate_directly<A: Address>(
    packet: &mut impl DirectPacket,
    headers: &Headers,
    old: &FlowKey<A>,
    new: &Flow<A>,
) -> Option<()> {
    let addresses = new.address_difference();
    if A::IS_IPV6 {
        set_ipv6(&mut packet.view_mut(headers.network)?, new);
    } else {
        set_ipv4(&mut packet.view_mut(headers.network)?, new, addresses);
    }
    if !headers.is_transport_rewritten(old.protocol) {
        return Some(());
    }
    let all = addresses.replace(old.ports_word(), new.ports_word());
    if old.protocol == protocol::TCP {
        set_tcp(&mut packet.view_mut(headers.transport)?, new, all);
    } else {
        set_udp(&mut packet.view_mut(headers.transport)?, new, all);
    }
    Some(())
}

#[inline(always)]
fn set_ipv4<A: Address>(header: &mut ViewMut<'_, { Ipv4Hdr::LEN }>, new: &Flow<A>, difference: Sum) {
    const CHECKSUM: usize = offset_of!(Ipv4Hdr, check);
    let checksum = header.as_view().u16::<CHECKSUM>();
    header.set_u16::<CHECKSUM>(difference.update(checksum));
    header.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(new.source.words()[0]);
    header.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(new.destination.words()[0]);
}

#[inline(always)]
fn set_ipv6<A: Address>(header: &mut ViewMut<'_, { Ipv6Hdr::LEN }>, new: &Flow<A>) {
    const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
    let (source, destination) = (new.source.words(), new.destination.words());
    header.set_u32::<SOURCE>(source[0]);
    header.set_u32::<{ SOURCE + 4 }>(source[1]);
    header.set_u32::<{ SOURCE + 8 }>(source[2]);
    header.set_u32::<{ SOURCE + 12 }>(source[3]);
    header.set_u32::<DESTINATION>(destination[0]);
    header.set_u32::<{ DESTINATION + 4 }>(destination[1]);
    header.set_u32::<{ DESTINATION + 8 }>(destination[2]);
    header.set_u32::<{ DESTINATION + 12 }>(destination[3]);
}

#[inline(always)]
fn set_tcp<A: Address>(header: &mut ViewMut<'_, { TcpHdr::LEN }>, new: &Flow<A>, difference: Sum) {
    const CHECKSUM: usize = offset_of!(TcpHdr, check);
    let checksum = header.as_view().u16::<CHECKSUM>();
    header.set_u16::<CHECKSUM>(difference.update(checksum));
    header.set_u32::<0>(new.ports_word());
}

#[inline(always)]
fn set_udp<A: Address>(header: &mut ViewMut<'_, { UdpHdr::LEN }>, new: &Flow<A>, difference: Sum) {
    const CHECKSUM: usize = offset_of!(UdpHdr, check);
    header.set_u32::<0>(new.ports_word());
    // 0 means "no checksum" (RFC 768), and a computed 0 is sent as its other form.
    match header.as_view().u16::<CHECKSUM>() {
        0 => {}
        checksum => {
            let updated = difference.update(checksum);
            header.set_u16::<CHECKSUM>(if updated == 0 { 0xffff } else { updated });
        }
    }
}
