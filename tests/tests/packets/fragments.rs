//! Fragmented datagrams: later fragments get the same translation as the first one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::layout::{Frontend, frontend_flags};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, Link, NODE, SENDER, see, syn, udp};
use lb_tests::packet::network::{BACK_LINK, CLIENT_LINK, Place, TestNetwork};
use lb_tests::packet::world::{
    DEVICES, Device, POD_DEVICE, PROTOCOLS, World, answer, at, data, first, keys, worlds,
};
use lb_tests::packet::{Borrowed, Datapath, datapath};

/// Content of all fragments but the last: a TCP header fits.
const LENGTH: usize = 24;

/// A Service of one Pod for each family, at an address with a wildcard row.
fn prepared() -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        let value = Frontend {
            flags: frontend_flags::WILDCARD,
            ..Frontend::default()
        };
        datapath.frontend(FrontendKey::Wildcard(world.vip.ip()), value);
    }
    Some(datapath)
}

/// A packet that is large enough for several fragments.
fn large(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Build {
    data(protocol, source, destination).payload(&[0x5a; 61])
}

/// Opens a connection.
fn open(datapath: &mut Datapath, device: Device, protocol: Protocol, world: &World) {
    datapath.pass(device.ingress, &first(protocol, world.client, world.vip).bytes());
    datapath.pass(device.egress, &answer(protocol, world.pod, world.client).bytes());
}

/// Splits a packet into two fragments.
fn two(packet: &Build, identification: u16) -> [Vec<u8>; 2] {
    packet
        .split(identification, 64)
        .try_into()
        .expect("two fragments")
}

/// Asserts that a program turns the fragments in `packets` into those in `expected`.
fn assert_translated(datapath: &mut Datapath, program: &str, packets: &[Vec<u8>], expected: &[Vec<u8>]) {
    assert_eq!(packets.len(), expected.len());
    for (packet, expected) in packets.iter().zip(expected) {
        let bytes = datapath.pass(program, packet);
        assert_eq!(&bytes, expected, "{program}: {packet:02x?} -> {bytes:02x?}");
    }
}

/// Many unrelated datagrams leave a node in fragments; they must not fill the table.
#[test]
fn fragments_that_leave_without_a_flow_add_no_rows() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            for packet in two(&large(Protocol::Udp, world.pod, world.client), 1) {
                assert_eq!(datapath.pass(device.egress, &packet), packet);
            }
        }
    }
    assert_eq!(datapath.fragments4().keys().count(), 0);
    assert_eq!(datapath.fragments6().keys().count(), 0);
}

#[test]
fn fragments_of_requests_and_replies_are_translated() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            for protocol in PROTOCOLS {
                datapath.forget();
                open(&mut datapath, device, protocol, &world);
                // A length of 1000 makes a single fragment, in IPv6 an "atomic fragment" (RFC
                // 6946).
                for (identification, length) in [(1, LENGTH), (2, 32), (0xfffe, 72), (3, 1000)] {
                    let packet = large(protocol, world.client, world.vip);
                    let expected = packet.clone().between(world.client, world.pod);
                    assert_translated(
                        &mut datapath,
                        device.ingress,
                        &packet.split(identification, length),
                        &expected.split(identification, length),
                    );
                    let packet = large(protocol, world.pod, world.client);
                    let expected = packet.clone().between(world.vip, world.client);
                    assert_translated(
                        &mut datapath,
                        device.egress,
                        &packet.split(identification, length),
                        &expected.split(identification, length),
                    );
                }
                // All packets belong to one connection.
                assert_eq!(datapath.flow_count(), 2);
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn fragments_without_a_checksum_are_translated() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            let packet = large(Protocol::Udp, world.client, world.vip).without_checksum();
            let expected = packet.clone().between(world.client, world.pod);
            assert_translated(
                &mut datapath,
                device.ingress,
                &packet.split(5, LENGTH),
                &expected.split(5, LENGTH),
            );
        }
    }
}

/// The source of a TCP or UDP packet, which may be a first fragment.
fn source(bytes: &[u8]) -> SocketAddr {
    let (address, ports): (IpAddr, usize) = if bytes[14] >> 4 == 4 {
        let octets: [u8; 4] = bytes[26..30].try_into().expect("four bytes");
        (Ipv4Addr::from(octets).into(), 34)
    } else {
        let octets: [u8; 16] = bytes[22..38].try_into().expect("sixteen bytes");
        (
            Ipv6Addr::from(octets).into(),
            if bytes[20] == 44 { 62 } else { 54 },
        )
    };
    SocketAddr::new(address, u16::from_be_bytes([bytes[ports], bytes[ports + 1]]))
}

