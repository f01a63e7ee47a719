//! SCTP: addresses are rewritten. Ports stay, and so does the CRC, which does not cover addresses.

use std::net::SocketAddr;

use lb_agent::maps::{BackendState, FrontendKey, Protocol};
use lb_common::layout::{Frontend, frontend_flags};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, Link, NODE, SENDER, icmp, sctp};
use lb_tests::packet::network::{BACK_LINK, CLIENT_LINK, Place, TestNetwork};
use lb_tests::packet::world::{DEVICES, POD_DEVICE, World, at, chunk, is_given_out, worlds};
use lb_tests::packet::{Borrowed, datapath};

/// The VIP at the Pod's port.
fn vip(world: &World) -> SocketAddr {
    SocketAddr::new(world.vip.ip(), world.pod.port())
}

fn key(vip: SocketAddr) -> FrontendKey {
    FrontendKey::Port(vip.ip(), vip.port(), Protocol::Sctp)
}

/// A Service of these Pods for each family.
fn prepared(pods: impl Fn(&World) -> Vec<SocketAddr>) -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        let pods: Vec<_> = pods(&world).into_iter().map(at).collect();
        datapath.service(service, &[key(vip(&world))], &pods);
    }
    Some(datapath)
}

fn one(world: &World) -> Vec<SocketAddr> {
    vec![world.pod]
}

