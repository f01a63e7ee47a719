//! The kernel programs. Each one gets a verdict from `lb-common` and turns it into the action of
//! its hook.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod helpers;
mod maps;
mod node_sockets;
mod packet;
mod routes;
mod settings;
mod socket_address;
mod sockets;
mod tables;

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::choose::Origin;
use lb_common::decide;
use lb_common::net::{Address4, Address6};
use lb_common::packet::{Packet, Verdict};
use lb_common::parse::{self, BEHIND_ETHERNET, NetworkHeader};

use crate::packet::{TcPacket, XdpPacket, is_of_vlan};
use crate::tables::KernelTables;

/// Handles the packets of a network device before the stack.
#[xdp]
pub fn lb_xdp(context: XdpContext) -> u32 {
    let mut packet = XdpPacket { context };
    let network = parse::network(&packet);
    match enter(&mut packet, network, BEHIND_ETHERNET, Origin::Outside) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Bounce => xdp_action::XDP_TX,
        Verdict::Redirect => xdp_action::XDP_REDIRECT,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// Handles the packets of a network device that XDP has passed.
#[classifier]
pub fn lb_tc_from_network(context: TcContext) -> i32 {
    from_device(context, Origin::Outside)
}

/// Handles the packets that leave through a network device.
#[classifier]
pub fn lb_tc_to_network(context: TcContext) -> i32 {
    to_device(context, Origin::Outside)
}

/// Handles the packets that a Pod sends.
#[classifier]
pub fn lb_tc_from_pod(context: TcContext) -> i32 {
    from_device(context, Origin::Inside)
}

/// Handles the packets that a Pod receives.
#[classifier]
pub fn lb_tc_to_pod(context: TcContext) -> i32 {
    to_device(context, Origin::Inside)
}

/// Handles the packets that come back from the kernel's own reassembly: they come in through their
/// device again.
#[classifier]
pub fn lb_tc_from_reassembly(context: TcContext) -> i32 {
    // No other packets are sent here.
    TcPacket::new(context).reinject().unwrap_or(TC_ACT_SHOT)
}

/// As [`lb_tc_from_network`], on a device whose packets begin with the IP header.
#[classifier]
pub fn lb_tc_from_network_layer3(context: TcContext) -> i32 {
    from_layer3(context, Origin::Outside)
}

/// As [`lb_tc_from_pod`], on a device whose packets begin with the IP header.
#[classifier]
pub fn lb_tc_from_pod_layer3(context: TcContext) -> i32 {
    from_layer3(context, Origin::Inside)
}

/// Handles the packets that leave through a device whose packets begin with the IP header.
#[classifier]
pub fn lb_tc_to_layer3(context: TcContext) -> i32 {
    let mut packet = TcPacket::new(context);
    let network = packet.network();
    let verdict = leave(&mut packet, network, 0, Origin::Outside);
    end(&packet, verdict)
}

#[inline(always)]
fn from_device(context: TcContext, origin: Origin) -> i32 {
    // The packet belongs to the VLAN device, whose programs see it without the tag, or to no device
    // of this node.
    if is_of_vlan(&context) {
        return TC_ACT_UNSPEC;
    }
    let mut packet = TcPacket::new(context);
    let network = parse::network(&packet);
    let verdict = enter(&mut packet, network, BEHIND_ETHERNET, origin);
    begin(&packet, verdict)
}

#[inline(always)]
fn from_layer3(context: TcContext, origin: Origin) -> i32 {
    let mut packet = TcPacket::new(context);
    let network = packet.network();
    let verdict = enter(&mut packet, network, 0, origin);
    begin(&packet, verdict)
}

/// The action for a packet that enters the stack.
#[inline(always)]
fn begin(packet: &TcPacket, verdict: Verdict) -> i32 {
    if matches!(verdict, Verdict::Bounce | Verdict::Redirect) {
        packet.remove_priority_tag();
    }
    match verdict {
        // The action is not final: programs of other projects on the same device run too.
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Bounce => helpers::send_out_of(packet.device()),
        Verdict::Redirect => TC_ACT_REDIRECT,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn to_device(context: TcContext, destination: Origin) -> i32 {
    if is_of_vlan(&context) {
        return TC_ACT_UNSPEC;
    }
    let mut packet = TcPacket::new(context);
    let network = parse::network(&packet);
    let verdict = leave(&mut packet, network, BEHIND_ETHERNET, destination);
    end(&packet, verdict)
}

/// The action for a packet that leaves the stack.
#[inline(always)]
fn end(packet: &TcPacket, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Bounce => helpers::receive_at(packet.device()),
        Verdict::Redirect => TC_ACT_REDIRECT,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

/// Returns the verdict for a packet that enters the stack, with its IP header at `offset`.
#[inline(always)]
fn enter(packet: &mut impl Packet, network: NetworkHeader, offset: u32, origin: Origin) -> Verdict {
    match network {
        NetworkHeader::V4 => decide::enter::<Address4>(packet, &KernelTables, offset, origin),
        NetworkHeader::V6 => decide::enter::<Address6>(packet, &KernelTables, offset, origin),
        NetworkHeader::Other => Verdict::Pass,
    }
}

/// Returns the verdict for a packet that leaves the stack, with its IP header at `offset`.
#[inline(always)]
fn leave(packet: &mut impl Packet, network: NetworkHeader, offset: u32, destination: Origin) -> Verdict {
    match network {
        NetworkHeader::V4 => decide::leave::<Address4>(packet, &KernelTables, offset, destination),
        NetworkHeader::V6 => decide::leave::<Address6>(packet, &KernelTables, offset, destination),
        NetworkHeader::Other => Verdict::Pass,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Lets the programs call helpers that the kernel reserves for GPL-compatible code.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