/// Runs a program on fragments, asserts its verdict for each, and returns their bytes.
fn sent(datapath: &mut Datapath, program: &str, packets: &[Vec<u8>], verdict: Verdict) -> Vec<Vec<u8>> {
    let outcomes = packets.iter().map(|packet| {
        let (found, bytes) = datapath.verdict(program, packet);
        assert_eq!(found, verdict, "{program}: {packet:02x?} -> {bytes:02x?}");
        bytes
    });
    outcomes.collect()
}

#[test]
fn fragments_are_forwarded_to_other_nodes() {
    let Some(mut datapath) = prepared() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    for (service, world) in (1..).zip(worlds()) {
        let pod = world.backend_at(Place::Back);
        datapath.service(service, &keys(world.vip), &[at(pod)]);
        datapath.change_backend(service * 100, |backend| backend.local = false);
        for program in ["lb_xdp", "lb_tc_from_network"] {
            let expected = |packet: Build, link: Link| {
                let packet = packet.hop_limit(63);
                if program == "lb_xdp" {
                    packet.link(link)
                } else {
                    packet
                }
                .split(9, LENGTH)
            };
            for protocol in PROTOCOLS {
                datapath.forget();
                datapath.device = network.front;
                let packet = large(protocol, world.client, world.vip);
                let bytes = sent(
                    &mut datapath,
                    program,
                    &packet.split(9, LENGTH),
                    Verdict::Redirect,
                );
                let source = source(&bytes[0]);
                assert_eq!(source.ip(), world.back_address());
                assert_eq!(bytes, expected(packet.between(source, pod), BACK_LINK));

                datapath.device = network.back;
                let packet = large(protocol, pod, source);
                let bytes = sent(
                    &mut datapath,
                    program,
                    &packet.split(9, LENGTH),
                    Verdict::Redirect,
                );
                assert_eq!(
                    bytes,
                    expected(packet.between(world.vip, world.client), CLIENT_LINK)
                );
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn fragments_of_hairpin_connections_are_translated() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        let device = POD_DEVICE;
        for protocol in PROTOCOLS {
            let client = SocketAddr::new(world.pod.ip(), 40_000);
            datapath.bounce(device.ingress, &first(protocol, client, world.vip).bytes());
            let packet = large(protocol, client, world.vip);
            let bytes = sent(
                &mut datapath,
                device.ingress,
                &packet.split(7, LENGTH),
                Verdict::Bounce,
            );
            let back = Link {
                destination: SENDER,
                source: NODE,
            };
            let expected = packet.between(source(&bytes[0]), world.pod).link(back);
            assert_eq!(bytes, expected.split(7, LENGTH));
        }
    }
}

#[test]
fn later_fragments_without_the_first_are_dropped() {
    let Some(mut datapath) = prepared() else { return };
    let mut count = 0;
    for world in worlds() {
        for device in DEVICES {
            for protocol in PROTOCOLS {
                datapath.forget();
                open(&mut datapath, device, protocol, &world);
                let packet = large(protocol, world.client, world.vip);
                let [first, later] = two(&packet, 1);
                datapath.dropped(device.ingress, &later);
                count += 1;
                // After the first fragment, the later one is translated.
                let expected = two(&packet.between(world.client, world.pod), 1);
                assert_translated(&mut datapath, device.ingress, &[first, later], &expected);
            }
        }
    }
    assert_eq!(datapath.reasons(), [(Reason::UnknownFragment, count)]);
}

#[test]
fn fragments_for_other_addresses_pass() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            for protocol in PROTOCOLS {
                for destination in [world.pod, world.vip2] {
                    for fragment in large(protocol, world.client, destination).split(1, LENGTH) {
                        datapath.untouched(device.ingress, &fragment);
                    }
                }
                // Packets that leave are not requests, even if they are for a frontend.
                let packet = large(protocol, world.client, world.vip);
                for fragment in packet.split(1, LENGTH).iter().rev() {
                    datapath.untouched(device.egress, fragment);
                }
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
    assert_eq!(datapath.flow_count(), 0);
}

#[test]
fn later_fragments_are_translated_for_half_a_minute() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            datapath.forget();
            let packet = large(Protocol::Udp, world.client, world.vip);
            let [first, later] = two(&packet, 1);
            let expected = two(&packet.between(world.client, world.pod), 1);
            datapath.pass(device.ingress, &first);
            datapath.age_fragments(25);
            assert_eq!(datapath.pass(device.ingress, &later), expected[1]);
            datapath.age_fragments(10);
            datapath.dropped(device.ingress, &later);

            let packet = large(Protocol::Udp, world.pod, world.client);
            let [first, later] = two(&packet, 1);
            datapath.pass(device.egress, &first);
            datapath.age_fragments(35);
            datapath.untouched(device.egress, &later);
        }
    }
}

