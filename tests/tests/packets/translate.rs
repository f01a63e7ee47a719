//! Requests get the backend's address, replies the frontend's, and nothing else in the packet
//! changes. The expected packet is the same one built between the translated addresses.

use etherparse::TransportHeader;
use lb_common::net::protocol;
use lb_tests::packet::build::{Build, see, syn, syn_ack, tcp, udp};
use lb_tests::packet::world::{DEVICES, Device, PROTOCOLS, World, at, data, first, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

/// Sends a request and its reply, both built by `build`, through a device and compares all bytes.
fn there_and_back(
    datapath: &mut Datapath,
    device: Device,
    world: &World,
    client_port: u16,
    build: impl Fn(std::net::SocketAddr, std::net::SocketAddr) -> Build,
) {
    let client = world.client_at(client_port);
    let bytes = build(client, world.vip).bytes();
    let seen = see(&bytes);
    let tcp = matches!(seen.transport, TransportHeader::Tcp(_)).then(|| seen.tcp().clone());
    if tcp.as_ref().is_some_and(|tcp| !tcp.syn) {
        datapath.pass(device.ingress, &syn(client, world.vip).bytes());
    }
    let request = datapath.pass(device.ingress, &bytes);
    assert_eq!(
        request,
        build(client, world.pod).bytes(),
        "request {device:?}: {request:02x?}"
    );
    if tcp.is_some() {
        datapath.pass(device.egress, &syn_ack(world.pod, client).bytes());
    }
    let reply = datapath.pass(device.egress, &build(world.pod, client).bytes());
    assert_eq!(
        reply,
        build(world.vip, client).bytes(),
        "reply {device:?}: {reply:02x?}"
    );
}

/// Runs a check with one Service of one backend for every device and family. Each run uses
/// different client ports.
fn everywhere(mut check: impl FnMut(&mut Datapath, Device, &World, u16)) {
    let Some(mut datapath) = datapath() else { return };
    let mut port = 1000;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        for device in DEVICES {
            check(&mut datapath, device, &world, port);
            port += 1000;
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn requests_and_replies_are_translated() {
    everywhere(|datapath, device, world, port| {
        for protocol in PROTOCOLS {
            there_and_back(datapath, device, world, port, |from, to| {
                first(protocol, from, to)
            });
            there_and_back(datapath, device, world, port, |from, to| data(protocol, from, to));
        }
    });
}

#[test]
fn connections_are_counted_once() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        for protocol in PROTOCOLS {
            for _ in 0..3 {
                datapath.pass("lb_xdp", &first(protocol, world.client, world.vip).bytes());
            }
        }
        assert_eq!(datapath.stats(service), (2, 0));
    }
    assert_eq!(datapath.flow_count(), 8);
}

#[test]
fn payloads_of_any_length_are_translated() {
    everywhere(|datapath, device, world, port| {
        for length in [0, 1, 2, 3, 7, 63, 64, 65, 255, 1000, 1459, 1460, 3001] {
            let payload: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0] | 1).collect();
            for protocol in PROTOCOLS {
                there_and_back(datapath, device, world, port, |from, to| {
                    data(protocol, from, to).payload(&payload)
                });
            }
        }
    });
}

#[test]
fn udp_without_checksum_keeps_no_checksum() {
    everywhere(|datapath, device, world, port| {
        there_and_back(datapath, device, world, port, |from, to| {
            udp(from, to).without_checksum()
        });
    });
}

#[test]
fn computed_udp_checksum_of_zero_is_sent_as_ffff() {
    everywhere(|datapath, device, world, port| {
        let client = world.client_at(port);
        // With this payload, the computed checksum of the translated packet is 0.
        let plain = see(&udp(client, world.pod).payload(&[0, 0]).bytes());
        let payload = checksum(&plain).to_be_bytes();
        let request = udp(client, world.vip).payload(&payload).bytes();
        let request = datapath.pass(device.ingress, &request);
        assert_eq!(checksum(&see(&request)), 0xffff, "{request:02x?}");

        let plain = see(&udp(world.vip, client).payload(&[0, 0]).bytes());
        let payload = checksum(&plain).to_be_bytes();
        let reply = udp(world.pod, client).payload(&payload).bytes();
        let reply = datapath.pass(device.egress, &reply);
        assert_eq!(checksum(&see(&reply)), 0xffff, "{reply:02x?}");
    });
}

fn checksum(seen: &lb_tests::packet::build::Seen) -> u16 {
    match &seen.transport {
        etherparse::TransportHeader::Udp(header) => header.checksum,
        other => panic!("no UDP: {other:?}"),
    }
}

#[test]
fn checksums_are_valid_for_many_ports() {
    everywhere(|datapath, device, world, base| {
        for port in base..base + 300 {
            for protocol in PROTOCOLS {
                there_and_back(datapath, device, world, port, |from, to| {
                    first(protocol, from, to)
                });
            }
        }
    });
}

