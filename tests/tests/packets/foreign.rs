//! Packets that do not belong to Services pass every program unchanged, and no packet is corrupted.

use std::cell::RefCell;
use std::net::SocketAddr;

use lb_tests::packet::build::{Build, Link, SENDER, ack, icmp, syn, udp};
use lb_tests::packet::checksums::faults;
use lb_tests::packet::network::TestNetwork;
use lb_tests::packet::world::{DEVICES, PROGRAMS, PROTOCOLS, World, at, first, keys, worlds};
use lb_tests::packet::{Borrowed, Datapath, datapath};
use lb_tests::slowness::cases;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A Service of one Pod for each family, with flows open in both directions.
fn prepared() -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        for protocol in PROTOCOLS {
            datapath.pass("lb_xdp", &first(protocol, world.client, world.vip).bytes());
        }
    }
    Some(datapath)
}

/// Asserts that no program changes a packet.
fn untouched(datapath: &mut Datapath, packet: &[u8]) {
    for program in PROGRAMS {
        datapath.untouched(program, packet);
    }
}

/// Requests to a frontend and replies. The programs rewrite them if they are valid.
fn ours(world: &World) -> [Build; 4] {
    [
        syn(world.client, world.vip),
        ack(world.pod, world.client),
        udp(world.client, world.vip),
        udp(world.pod, world.client),
    ]
}

/// The ingress programs.
const FROM_DEVICES: [&str; 3] = ["lb_xdp", "lb_tc_from_network", "lb_tc_from_pod"];

/// Offset of the IP header.
const NETWORK: usize = 14;

#[test]
fn packets_of_other_protocols_pass() {
    let Some(mut datapath) = prepared() else { return };
    for (world, field) in worlds().into_iter().zip([NETWORK + 9, NETWORK + 6]) {
        for packet in ours(&world) {
            for number in [1, 2, 4, 41, 47, 50, 58, 89, 132, 136, 255] {
                let mut bytes = packet.bytes();
                bytes[field] = number;
                untouched(&mut datapath, &bytes);
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn frames_of_other_ethertypes_pass() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for packet in ours(&world) {
            // A length (802.3), ARP, MPLS, PPPoE, LLDP, experimental.
            for ethertype in [0x0040_u16, 0x0806, 0x8847, 0x8864, 0x88cc, 0x88b5] {
                let mut bytes = packet.bytes();
                bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
                untouched(&mut datapath, &bytes);
            }
        }
    }
}

/// Such frames arrive if a switch floods them or the device is promiscuous.
#[test]
fn frames_for_other_link_layer_addresses_pass() {
    const ADDRESSES: [[u8; 6]; 6] = [
        [2, 0, 0, 0, 0, 9],
        // One byte differs from the node's address.
        [2, 0, 0, 0, 1, 2],
        [2, 0, 0, 0, 0, 3],
        // Broadcast and multicast (RFC 1112 section 6.4, RFC 2464 section 7).
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
    ];
    let Some(mut datapath) = prepared() else { return };
    for (service, world) in (11..).zip(worlds()) {
        // Connections to this Service are refused.
        datapath.service(service, &keys(world.vip2), &[]);
        let unknown = SocketAddr::new(world.client.ip(), 999);
        let mut packets = ours(&world).to_vec();
        packets.extend(PROTOCOLS.map(|protocol| first(protocol, unknown, world.vip)));
        packets.extend(PROTOCOLS.map(|protocol| first(protocol, unknown, world.vip2)));
        packets.push(udp(unknown, world.vip).fragment(0, true));
        let echo = if world.vip.is_ipv4() { 8 } else { 128 };
        packets.push(icmp(world.client.ip(), world.vip.ip(), [echo, 0], 7));
        let flows = datapath.flow_count();
        for (packet, destination) in packets
            .iter()
            .flat_map(|packet| ADDRESSES.map(|address| (packet, address)))
        {
            let link = Link {
                destination,
                source: SENDER,
            };
            let bytes = packet.clone().link(link).bytes();
            for program in FROM_DEVICES {
                datapath.untouched(program, &bytes);
            }
        }
        assert_eq!(datapath.flow_count(), flows);
        // The same packets with the node's link-layer address are translated.
        for program in FROM_DEVICES {
            let bytes = packets[0].bytes();
            assert_ne!(datapath.pass(program, &bytes), bytes, "{program}");
        }
    }
    assert_eq!(datapath.reasons(), []);
}

/// XDP passes packets to TC if it does not know the device's link-layer address.
#[test]
fn xdp_passes_packets_of_unknown_devices_to_tc() {
    let Some(mut datapath) = prepared() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    for world in worlds() {
        let bytes = ack(world.client, world.vip).bytes();
        assert_ne!(datapath.pass("lb_xdp", &bytes), bytes);
    }
    network.forget_links(&datapath);
    for world in worlds() {
        let bytes = ack(world.client, world.vip).bytes();
        datapath.untouched("lb_xdp", &bytes);
        assert_ne!(datapath.pass("lb_tc_from_network", &bytes), bytes);
        // On the other device, the link-layer destination is not the node's.
        datapath.device = network.back;
        datapath.untouched("lb_xdp", &bytes);
        datapath.untouched("lb_tc_from_network", &bytes);
        datapath.device = network.front;
    }
}

/// Tagged frames belong to a VLAN device, whose programs see them without the tags.
#[test]
fn frames_with_vlan_tags_pass() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for packet in ours(&world) {
            for tags in [&[1][..], &[1, 2], &[1, 2, 3]] {
                untouched(&mut datapath, &packet.clone().vlans(tags).bytes());
            }
        }
    }
}

