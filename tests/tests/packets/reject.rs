//! Packets without a backend are answered with RST or port unreachable, or dropped, and counted.

use std::net::SocketAddr;

use etherparse::{IpNumber, TcpHeader};
use lb_agent::maps::{FrontendKey, MapOp, Protocol};
use lb_common::layout::{Frontend, Region, frontend_flags};
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, NODE, SENDER, ack, see, syn, tcp, udp};
use lb_tests::packet::world::{DEVICES, PROTOCOLS, World, at, first, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

/// Asserts that a packet is answered with RST, between swapped addresses; returns the RST's header.
fn reset(datapath: &mut Datapath, program: &str, packet: &Build) -> TcpHeader {
    let packet = packet.bytes();
    let bytes = datapath.bounce(program, &packet);
    let (request, answer) = (see(&packet), see(&bytes));
    assert_eq!(answer.source, request.destination, "{bytes:02x?}");
    assert_eq!(answer.destination, request.source, "{bytes:02x?}");
    assert_eq!((answer.link_source, answer.link_destination), (NODE, SENDER));
    assert!(answer.payload.is_empty(), "{bytes:02x?}");
    let header = answer.tcp().clone();
    assert!(header.rst && !header.syn && !header.fin, "{bytes:02x?}");
    assert_eq!((header.header_len(), header.window_size), (20, 0), "{bytes:02x?}");
    header
}

/// Asserts that a datagram is answered with port unreachable that quotes it.
fn unreachable(datapath: &mut Datapath, program: &str, packet: &Build) {
    let packet = packet.bytes();
    let bytes = datapath.bounce(program, &packet);
    let (request, answer) = (see(&packet), see(&bytes));
    let is_ipv4 = request.source.is_ipv4();
    assert_eq!(
        answer.icmp(),
        if is_ipv4 { (3, 3) } else { (1, 4) },
        "{bytes:02x?}"
    );
    assert_eq!(answer.source.ip(), request.destination.ip(), "{bytes:02x?}");
    assert_eq!(answer.destination.ip(), request.source.ip(), "{bytes:02x?}");
    assert_eq!((answer.link_source, answer.link_destination), (NODE, SENDER));
    let network = 14;
    let quoted = network + if is_ipv4 { 28 } else { 48 };
    assert_eq!(answer.payload, packet[network..quoted], "{bytes:02x?}");
}

/// Runs a check with a Service without backends, for every device and family. The check returns its
/// number of packets, all of which must be counted as `reason`.
fn without_backends(reason: Reason, mut check: impl FnMut(&mut Datapath, &str, &World) -> u64) {
    let Some(mut datapath) = datapath() else { return };
    let mut total = 0;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[]);
        for key in [
            FrontendKey::Wildcard(world.vip.ip()),
            FrontendKey::Wildcard(world.vip2.ip()),
        ] {
            let value = Frontend {
                flags: frontend_flags::WILDCARD,
                ..Frontend::default()
            };
            datapath.apply(&MapOp::SetFrontend { key, value });
        }
        let mut count = 0;
        for device in DEVICES {
            count += check(&mut datapath, device.ingress, &world);
        }
        total += count;
        let rejected = if reason == Reason::NoEndpoint { count } else { 0 };
        assert_eq!(datapath.stats(service), (0, rejected));
    }
    assert_eq!(datapath.reasons(), [(reason, total)]);
    assert_eq!(datapath.flow_count(), 0);
}

#[test]
fn a_syn_is_acknowledged_and_reset() {
    without_backends(Reason::NoEndpoint, |datapath, program, world| {
        let packet = syn(world.client, world.vip).payload(&[]);
        let header = reset(datapath, program, &packet);
        // RFC 9293 section 3.10.7.1: the answer to a segment without ACK has sequence number 0 and
        // acknowledges the segment, in which SYN counts as one.
        assert!(header.ack);
        assert_eq!((header.sequence_number, header.acknowledgment_number), (0, 1001));
        1
    });
}

#[test]
fn a_reset_has_the_acknowledged_sequence_number() {
    without_backends(Reason::NoEndpoint, |datapath, program, world| {
        let header = reset(datapath, program, &ack(world.client, world.vip));
        assert!(!header.ack);
        assert_eq!((header.sequence_number, header.acknowledgment_number), (2000, 0));
        1
    });
}