/// Ports stay, and the CRC covers the whole packet, so only the addresses of fragments change.
#[test]
fn sctp_fragments_are_translated() {
    let Some(mut datapath) = prepared(one) else { return };
    for world in worlds() {
        for device in DEVICES {
            datapath.forget();
            let (client, vip, pod) = (world.client, vip(&world), world.pod);
            let request = datapath.pass(device.ingress, &sctp(client, vip, chunk::INIT).bytes());
            assert_eq!(request, sctp(client, pod, chunk::INIT).bytes());
            let large = |from, to| sctp(from, to, chunk::DATA).payload(&[7; 600]).split(9, 256);
            for (program, sent, expected) in [
                (device.ingress, large(client, vip), large(client, pod)),
                (device.egress, large(pod, client), large(vip, client)),
            ] {
                assert_eq!(sent.len(), 3);
                for (sent, expected) in sent.iter().zip(&expected) {
                    assert_eq!(datapath.pass(program, sent), *expected, "{program}");
                }
            }
            assert_eq!(datapath.flow_count(), 2);
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn sctp_requests_and_replies_are_translated() {
    let Some(mut datapath) = prepared(one) else { return };
    for world in worlds() {
        for device in DEVICES {
            datapath.forget();
            let (client, vip, pod) = (world.client, vip(&world), world.pod);
            for (request, reply) in [
                (chunk::INIT, chunk::INIT_ACK),
                (chunk::DATA, chunk::DATA),
                (chunk::SHUTDOWN_COMPLETE, chunk::ABORT),
            ] {
                let packet = datapath.pass(device.ingress, &sctp(client, vip, request).bytes());
                assert_eq!(packet, sctp(client, pod, request).bytes());
                let packet = datapath.pass(device.egress, &sctp(pod, client, reply).bytes());
                assert_eq!(packet, sctp(vip, client, reply).bytes());
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn sctp_behind_ip_options_is_translated() {
    let Some(mut datapath) = prepared(one) else { return };
    for world in worlds() {
        for device in DEVICES {
            let packet = |to| match world.vip.is_ipv4() {
                true => sctp(world.client, to, chunk::INIT).options(&[1; 8]),
                false => sctp(world.client, to, chunk::INIT).extension(60, &[0; 14]),
            };
            let bytes = datapath.pass(device.ingress, &packet(vip(&world)).bytes());
            assert_eq!(bytes, packet(world.pod).bytes());
        }
    }
}

#[test]
fn an_association_ends_with_abort_or_shutdown_complete() {
    let Some(mut datapath) = prepared(one) else { return };
    for (service, world) in (1..).zip(worlds()) {
        let (client, vip, pod) = (world.client, vip(&world), world.pod);
        let mut connections = 0;
        for device in DEVICES {
            datapath.forget();
            let init = sctp(client, vip, chunk::INIT).bytes();
            let ends: [(&str, Build); 4] = [
                (device.ingress, sctp(client, vip, chunk::ABORT)),
                (device.ingress, sctp(client, vip, chunk::SHUTDOWN_COMPLETE)),
                (device.egress, sctp(pod, client, chunk::ABORT)),
                (device.egress, sctp(pod, client, chunk::SHUTDOWN_COMPLETE)),
            ];
            for (program, end) in ends {
                // Repeated INIT and DATA chunks belong to the same association.
                datapath.pass(device.ingress, &init);
                connections += 1;
                datapath.pass(device.egress, &sctp(pod, client, chunk::INIT_ACK).bytes());
                datapath.pass(device.ingress, &init);
                datapath.pass(device.ingress, &sctp(client, vip, chunk::DATA).bytes());
                assert_eq!(datapath.stats(service), (connections, 0));
                datapath.pass(program, &end.bytes());
            }
        }
    }
}

#[test]
fn a_new_association_may_get_another_backend() {
    let pods = |world: &World| vec![world.pod, world.pod2];
    let Some(mut datapath) = prepared(pods) else {
        return;
    };
    for (service, world) in (1..).zip(worlds()) {
        let (client, vip, row) = (world.client, vip(&world), service * 100);
        datapath.set_slots(row, &[row, row]);
        let init = sctp(client, vip, chunk::INIT).bytes();
        let to = |pod, kind| sctp(client, pod, kind).bytes();
        assert_eq!(datapath.pass("lb_xdp", &init), to(world.pod, chunk::INIT));
        datapath.set_slots(row, &[row + 1, row + 1]);
        assert_eq!(datapath.pass("lb_xdp", &init), to(world.pod, chunk::INIT));
        datapath.pass("lb_xdp", &sctp(client, vip, chunk::ABORT).bytes());
        assert_eq!(datapath.pass("lb_xdp", &init), to(world.pod2, chunk::INIT));
        // Data for a removed backend goes to another one, which answers that the association does
        // not exist.
        datapath.set_slots(row, &[row, row]);
        datapath.set_state(row + 1, BackendState::Gone);
        let data = sctp(client, vip, chunk::DATA).bytes();
        assert_eq!(datapath.pass("lb_xdp", &data), to(world.pod, chunk::DATA));
    }
}

#[test]
fn sctp_is_forwarded_with_its_source_port() {
    let pods = |world: &World| vec![world.backend_at(Place::Back)];
    let Some(mut datapath) = prepared(pods) else {
        return;
    };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    let mut dropped = 0;
    for (service, world) in (1..).zip(worlds()) {
        datapath.change_backend(service * 100, |backend| backend.local = false);
        let (client, vip, pod) = (world.client, vip(&world), world.backend_at(Place::Back));
        let source = SocketAddr::new(world.back_address(), client.port());
        for program in ["lb_xdp", "lb_tc_from_network"] {
            let expected = |packet: Build, link: Link| {
                let packet = packet.hop_limit(63);
                if program == "lb_xdp" {
                    packet.link(link)
                } else {
                    packet
                }
                .bytes()
            };
            datapath.forget();
            for kind in [chunk::INIT, chunk::DATA] {
                datapath.device = network.front;
                let outcome = datapath.verdict(program, &sctp(client, vip, kind).bytes());
                let packet = expected(sctp(source, pod, kind), BACK_LINK);
                assert_eq!(outcome, (Verdict::Redirect, packet));
                datapath.device = network.back;
                let outcome = datapath.verdict(program, &sctp(pod, source, kind).bytes());
                let packet = expected(sctp(vip, client, kind), CLIENT_LINK);
                assert_eq!(outcome, (Verdict::Redirect, packet));
            }
            // Another client with the same port would receive the first one's replies.
            datapath.device = network.front;
            let other = match world.vip.is_ipv4() {
                true => "198.51.100.8".parse(),
                false => "2001:db8:1::8".parse(),
            };
            let other = SocketAddr::new(other.expect("an address"), client.port());
            datapath.dropped(program, &sctp(other, vip, chunk::INIT).bytes());
            dropped += 1;
        }
    }
    assert_eq!(datapath.reasons(), [(Reason::NoSourcePort, dropped)]);
}

/// Link-layer addresses of packets that are bounced to their sender.
const BACK: Link = Link {
    destination: SENDER,
    source: NODE,
};

#[test]
fn sctp_hairpin_connections_keep_their_source_port() {
    let Some(mut datapath) = prepared(one) else { return };
    for world in worlds() {
        let (client, vip) = (SocketAddr::new(world.pod.ip(), 40_000), vip(&world));
        let source = SocketAddr::new(world.node, client.port());
        assert!(!is_given_out(source.port()));
        let device = POD_DEVICE;
        let request = datapath.bounce(device.ingress, &sctp(client, vip, chunk::INIT).bytes());
        assert_eq!(request, sctp(source, world.pod, chunk::INIT).link(BACK).bytes());
        let reply = sctp(world.pod, source, chunk::INIT_ACK).bytes();
        let reply = datapath.bounce(device.ingress, &reply);
        assert_eq!(reply, sctp(vip, client, chunk::INIT_ACK).link(BACK).bytes());
    }
}

#[test]
fn sctp_without_endpoints_is_answered_with_port_unreachable() {
    let Some(mut datapath) = prepared(|_| Vec::new()) else {
        return;
    };
    for world in worlds() {
        let value = Frontend {
            flags: frontend_flags::WILDCARD,
            ..Frontend::default()
        };
        datapath.frontend(FrontendKey::Wildcard(world.vip.ip()), value);
        let unknown = SocketAddr::new(world.vip.ip(), 9999);
        for device in DEVICES {
            for destination in [vip(&world), unknown] {
                for kind in [chunk::INIT, chunk::DATA] {
                    let packet = sctp(world.client, destination, kind).bytes();
                    let (error, header) = match destination.is_ipv4() {
                        true => ([3, 3], 20),
                        false => ([1, 4], 40),
                    };
                    let quoted = &packet[14..14 + header + 8];
                    let expected = icmp(destination.ip(), world.client.ip(), error, 0)
                        .payload(quoted)
                        .link(BACK)
                        .bytes();
                    let answer = datapath.bounce(device.ingress, &packet);
                    // The "don't fragment" flag and the checksum over it may differ.
                    let addresses = 14 + if destination.is_ipv4() { 12 } else { 0 };
                    assert_eq!(answer[addresses..], expected[addresses..]);
                    assert_eq!(answer[..14], expected[..14]);
                }
                // An ABORT is not answered.
                let packet = sctp(world.client, destination, chunk::ABORT).bytes();
                datapath.dropped(device.ingress, &packet);
            }
        }
    }
    assert_eq!(
        datapath.reasons(),
        [(Reason::NoEndpoint, 18), (Reason::UnknownPort, 18)]
    );
}

#[test]
fn sctp_without_a_complete_chunk_is_not_translated() {
    let Some(mut datapath) = prepared(one) else { return };
    for world in worlds() {
        for device in DEVICES {
            let init = sctp(world.client, vip(&world), chunk::INIT).bytes();
            datapath.pass(device.ingress, &init);
            let mut bytes = sctp(world.client, vip(&world), chunk::DATA).payload(&[]).bytes();
            datapath.pass(device.ingress, &bytes);
            // First the length exceeds the frame, then the packet is too short for a chunk.
            bytes.truncate(bytes.len() - 1);
            datapath.untouched(device.ingress, &bytes);
            let field = if world.vip.is_ipv4() { 17 } else { 19 };
            bytes[field] -= 1;
            datapath.untouched(device.ingress, &bytes);
        }
    }
}