#[test]
fn later_fragments_without_a_first_one_pass() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for packet in ours(&world) {
            for (offset, more) in [(1, true), (100, true), (100, false)] {
                untouched(&mut datapath, &packet.clone().fragment(offset, more).bytes());
            }
        }
    }
}

#[test]
fn truncated_packets_pass_unchanged() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for packet in ours(&world) {
            let options = packet.clone();
            let options = if world.vip.is_ipv4() {
                options.options(&[1; 12])
            } else {
                options.extension(60, &[0; 14])
            };
            for packet in [packet, options] {
                let bytes = packet.bytes();
                // The kernel runs no program on less than an Ethernet header.
                for length in NETWORK..bytes.len() {
                    // It runs no TC program without a whole IP header behind that.
                    for program in PROGRAMS {
                        if let Some(outcome) = datapath.try_run(program, &bytes[..length]) {
                            assert_eq!(outcome.bytes, bytes[..length], "{program} {:02x?}", outcome.bytes);
                            let pass = if program == "lb_xdp" { 2 } else { u32::MAX };
                            assert_eq!(outcome.action, pass, "{program} {:02x?}", outcome.bytes);
                        }
                    }
                }
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn invalid_ipv4_headers_pass_unchanged() {
    let Some(mut datapath) = prepared() else { return };
    let [world, _] = worlds();
    for packet in ours(&world) {
        let good = packet.bytes();
        let length = u16::from_be_bytes([good[16], good[17]]);
        for version_and_length in [0x05, 0x35, 0x65, 0xf5, 0x40, 0x44, 0x4f] {
            let mut bytes = good.clone();
            bytes[NETWORK] = version_and_length;
            untouched(&mut datapath, &bytes);
        }
        for total in [0, 19, 20, 27, length + 1, u16::MAX] {
            let mut bytes = good.clone();
            bytes[16..18].copy_from_slice(&total.to_be_bytes());
            untouched(&mut datapath, &bytes);
        }
    }
}

#[test]
fn invalid_ipv6_headers_pass_unchanged() {
    let Some(mut datapath) = prepared() else { return };
    let [_, world] = worlds();
    for packet in ours(&world) {
        let good = packet.bytes();
        let length = u16::from_be_bytes([good[18], good[19]]);
        for version in [0x00, 0x40, 0x50, 0x70] {
            let mut bytes = good.clone();
            bytes[NETWORK] = version;
            untouched(&mut datapath, &bytes);
        }
        for total in [0, 7, length + 1, u16::MAX] {
            let mut bytes = good.clone();
            bytes[18..20].copy_from_slice(&total.to_be_bytes());
            untouched(&mut datapath, &bytes);
        }
    }
}

#[test]
fn invalid_tcp_headers_pass_unchanged() {
    let Some(mut datapath) = prepared() else { return };
    for (world, transport) in worlds().into_iter().zip([NETWORK + 20, NETWORK + 40]) {
        for packet in [syn(world.client, world.vip), ack(world.pod, world.client)] {
            // The segment has 20 bytes of header and 7 of payload, so a header of 28 bytes does not
            // fit.
            for words in [0, 1, 4, 7, 15] {
                let mut bytes = packet.bytes();
                bytes[transport + 12] = words << 4;
                untouched(&mut datapath, &bytes);
            }
        }
    }
}

#[test]
fn packets_to_other_addresses_and_ports_pass() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for protocol in PROTOCOLS {
            for (source, destination) in [
                (world.client, world.pod),
                (world.client, world.vip2),
                (world.vip, world.client),
                (world.pod, world.client_at(39_999)),
                (world.pod2, world.client),
            ] {
                untouched(&mut datapath, &first(protocol, source, destination).bytes());
            }
        }
    }
}

#[test]
fn requests_at_egress_and_replies_at_ingress_pass() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            for protocol in PROTOCOLS {
                datapath.untouched(device.egress, &first(protocol, world.client, world.vip).bytes());
                datapath.untouched(device.ingress, &first(protocol, world.pod, world.client).bytes());
            }
        }
    }
}

/// A translatable packet with changed bytes, truncated or padded.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let packets: Vec<_> = worlds()
        .iter()
        .flat_map(ours)
        .flat_map(|packet| {
            [
                packet.bytes(),
                packet.clone().vlans(&[7]).bytes(),
                packet.vlans(&[7, 8]).bytes(),
            ]
        })
        .collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::sample::select(packets), changes, 0_usize..120).prop_map(|(mut bytes, changes, length)| {
        for (at, value) in changes {
            let at = at.index(bytes.len().min(70));
            bytes[at] = value;
        }
        match length {
            // Most packets stay whole, because truncated ones are not parsed.
            ..20 => bytes.truncate(NETWORK.max(bytes.len() - length)),
            20..40 => bytes.resize(bytes.len() + length, 0xa5),
            _ => {}
        }
        bytes
    })
}