#[test]
fn a_reset_acknowledges_payload_syn_and_fin() {
    without_backends(Reason::NoEndpoint, |datapath, program, world| {
        let segment = || tcp(world.client, world.vip);
        let cases = [
            (segment().payload(&[]), 1000),
            (segment().payload(&[7; 100]), 1100),
            (segment().flags(|header| header.fin = true).payload(&[]), 1001),
            (segment().flags(|header| header.fin = true).payload(&[7; 9]), 1010),
            (
                segment()
                    .flags(|header| header.set_options_raw(&[1; 12]).expect("fits"))
                    .payload(&[7; 5]),
                1005,
            ),
            (
                segment()
                    .flags(|header| (header.sequence_number, header.syn) = (u32::MAX, true))
                    .payload(&[]),
                0,
            ),
        ];
        let count = cases.len();
        for (packet, acknowledged) in cases {
            let header = reset(datapath, program, &packet);
            assert!(header.ack);
            assert_eq!(
                (header.sequence_number, header.acknowledgment_number),
                (0, acknowledged)
            );
        }
        u64::try_from(count).expect("few")
    });
}

#[test]
fn padding_is_not_acknowledged() {
    without_backends(Reason::NoEndpoint, |datapath, program, world| {
        let packet = [syn(world.client, world.vip).payload(&[]).bytes(), vec![0xa5; 20]].concat();
        let bytes = datapath.bounce(program, &packet);
        assert_eq!(see(&bytes).tcp().acknowledgment_number, 1001, "{bytes:02x?}");
        1
    });
}

#[test]
fn a_reset_has_no_ip_options_or_extension_headers() {
    without_backends(Reason::NoEndpoint, |datapath, program, world| {
        let packet = syn(world.client, world.vip).payload(&[7; 3]);
        let packet = if world.vip.is_ipv4() {
            packet.options(&[1; 8])
        } else {
            packet.extension(60, &[0; 14])
        };
        let header = reset(datapath, program, &packet);
        assert_eq!(header.acknowledgment_number, 1004);
        1
    });
}

#[test]
fn a_reset_is_never_answered() {
    without_backends(Reason::NoEndpoint, |datapath, program, world| {
        for packet in [ack(world.client, world.vip), syn(world.client, world.vip)] {
            let packet = packet.flags(|header| header.rst = true);
            datapath.dropped(program, &packet.bytes());
        }
        2
    });
}

#[test]
fn a_datagram_is_answered_with_port_unreachable() {
    without_backends(Reason::NoEndpoint, |datapath, program, world| {
        for length in [0, 1, 8, 1200] {
            unreachable(
                datapath,
                program,
                &udp(world.client, world.vip).payload(&vec![7; length]),
            );
        }
        unreachable(
            datapath,
            program,
            &udp(world.client, world.vip).without_checksum(),
        );
        5
    });
}

#[test]
fn a_datagram_with_ip_options_is_dropped() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[]);
        let packet = udp(world.client, world.vip);
        let packet = if world.vip.is_ipv4() {
            packet.options(&[1; 4])
        } else {
            packet.extension(60, &[0; 6])
        };
        datapath.dropped("lb_xdp", &packet.bytes());
        datapath.dropped("lb_tc_from_pod", &packet.bytes());
    }
    assert_eq!(
        datapath.reasons(),
        [(Reason::NoEndpoint, 4), (Reason::AnswerFailed, 4)]
    );
}

#[test]
fn packets_to_unknown_ports_are_rejected() {
    without_backends(Reason::UnknownPort, |datapath, program, world| {
        for address in [world.vip, world.vip2] {
            let unknown = SocketAddr::new(address.ip(), 9999);
            reset(datapath, program, &syn(world.client, unknown));
            unreachable(datapath, program, &udp(world.client, unknown));
        }
        4
    });
}