#[test]
fn identifications_belong_to_addresses_and_protocol() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        let other: IpAddr = match world.vip.is_ipv4() {
            true => "198.51.100.8".parse(),
            false => "2001:db8:1::8".parse(),
        }
        .expect("an address");
        let other = SocketAddr::new(other, world.client.port());
        for device in DEVICES {
            datapath.forget();
            let packet = large(Protocol::Udp, world.client, world.vip);
            datapath.pass(device.ingress, &two(&packet, 1)[0]);
            for stranger in [
                two(&packet, 2),
                two(&packet.clone().between(other, world.vip), 1),
                two(&large(Protocol::Tcp, world.client, world.vip), 1),
            ] {
                datapath.dropped(device.ingress, &stranger[1]);
            }
            let expected = two(&packet.clone().between(world.client, world.pod), 1);
            assert_eq!(datapath.pass(device.ingress, &two(&packet, 1)[1]), expected[1]);
            assert_eq!(datapath.fragment_count(), 1);
        }
    }
}

#[test]
fn a_reused_identification_follows_its_latest_first_fragment() {
    let Some(mut datapath) = prepared() else { return };
    for (service, world) in (3..).zip(worlds()) {
        // Another port of the same address has another backend.
        let vip = SocketAddr::new(world.vip.ip(), 5353);
        datapath.service(service, &keys(vip), &[at(world.pod2)]);
        for device in DEVICES {
            for (destination, pod) in [(world.vip, world.pod), (vip, world.pod2), (world.vip, world.pod)] {
                let packet = large(Protocol::Udp, world.client, destination);
                let expected = two(&packet.clone().between(world.client, pod), 1);
                assert_translated(&mut datapath, device.ingress, &two(&packet, 1), &expected);
            }
        }
    }
}

/// A RST needs values that are in later fragments of a TCP segment, and an ICMP error quotes only a
/// first fragment.
#[test]
fn a_first_fragment_without_endpoints_is_answered() {
    let Some(mut datapath) = prepared() else { return };
    let mut count = 0;
    for (service, world) in (3..).zip(worlds()) {
        datapath.service(service, &keys(world.vip2), &[]);
        let is_ipv4 = world.vip2.is_ipv4();
        for device in DEVICES {
            for fragment in two(&syn(world.client, world.vip2).payload(&[0; 61]), 1) {
                datapath.dropped(device.ingress, &fragment);
            }
            let [first, second] = two(&udp(world.client, world.vip2).payload(&[0; 61]), 2);
            let answer = datapath.bounce(device.ingress, &first);
            let seen = see(&answer);
            assert_eq!(seen.icmp(), if is_ipv4 { (3, 3) } else { (1, 4) });
            assert_eq!(
                (seen.source.ip(), seen.destination.ip()),
                (world.vip2.ip(), world.client.ip())
            );
            // The Ethernet, IP and ICMP headers are followed by the quotation: the IP header, the
            // fragment header, and eight bytes.
            let (header, quoted) = if is_ipv4 { (20, 20 + 8) } else { (40, 40 + 8 + 8) };
            assert_eq!(answer[14 + header + 8..], first[14..14 + quoted], "{answer:02x?}");
            datapath.dropped(device.ingress, &second);
            count += 4;
        }
    }
    assert_eq!(datapath.reasons(), [(Reason::NoEndpoint, count)]);
}

#[test]
fn first_fragments_with_a_cut_transport_header_pass() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            let fragments = large(Protocol::Tcp, world.client, world.vip).split(1, 16);
            datapath.untouched(device.ingress, &fragments[0]);
            datapath.dropped(device.ingress, &fragments[1]);
        }
    }
}

#[test]
fn fragments_with_ip_options_pass() {
    let Some(mut datapath) = prepared() else { return };
    let world: World = worlds()[0];
    for device in DEVICES {
        let packet = udp(world.client, world.vip).options(&[1; 4]);
        datapath.untouched(device.ingress, &packet.clone().fragment(0, true).bytes());
        datapath.untouched(device.ingress, &packet.fragment(8, false).bytes());
    }
    assert_eq!(datapath.fragment_count(), 0);
}