#[test]
fn ipv4_options_are_kept() {
    everywhere(|datapath, device, world, port| {
        for options in [&[1; 4][..], &[1; 40]] {
            for protocol in PROTOCOLS {
                there_and_back(datapath, device, world, port, |from, to| {
                    let packet = first(protocol, from, to);
                    if world.vip.is_ipv4() {
                        packet.options(options)
                    } else {
                        packet
                    }
                });
            }
        }
    });
}

/// Numbers and contents of IPv6 extension headers of 8 bytes.
const HOP_BY_HOP: (u8, [u8; 6]) = (0, [1, 4, 0, 0, 0, 0]);
const DESTINATION: (u8, [u8; 6]) = (60, [1, 4, 0, 0, 0, 0]);
/// Routing header of type 4 without segments left.
const ROUTING: (u8, [u8; 6]) = (43, [4, 0, 0, 0, 0, 0]);
/// Authentication header with a short integrity check value.
const AUTHENTICATION: (u8, [u8; 10]) = (51, [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);

fn extended(packet: Build, headers: &[(u8, &[u8])]) -> Build {
    headers.iter().fold(packet, |packet, (number, content)| {
        packet.extension(*number, content)
    })
}

#[test]
fn ipv6_extension_headers_are_kept() {
    let chains: [&[(u8, &[u8])]; 6] = [
        &[(HOP_BY_HOP.0, &HOP_BY_HOP.1)],
        &[(DESTINATION.0, &DESTINATION.1)],
        &[(ROUTING.0, &ROUTING.1)],
        &[(AUTHENTICATION.0, &AUTHENTICATION.1)],
        &[(DESTINATION.0, &[0; 22])],
        &[
            (HOP_BY_HOP.0, &HOP_BY_HOP.1),
            (DESTINATION.0, &DESTINATION.1),
            (ROUTING.0, &ROUTING.1),
            (AUTHENTICATION.0, &AUTHENTICATION.1),
            (DESTINATION.0, &DESTINATION.1),
        ],
    ];
    everywhere(|datapath, device, world, port| {
        if world.vip.is_ipv4() {
            return;
        }
        for chain in chains {
            for protocol in PROTOCOLS {
                there_and_back(datapath, device, world, port, |from, to| {
                    extended(first(protocol, from, to), chain)
                });
            }
        }
    });
}

#[test]
fn unsupported_ipv6_extension_headers_pass_unchanged() {
    let [_, world] = worlds();
    everywhere(|datapath, device, _, _| {
        let packet = syn(world.client, world.vip);
        let six = extended(packet.clone(), &[(DESTINATION.0, &DESTINATION.1[..]); 6]);
        // The checksum covers the final destination, which is not the one in the IPv6 header.
        let on_the_way = packet.clone().extension(ROUTING.0, &[4, 1, 0, 0, 0, 0]);
        // Encapsulating security payload, no next header.
        let opaque = packet.clone().extension(50, &[0; 6]);
        let nothing = packet.extension(59, &[0; 6]);
        for packet in [six, on_the_way, opaque, nothing] {
            datapath.untouched(device.ingress, &packet.bytes());
        }
    });
}

#[test]
fn padding_behind_the_packet_is_kept() {
    everywhere(|datapath, device, world, port| {
        let client = world.client_at(port);
        let padded = |packet: Build| [packet.bytes(), vec![0xa5; 13]].concat();
        let request = datapath.pass(device.ingress, &padded(syn(client, world.vip).payload(&[])));
        assert_eq!(
            request,
            padded(syn(client, world.pod).payload(&[])),
            "{device:?}: {request:02x?}"
        );
    });
}

#[test]
fn tcp_options_and_flags_are_kept() {
    everywhere(|datapath, device, world, port| {
        there_and_back(datapath, device, world, port, |from, to| {
            tcp(from, to).flags(|header| {
                (header.psh, header.ack, header.urg, header.ece) = (true, true, true, true);
                header.urgent_pointer = 3;
                header.set_options_raw(&[1; 40]).expect("fits");
            })
        });
    });
}

#[test]
fn every_backend_is_chosen_and_connections_keep_theirs() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
        let mut chosen = [0, 0];
        for port in 0..200 {
            let packet = syn(world.client_at(1000 + port), world.vip).bytes();
            let destination = see(&datapath.pass("lb_xdp", &packet)).destination;
            chosen[usize::from(destination == world.pod2)] += 1;
            for _ in 0..3 {
                assert_eq!(
                    see(&datapath.pass("lb_tc_from_network", &packet)).destination,
                    destination
                );
            }
        }
        // A random choice fails this less than once in 10^9 runs.
        assert!(chosen.iter().all(|count| *count > 50), "{chosen:?}");
    }
}

#[test]
fn a_frontend_serves_only_its_protocol() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        let [tcp_only, _] = keys(world.vip);
        datapath.service(service, &[tcp_only], &[at(world.pod)]);
        datapath.untouched("lb_xdp", &udp(world.client, world.vip).bytes());
        let request = datapath.pass("lb_xdp", &syn(world.client, world.vip).bytes());
        assert_eq!(see(&request).destination, world.pod);
    }
    let flows: Vec<_> = datapath
        .flows4()
        .keys()
        .map(|key| key.expect("a flow").protocol)
        .collect();
    assert_eq!(flows, [protocol::TCP; 2]);
}