#[test]
fn unknown_ports_without_a_wildcard_row_pass() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[]);
        let unknown = SocketAddr::new(world.vip.ip(), 9999);
        for device in DEVICES {
            for protocol in PROTOCOLS {
                datapath.untouched(device.ingress, &first(protocol, world.client, unknown).bytes());
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

/// A Service with one Pod in the cluster region and another in the local one.
fn with_regions(datapath: &mut Datapath, service: u32, world: &World, flags: u32, local: u32) {
    datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
    let base = service * 100;
    for key in keys(world.vip) {
        let value = Frontend {
            service,
            flags,
            cluster: Region { base, length: 1 },
            local: Region {
                base: base + 1,
                length: local,
            },
            ..Frontend::default()
        };
        datapath.apply(&MapOp::SetFrontend { key, value });
    }
}

#[test]
fn the_traffic_policy_selects_the_region() {
    let Some(mut datapath) = datapath() else { return };
    let (inside, outside) = (frontend_flags::INSIDE_LOCAL, frontend_flags::OUTSIDE_LOCAL);
    for (index, world) in (0..).zip(worlds()) {
        for (case, flags) in (0..).zip([0, inside, outside, inside | outside]) {
            let service = 1 + index * 4 + case;
            let port = 1000 + u16::try_from(service).expect("few") * 10;
            with_regions(&mut datapath, service, &world, flags, 1);
            for (program, local) in [
                ("lb_xdp", flags & outside),
                ("lb_tc_from_network", flags & outside),
                ("lb_tc_from_pod", flags & inside),
            ] {
                let pod = if local == 0 { world.pod } else { world.pod2 };
                // Each program needs another source, because the programs share the flows.
                let client = world.client_at(port + u16::try_from(program.len() % 10).expect("few"));
                for protocol in PROTOCOLS {
                    let bytes = datapath.pass(program, &first(protocol, client, world.vip).bytes());
                    assert_eq!(see(&bytes).destination, pod, "{program} {flags}");
                }
            }
        }
    }
}

#[test]
fn packets_without_a_local_endpoint_are_dropped() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        with_regions(&mut datapath, service, &world, frontend_flags::OUTSIDE_LOCAL, 0);
        for protocol in PROTOCOLS {
            let packet = first(protocol, world.client, world.vip).bytes();
            datapath.dropped("lb_xdp", &packet);
            datapath.dropped("lb_tc_from_network", &packet);
            // Clients inside reach all endpoints of the cluster.
            assert_eq!(
                see(&datapath.pass("lb_tc_from_pod", &packet)).destination,
                world.pod
            );
        }
        assert_eq!(datapath.stats(service), (2, 4));
    }
    assert_eq!(datapath.reasons(), [(Reason::NoLocalEndpoint, 8)]);
}

#[test]
fn replaced_backends_are_not_chosen() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
        // The slots still name the previous endpoint of the row.
        datapath.replace(service * 100, world.node);
        let mut passed: u64 = 0;
        let before = datapath.reason(Reason::StaleSlots);
        for port in 0..100 {
            let packet = syn(world.client_at(1000 + port), world.vip).bytes();
            let (verdict, bytes) = datapath.verdict("lb_xdp", &packet);
            if verdict == lb_common::packet::Verdict::Pass {
                passed += 1;
                assert_eq!(see(&bytes).destination, world.pod2);
                // The client keeps its port: a stale slot does not mean that the port is in use.
                assert_eq!(see(&bytes).source, world.client_at(1000 + port));
            } else {
                unchanged(&bytes, &packet);
            }
        }
        let dropped = datapath.reason(Reason::StaleSlots) - before;
        assert_eq!(passed + dropped, 100);
        // All four attempts meet the stale slot with a probability of 1 in 16.
        assert!(dropped < 50, "{dropped}");
        assert_eq!(datapath.stats(service), (passed, 0));
    }
}

fn unchanged(bytes: &[u8], packet: &[u8]) {
    assert_eq!(bytes, packet, "{packet:02x?} -> {bytes:02x?}");
}

#[test]
fn packets_without_a_valid_slot_are_dropped() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        datapath.replace(service * 100, world.pod2.ip());
        for device in DEVICES {
            for protocol in PROTOCOLS {
                datapath.dropped(device.ingress, &first(protocol, world.client, world.vip).bytes());
            }
        }
        assert_eq!(datapath.stats(service), (0, 0));
    }
    assert_eq!(datapath.reasons(), [(Reason::StaleSlots, 12)]);
    assert_eq!(datapath.flow_count(), 0);
}

#[test]
fn the_next_packet_finds_the_first_endpoint() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        for protocol in PROTOCOLS {
            datapath.service(service, &keys(world.vip), &[]);
            let packet = first(protocol, world.client, world.vip).bytes();
            let bytes = datapath.bounce("lb_tc_from_pod", &packet);
            let expected = match protocol {
                Protocol::Tcp => IpNumber::TCP,
                _ if world.vip.is_ipv4() => IpNumber::ICMP,
                _ => IpNumber::IPV6_ICMP,
            };
            let number = if world.vip.is_ipv4() { bytes[23] } else { bytes[20] };
            assert_eq!(number, expected.0, "{bytes:02x?}");
            datapath.service(service, &keys(world.vip), &[at(world.pod)]);
            assert_eq!(
                see(&datapath.pass("lb_tc_from_pod", &packet)).destination,
                world.pod
            );
        }
    }
}
