//! GSO packets: the route's MTU limits the segments, not the whole packet.

use std::net::SocketAddr;

use lb_agent::maps::{BackendState, Protocol};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, see};
use lb_tests::packet::network::{NARROW_MTU, Place, TestNetwork, serve_from};
use lb_tests::packet::world::{PROGRAMS, PROTOCOLS, World, answer, at, data, first, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

const PROGRAM: &str = "lb_tc_from_network";
/// Payload length of the packets: more than the MTU of the route.
const PAYLOAD: usize = 3000;
/// TCP options: two no-operation options, then timestamps.
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

/// Runs a check for both families and all protocols, with a backend behind a route with a small
/// MTU.
fn with_narrow_route(mut check: impl FnMut(&mut Datapath, &World, Protocol)) {
    let Some(mut datapath) = datapath() else { return };
    let Some(_network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve_from(&mut datapath, Place::Narrow);
    for world in worlds() {
        for protocol in PROTOCOLS {
            check(&mut datapath, &world, protocol);
        }
    }
}

#[test]
fn segments_within_the_mtu_are_forwarded() {
    with_narrow_route(|datapath, world, protocol| {
        let packet = large(world, protocol);
        datapath.segment_size = NARROW_MTU - headers(world, protocol);
        // The first packet opens a flow, the second uses it.
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
fn segments_above_the_mtu_are_answered_with_an_error() {
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

/// BIG TCP: the length in the IP header is 0 because the field is too small. In IPv6 there may be a
/// hop-by-hop header with a jumbo payload option.
fn without_length(world: &World) -> Vec<Build> {
    const JUMBO_PAYLOAD: [u8; 6] = [0xc2, 4, 0, 1, 0x11, 0x88];
    let packet = large(world, Protocol::Tcp).without_length();
    if world.vip.is_ipv4() {
        vec![packet]
    } else {
        vec![packet.clone().extension(0, &JUMBO_PAYLOAD), packet]
    }
}

/// The source port of a TCP segment behind this many bytes of extension headers.
fn source_port(frame: &[u8], extensions: usize) -> u16 {
    let network = if frame[14] >> 4 == 4 { 20 } else { 40 };
    let transport = 14 + network + extensions;
    u16::from_be_bytes([frame[transport], frame[transport + 1]])
}

#[test]
fn big_tcp_packets_are_translated_in_both_directions() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        let syn = first(Protocol::Tcp, world.client, world.vip);
        for program in [PROGRAM, "lb_tc_from_pod"] {
            datapath.pass(program, &syn.bytes());
        }
        let accepted = answer(Protocol::Tcp, world.pod, world.client);
        datapath.pass("lb_tc_to_pod", &accepted.bytes());
        datapath.segment_size = 1400;
        for packet in without_length(&world) {
            for program in [PROGRAM, "lb_tc_from_pod"] {
                let request = packet.clone().between(world.client, world.pod);
                assert_eq!(datapath.pass(program, &packet.bytes()), request.bytes());
            }
            let reply = packet.clone().between(world.pod, world.client);
            let translated = packet.between(world.vip, world.client);
            for program in ["lb_tc_to_network", "lb_tc_to_pod"] {
                assert_eq!(datapath.pass(program, &reply.bytes()), translated.bytes());
            }
        }
        datapath.segment_size = 0;
        // Without GSO, a length of 0 is invalid.
        for packet in without_length(&world) {
            for program in PROGRAMS {
                datapath.untouched(program, &packet.bytes());
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn big_tcp_packets_are_forwarded_if_their_segments_fit() {
    with_narrow_route(|datapath, world, protocol| {
        if protocol == Protocol::Udp {
            return;
        }
        for packet in without_length(world) {
            let extensions = packet.bytes().len() - large(world, protocol).bytes().len();
            let headers = headers(world, protocol) + u32::try_from(extensions).expect("few");
            datapath.segment_size = 0;
            datapath.verdict(PROGRAM, &first(protocol, world.client, world.vip).bytes());
            datapath.segment_size = NARROW_MTU - headers;
            let (verdict, bytes) = datapath.verdict(PROGRAM, &packet.bytes());
            assert_eq!(verdict, Verdict::Redirect, "{bytes:02x?}");
            let source = SocketAddr::new(world.back_address(), source_port(&bytes, extensions));
            let expected = packet.clone().between(source, world.backend_at(Place::Narrow));
            assert_eq!(bytes, expected.hop_limit(63).bytes());
            datapath.segment_size += 1;
            let (verdict, _) = datapath.verdict(PROGRAM, &packet.bytes());
            let expected = if extensions == 0 {
                Verdict::Bounce
            } else {
                Verdict::Drop
            };
            assert_eq!(verdict, expected);
            datapath.forget();
        }
    });
}

/// Packets for a removed backend are answered with a RST.
#[test]
fn big_tcp_packets_to_removed_backends_are_reset() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        for packet in without_length(&world) {
            datapath.set_state(service * 100, BackendState::Active);
            datapath.segment_size = 0;
            datapath.pass(PROGRAM, &first(Protocol::Tcp, world.client, world.vip).bytes());
            datapath.set_state(service * 100, BackendState::Gone);
            datapath.segment_size = 1400;
            let answer = see(&datapath.bounce(PROGRAM, &packet.bytes()));
            assert_eq!((answer.source, answer.destination), (world.vip, world.client));
            assert!(answer.tcp().rst);
        }
    }
}

/// The same packet without GSO is too big.
#[test]
fn packets_without_gso_are_compared_with_the_mtu() {
    with_narrow_route(|datapath, world, protocol| {
        datapath.segment_size = 0;
        datapath.bounce(PROGRAM, &large(world, protocol).bytes());
    });
}
