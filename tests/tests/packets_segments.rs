//! Packets that their sender leaves to be cut into segments (GSO): what counts against the MTU of a route is the
//! segment, not the packet.

use lb_agent::maps::Protocol;
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, see};
use lb_tests::packet::network::{NARROW_MTU, Network, Place};
use lb_tests::packet::world::{PROTOCOLS, World, at, data, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

const PROGRAM: &str = "lb_tc_from_network";
/// Payload of the packets: more than the route takes at once.
const PAYLOAD: usize = 3000;
/// Of the TCP header: no operation, no operation, timestamps.
const OPTIONS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

/// Length of the headers of each segment.
fn headers(world: &World, protocol: Protocol) -> u32 {
    let network = if world.vip.is_ipv4() { 20 } else { 40 };
    let transport = match protocol {
        Protocol::Tcp => 20 + OPTIONS.len(),
        _ => 8,
    };
    network + u32::try_from(transport).expect("few")
}

/// A packet of several segments.
fn large(world: &World, protocol: Protocol) -> Build {
    let packet = data(protocol, world.client, world.vip).payload(&[7; PAYLOAD]);
    match protocol {
        Protocol::Tcp => packet.flags(|header| header.set_options_raw(&OPTIONS).expect("they fit")),
        _ => packet,
    }
}

/// Runs a check for both families and protocols, with a backend behind a narrow route.
fn with_narrow_route(mut check: impl FnMut(&mut Datapath, &World, Protocol)) {
    let Some(mut datapath) = datapath() else { return };
    let Some(_network) = Network::enter(&mut datapath) else {
        return;
    };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.backend_at(Place::Narrow))]);
        datapath.change_backend(service * 100, |backend| backend.local = false);
        for protocol in PROTOCOLS {
            check(&mut datapath, &world, protocol);
        }
    }
}

#[test]
fn segments_that_fit_the_route_are_sent_on() {
    with_narrow_route(|datapath, world, protocol| {
        let packet = large(world, protocol);
        datapath.segment_size = NARROW_MTU - headers(world, protocol);
        // The first opens a flow, the second has one.
        for _ in 0..2 {
            let (verdict, bytes) = datapath.verdict(PROGRAM, &packet.bytes());
            assert_eq!(verdict, Verdict::Redirect, "{protocol}: {bytes:02x?}");
            let source = see(&bytes).source;
            let expected = packet.clone().between(source, world.backend_at(Place::Narrow));
            assert_eq!(bytes, expected.hop_limit(63).bytes(), "{protocol}");
        }
        assert_eq!(datapath.reasons(), []);
    });
}

#[test]
fn the_sender_of_segments_that_are_too_big_is_told() {
    let mut count = 0;
    with_narrow_route(|datapath, world, protocol| {
        let packet = large(world, protocol).bytes();
        datapath.segment_size = NARROW_MTU - headers(world, protocol) + 1;
        for _ in 0..2 {
            let answer = see(&datapath.bounce(PROGRAM, &packet));
            let kind = if world.vip.is_ipv4() { (3, 4) } else { (2, 0) };
            assert_eq!(answer.icmp(), kind, "{protocol}");
            assert_eq!(answer.destination.ip(), world.client.ip());
            count += 1;
        }
        assert_eq!(datapath.reasons(), [(Reason::TooBig, count)]);
    });
}

/// The same packet as one: it is too big, whatever its segments would have been.
#[test]
fn without_segments_it_is_the_packet_that_counts() {
    with_narrow_route(|datapath, world, protocol| {
        datapath.segment_size = 0;
        datapath.bounce(PROGRAM, &large(world, protocol).bytes());
    });
}