/// Frames of random bytes behind the ethertypes that the programs parse.
fn random() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop::sample::select(vec![0x0800_u16, 0x86dd, 0x8100, 0x88a8]);
    (ethertype, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(ethertype, rest)| {
        let mut bytes = vec![2; 12];
        bytes.extend_from_slice(&ethertype.to_be_bytes());
        bytes.extend_from_slice(&rest);
        bytes
    })
}

#[test]
fn damaged_and_random_packets_are_not_corrupted() {
    let Some(datapath) = prepared() else { return };
    let datapath = RefCell::new(datapath);
    let config = Config {
        cases: cases(3000),
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&prop_oneof![4 => damaged(), 1 => random()], |packet| {
        let mut datapath = datapath.borrow_mut();
        for program in PROGRAMS {
            let Some(outcome) = datapath.try_run(program, &packet) else {
                continue;
            };
            let (passed, dropped, answered) = match program {
                "lb_xdp" => (2, 1, 3),
                _ => (u32::MAX, 2, 7),
            };
            // A changed flag may turn a SYN into a segment of an unknown connection, which is
            // reset, or into a RST.
            if outcome.action == answered {
                let faults = faults(&outcome.bytes);
                prop_assert!(faults.is_empty(), "{}: {:02x?}: {:?}", program, &packet, faults);
                continue;
            }
            if outcome.action == dropped {
                prop_assert_eq!(&outcome.bytes, &packet, "{}", program);
                continue;
            }
            prop_assert!(
                residuals(&packet) == residuals(&outcome.bytes) && packet.len() == outcome.bytes.len(),
                "{}: {:02x?} -> {:02x?}",
                program,
                &packet,
                &outcome.bytes
            );
            prop_assert_eq!(outcome.action, passed, "{}: {:02x?}", program, &packet);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_later_fragment_of_a_remembered_datagram_is_not_corrupted() {
    let fragment: &[u8] = &[
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
        0x45, 0, 0, 28, 0, 0, 1, 0, 64, 17, 0, 0, 198, 51, 100, 7, 10, 96, 0, 10, // offset 2048
        1, 2, 3, 4, 5, 6, 7, 8,
    ];
    let mut translated = fragment.to_vec();
    translated[30..34].copy_from_slice(&[10, 96, 0, 10]);
    assert_eq!(residuals(fragment), residuals(&translated));
    translated[30..34].copy_from_slice(&[10, 1, 0, 5]);
    // The header's checksum is not corrected here.
    assert_ne!(residuals(fragment)[0], residuals(&translated)[0]);
    assert_eq!(residuals(fragment)[1], residuals(&translated)[1]);
    translated[41] = 9;
    assert_ne!(residuals(fragment)[1], residuals(&translated)[1]);
}

/// The errors of a packet's checksums: of the IPv4 header, and of the addresses with everything
/// behind the IP header. Programs must not change these errors: valid checksums stay valid, and
/// wrong ones stay wrong by the same amount.
fn residuals(bytes: &[u8]) -> [u32; 2] {
    let mut network = NETWORK;
    while matches!(bytes.get(network - 2..network), Some([0x81, 0x00] | [0x88, 0xa8])) {
        network += 4;
    }
    let ethertype = bytes.get(network - 2..network).unwrap_or_default();
    let (protocol, addresses, header, checksummed) = match ethertype {
        [0x08, 0x00] => {
            let length = usize::from(bytes.get(network).unwrap_or(&0) & 0xf) * 4;
            (9, 12, length, length)
        }
        _ => (6, 8, 40, 0),
    };
    let part = |from: usize, to: usize| {
        bytes.get((network + from).min(bytes.len())..(network + to).min(bytes.len()))
    };
    let is_udp = part(protocol, protocol + 1) == Some(&[17]);
    let offset = |field: Option<&[u8]>, mask: u16| {
        field.is_some_and(|bytes| bytes.len() == 2 && u16::from_be_bytes([bytes[0], bytes[1]]) & mask != 0)
    };
    let is_later = match protocol {
        9 => offset(part(6, 8), 0x1fff),
        _ => part(protocol, protocol + 1) == Some(&[44]) && offset(part(42, 44), 0xfff8),
    };
    let rest = match part(header + 6, header + 8) {
        // The checksum that covers the addresses is in the first fragment. An earlier packet of
        // this test may be that fragment.
        _ if is_later => sum(part(header, bytes.len())),
        // A UDP checksum of 0 means no checksum.
        Some([0, 0]) if is_udp => 0,
        _ => sum(part(addresses, bytes.len())),
    };
    [sum(part(0, checksummed)), rest]
}

/// The ones' complement sum of big-endian 16-bit words.
fn sum(bytes: Option<&[u8]>) -> u32 {
    let halves = bytes.unwrap_or_default().chunks(2);
    let sum: u32 = halves
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    sum % 0xffff
}
