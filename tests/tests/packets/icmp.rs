//! ICMP errors about rewritten packets, and echo requests to VIPs. The expected message is the same
//! one, built with the addresses and the quotation that its receiver knows.

use std::net::{IpAddr, SocketAddr};

use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::layout::{Frontend, frontend_flags};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, Link, NODE, SENDER, icmp, see, udp};
use lb_tests::packet::network::{BACK_LINK, CLIENT_LINK, Place, TestNetwork};
use lb_tests::packet::world::{DEVICES, Device, POD_DEVICE, World, at, data, first, worlds};
use lb_tests::packet::{Datapath, datapath};

/// Type and code of ICMP errors, for IPv4 and IPv6.
const ERRORS: [[[u8; 2]; 2]; 5] = [
    [[3, 3], [1, 4]],
    [[3, 1], [1, 0]],
    [[3, 4], [2, 0]],
    [[11, 0], [3, 0]],
    [[12, 0], [4, 1]],
];
/// The 32-bit word behind the checksum, usually an MTU.
const REST: u32 = 1280;

/// All protocols.
const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The VIP at the Pod's port, which SCTP needs.
fn vip(world: &World) -> SocketAddr {
    SocketAddr::new(world.vip.ip(), world.pod.port())
}

/// Writes a Service of one backend for all protocols of each family.
fn serve(datapath: &mut Datapath, pod: impl Fn(&World) -> SocketAddr) {
    for (service, world) in (1..).zip(worlds()) {
        let vip = vip(&world);
        let keys = ALL.map(|protocol| FrontendKey::Port(vip.ip(), vip.port(), protocol));
        datapath.service(service, &keys, &[at(pod(&world))]);
    }
}

/// The address of a router on the path.
fn router(world: &World) -> IpAddr {
    let text = if world.vip.is_ipv4() {
        "203.0.113.9"
    } else {
        "2001:db8:9::9"
    };
    text.parse().expect("an address")
}

/// An error that quotes `bytes` bytes of a packet behind its IP header. The quoted packet has this
/// hop limit.
#[derive(Clone, Copy, Debug)]
struct Quoting {
    error: [[u8; 2]; 2],
    bytes: usize,
    hop_limit: u8,
}

impl Quoting {
    /// The error from `source` to `destination` about `packet`.
    fn message(&self, source: IpAddr, destination: IpAddr, packet: &Build) -> Build {
        let [error4, error6] = self.error;
        let (error, header) = match source {
            IpAddr::V4(_) => (error4, 20),
            IpAddr::V6(_) => (error6, 40),
        };
        let packet = packet.clone().hop_limit(self.hop_limit).bytes();
        let end = packet.len().min(14 + header + self.bytes);
        icmp(source, destination, error, REST).payload(&packet[14..end])
    }
}

/// Errors of all kinds, and quotations of different lengths: without and with the TCP checksum, and
/// of the whole packet.
fn quotings() -> Vec<Quoting> {
    let kinds = ERRORS.map(|error| (error, 64));
    let lengths = [8, 12, 16, 18, 20, 28].map(|bytes| (ERRORS[0], bytes));
    let all = kinds.into_iter().chain(lengths).chain([(ERRORS[3], 1000)]);
    all.map(|(error, bytes)| Quoting {
        error,
        bytes,
        hop_limit: 61,
    })
    .collect()
}

/// Packets of all protocols between two ends.
fn packets(source: SocketAddr, destination: SocketAddr) -> Vec<Build> {
    let odd = |protocol| data(protocol, source, destination).payload(&[0x42; 33]);
    let mut packets: Vec<_> = ALL.map(odd).into();
    packets.push(udp(source, destination).without_checksum());
    packets
}

/// Opens flows of all protocols.
fn open(datapath: &mut Datapath, device: Device, world: &World) {
    for protocol in ALL {
        let request = first(protocol, world.client, vip(world)).bytes();
        datapath.pass(device.ingress, &request);
    }
}

/// Runs a check with a Service of a local backend and open flows, for each family and device.
fn with_flows(mut check: impl FnMut(&mut Datapath, Device, &World)) {
    let Some(mut datapath) = datapath() else { return };
    serve(&mut datapath, |world| world.pod);
    for world in worlds() {
        for device in DEVICES {
            datapath.forget();
            open(&mut datapath, device, &world);
            check(&mut datapath, device, &world);
            assert_eq!(datapath.flow_count(), 6);
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn errors_about_replies_are_translated() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        for quoting in quotings() {
            for packet in packets(vip, client) {
                for source in [client.ip(), router(world)] {
                    let message = quoting.message(source, vip.ip(), &packet);
                    let about = packet.clone().between(world.pod, client);
                    let expected = quoting.message(source, world.pod.ip(), &about);
                    let bytes = datapath.pass(device.ingress, &message.bytes());
                    assert_eq!(bytes, expected.bytes(), "{quoting:?} {packet:?} {bytes:02x?}");
                }
            }
        }
    });
}

#[test]
fn errors_about_requests_are_translated() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        for quoting in quotings() {
            for packet in packets(client, world.pod) {
                // Errors of Pods get the VIP as their source, those of routers keep theirs.
                for (source, seen) in [(world.pod.ip(), vip.ip()), (router(world), router(world))] {
                    let message = quoting.message(source, client.ip(), &packet);
                    let about = packet.clone().between(client, vip);
                    let expected = quoting.message(seen, client.ip(), &about);
                    let bytes = datapath.pass(device.egress, &message.bytes());
                    assert_eq!(bytes, expected.bytes(), "{quoting:?} {packet:?} {bytes:02x?}");
                }
            }
        }
    });
}

/// A UDP checksum of 0 means no checksum, so 0xffff is used instead.
#[test]
fn a_quoted_checksum_that_becomes_zero_is_sent_as_ffff() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        let checksum_at = if vip.is_ipv4() { 14 + 20 + 6 } else { 14 + 40 + 6 };
        let checksum = |packet: &Build| packet.bytes()[checksum_at..checksum_at + 2].to_vec();
        let about = data(Protocol::Udp, client, vip).payload(&[0; 2]);
        let about = about.clone().payload(&checksum(&about));
        assert_eq!(checksum(&about), [0xff; 2]);
        let quoting = quotings()[0];
        let packet = about.clone().between(client, world.pod);
        let message = quoting.message(world.pod.ip(), client.ip(), &packet);
        let bytes = datapath.pass(device.egress, &message.bytes());
        assert_eq!(bytes, quoting.message(vip.ip(), client.ip(), &about).bytes());
    });
}

#[test]
fn errors_about_hairpin_requests_are_translated() {
    let Some(mut datapath) = datapath() else { return };
    serve(&mut datapath, |world| world.pod);
    for world in worlds() {
        let (client, vip) = (SocketAddr::new(world.pod.ip(), 40_000), vip(&world));
        let device = POD_DEVICE;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let request = datapath.bounce(device.ingress, &first(protocol, client, vip).bytes());
            let source = see(&request).source;
            for quoting in quotings() {
                let packet = data(protocol, source, world.pod);
                let message = quoting.message(world.pod.ip(), source.ip(), &packet);
                let about = packet.between(client, vip);
                let expected = quoting.message(vip.ip(), client.ip(), &about).link(CLIENT_LINK);
                let bytes = datapath.bounce(device.ingress, &message.bytes());
                assert_eq!(bytes, expected.bytes(), "{quoting:?} {bytes:02x?}");
            }
        }
    }
}

#[test]
fn errors_about_forwarded_packets_are_translated() {
    let Some(mut datapath) = datapath() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve(&mut datapath, |world| world.backend_at(Place::Back));
    for (service, world) in (1..).zip(worlds()) {
        datapath.change_backend(service * 100, |backend| backend.local = false);
        let (client, vip, pod) = (world.client, vip(&world), world.backend_at(Place::Back));
        for program in ["lb_xdp", "lb_tc_from_network"] {
            datapath.forget();
            for protocol in ALL {
                datapath.device = network.front;
                let (verdict, request) = datapath.verdict(program, &first(protocol, client, vip).bytes());
                assert_eq!(verdict, Verdict::Redirect);
                // Offset of the ports behind a plain IP header.
                let ports = if world.vip.is_ipv4() { 34 } else { 54 };
                let port = u16::from_be_bytes([request[ports], request[ports + 1]]);
                let source = SocketAddr::new(world.back_address(), port);

                // Errors about requests: their source becomes the VIP, which the client knows.
                datapath.device = network.back;
                for speaker in [pod.ip(), router(&world)] {
                    let packet = data(protocol, source, pod);
                    let about = packet.clone().between(client, vip);
                    sent_on(
                        &mut datapath,
                        program,
                        |quoting| quoting.message(speaker, source.ip(), &packet),
                        |quoting| quoting.message(vip.ip(), client.ip(), &about),
                        CLIENT_LINK,
                    );
                }
                // Errors about replies: their source becomes the client address that the backend
                // sees.
                datapath.device = network.front;
                for speaker in [client.ip(), router(&world)] {
                    let packet = data(protocol, vip, client);
                    let about = packet.clone().between(pod, source);
                    sent_on(
                        &mut datapath,
                        program,
                        |quoting| quoting.message(speaker, vip.ip(), &packet),
                        |quoting| quoting.message(source.ip(), pod.ip(), &about),
                        BACK_LINK,
                    );
                }
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

/// Forwards errors of all kinds and compares them.
fn sent_on(
    datapath: &mut Datapath,
    program: &str,
    message: impl Fn(&Quoting) -> Build,
    expected: impl Fn(&Quoting) -> Build,
    link: Link,
) {
    for quoting in quotings() {
        let (verdict, bytes) = datapath.verdict(program, &message(&quoting).bytes());
        assert_eq!(verdict, Verdict::Redirect, "{quoting:?}");
        let expected = expected(&quoting).hop_limit(63);
        let expected = if program == "lb_xdp" {
            expected.link(link)
        } else {
            expected
        };
        assert_eq!(bytes, expected.bytes(), "{program} {quoting:?}");
    }
}

#[test]
fn errors_with_an_expired_hop_limit_are_not_answered() {
    let Some(mut datapath) = datapath() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve(&mut datapath, |world| world.backend_at(Place::Back));
    for (service, world) in (1..).zip(worlds()) {
        datapath.change_backend(service * 100, |backend| backend.local = false);
        let (client, vip) = (world.client, vip(&world));
        for program in ["lb_xdp", "lb_tc_from_network"] {
            datapath.verdict(program, &udp(client, vip).bytes());
            let message = quotings()[0].message(client.ip(), vip.ip(), &udp(vip, client));
            datapath.dropped(program, &message.hop_limit(1).bytes());
        }
    }
    drop(network);
    assert_eq!(datapath.reasons(), [(Reason::HopLimit, 4)]);
}

#[test]
fn padding_is_not_a_part_of_the_quotation() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        let padding = vec![0xa5; 33];
        for quoting in quotings() {
            for packet in packets(vip, client) {
                let message = quoting.message(client.ip(), vip.ip(), &packet);
                let about = packet.clone().between(world.pod, client);
                let expected = quoting.message(client.ip(), world.pod.ip(), &about);
                let padded = [message.bytes(), padding.clone()].concat();
                let bytes = datapath.pass(device.ingress, &padded);
                assert_eq!(
                    bytes,
                    [expected.bytes(), padding.clone()].concat(),
                    "{quoting:?} {packet:?}"
                );
            }
        }
        // The quotation is too short; the missing bytes are only in the frame's padding.
        let packet = udp(vip, client);
        let whole = Quoting {
            bytes: 8,
            ..quotings()[0]
        };
        let whole = whole.message(client.ip(), vip.ip(), &packet).bytes();
        for bytes in [0, 4, 7] {
            let quoting = Quoting {
                bytes,
                ..quotings()[0]
            };
            let message = quoting.message(client.ip(), vip.ip(), &packet).bytes();
            datapath.untouched(device.ingress, &message);
            let rest = &whole[message.len()..];
            datapath.untouched(device.ingress, &[message.as_slice(), rest, &padding].concat());
        }
    });
}

#[test]
fn only_errors_about_first_fragments_are_translated() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        let [error4, error6] = ERRORS[3];
        let error = if vip.is_ipv4() { error4 } else { error6 };
        let large = |from, to| udp(from, to).payload(&[0x5a; 61]).split(77, 24);
        let message = |to: SocketAddr, quoted: &[u8]| {
            icmp(client.ip(), to.ip(), error, REST)
                .payload(&quoted[14..])
                .bytes()
        };
        let (about, expected) = (large(vip, client), large(world.pod, client));
        let bytes = datapath.pass(device.ingress, &message(vip, &about[0]));
        assert_eq!(bytes, message(world.pod, &expected[0]));
        // Later fragments have no ports.
        datapath.untouched(device.ingress, &message(vip, &about[1]));
    });
}

#[test]
fn errors_about_other_packets_pass() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        let other = world.client_at(39_999);
        for quoting in quotings() {
            for (hook, packet, to) in [
                // Unknown connections.
                (device.ingress, udp(vip, other), vip),
                (device.ingress, udp(world.vip, client), vip),
                (device.egress, udp(other, world.pod), client),
                (device.egress, udp(client, world.pod2), client),
                // The wrong hook for this direction.
                (device.egress, udp(vip, client), vip),
                (device.ingress, udp(client, world.pod), client),
                // The receiver did not send the quoted packet.
                (device.ingress, udp(vip, client), world.vip2),
                (device.egress, udp(client, world.pod), world.vip2),
            ] {
                let message = quoting.message(router(world), to.ip(), &packet);
                datapath.untouched(hook, &message.bytes());
            }
        }
    });
}

#[test]
fn icmp_messages_of_other_types_pass() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        // Echo replies, source quench, redirects, timestamps; neighbour discovery and the like.
        for kind in [0, 4, 5, 9, 10, 13, 129, 133, 134, 135, 136, 137, 200, 255] {
            let quoting = Quoting {
                error: [[kind, 0]; 2],
                ..quotings()[0]
            };
            if !vip.is_ipv4() && kind == 4 {
                continue;
            }
            let message = quoting.message(client.ip(), vip.ip(), &udp(vip, client));
            datapath.untouched(device.ingress, &message.bytes());
        }
    });
}

#[test]
fn errors_with_ip_options_pass() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        let quoting = quotings()[0];
        let message = quoting.message(client.ip(), vip.ip(), &udp(vip, client));
        let with_options = |packet: Build| match vip.is_ipv4() {
            true => packet.options(&[1; 4]),
            false => packet.extension(60, &[0; 6]),
        };
        datapath.untouched(device.ingress, &with_options(message).bytes());
        let message = quoting.message(client.ip(), vip.ip(), &with_options(udp(vip, client)));
        datapath.untouched(device.ingress, &message.bytes());
    });
}

#[test]
fn errors_about_idle_flows_pass() {
    with_flows(|datapath, device, world| {
        let (client, vip) = (world.client, vip(world));
        datapath.age(1_000_000);
        let message = quotings()[0].message(client.ip(), vip.ip(), &udp(vip, client));
        datapath.untouched(device.ingress, &message.bytes());
        let message = quotings()[0].message(world.pod.ip(), client.ip(), &udp(client, world.pod));
        datapath.untouched(device.egress, &message.bytes());
    });
}

/// An echo request or its reply.
fn echo(source: IpAddr, destination: IpAddr, is_reply: bool) -> Build {
    let kind = match (source.is_ipv4(), is_reply) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    icmp(source, destination, [kind, 0], 0x1234_0001)
}

/// The programs that answer echo requests. Those of the node's processes arrive at egress programs.
fn hooks() -> impl Iterator<Item = &'static str> {
    DEVICES
        .into_iter()
        .flat_map(|device| [device.ingress, device.egress])
}

/// Gives a VIP's wildcard row these flags.
fn wildcard(datapath: &mut Datapath, world: &World, flags: u32, source_ranges: u32) {
    let value = Frontend {
        flags: frontend_flags::WILDCARD | flags,
        source_ranges,
        ..Frontend::default()
    };
    datapath.frontend(FrontendKey::Wildcard(world.vip.ip()), value);
}

#[test]
fn echo_requests_to_a_vip_are_answered() {
    let Some(mut datapath) = datapath() else { return };
    let back = Link {
        destination: SENDER,
        source: NODE,
    };
    for world in worlds() {
        wildcard(&mut datapath, &world, frontend_flags::ECHO, 0);
        for program in hooks() {
            for length in [0, 1, 56, 1001] {
                let packet = |from, to, is_reply| echo(from, to, is_reply).payload(&vec![0x33; length]);
                let request = packet(world.client.ip(), world.vip.ip(), false);
                let reply = packet(world.vip.ip(), world.client.ip(), true).link(back);
                let answer = datapath.bounce(program, &request.clone().hop_limit(3).bytes());
                assert_eq!(answer, reply.bytes());
            }
            // Echo replies, requests to other addresses, and requests with IP options pass.
            let (client, vip) = (world.client.ip(), world.vip.ip());
            datapath.untouched(program, &echo(client, vip, true).bytes());
            datapath.untouched(program, &echo(client, world.vip2.ip(), false).bytes());
            let options = match vip.is_ipv4() {
                true => echo(client, vip, false).options(&[1; 4]),
                false => echo(client, vip, false).extension(60, &[0; 6]),
            };
            datapath.untouched(program, &options.bytes());
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn echo_requests_to_a_vip_without_endpoints_are_not_answered() {
    let Some(mut datapath) = datapath() else { return };
    for world in worlds() {
        for flags in [0, frontend_flags::PASS_UNKNOWN] {
            wildcard(&mut datapath, &world, flags, 0);
            for program in hooks() {
                let request = echo(world.client.ip(), world.vip.ip(), false);
                datapath.untouched(program, &request.bytes());
            }
        }
    }
}

#[test]
fn echo_requests_from_outside_the_source_ranges_are_dropped() {
    let Some(mut datapath) = datapath() else { return };
    for world in worlds() {
        let set = 5;
        wildcard(&mut datapath, &world, frontend_flags::ECHO, set);
        for program in hooks() {
            let request = echo(world.client.ip(), world.vip.ip(), false).bytes();
            datapath.dropped(program, &request);
        }
        datapath.allow(set, world.client.ip(), if world.vip.is_ipv4() { 32 } else { 128 });
        for program in hooks() {
            let request = echo(world.client.ip(), world.vip.ip(), false).bytes();
            datapath.bounce(program, &request);
            let request = echo(router(&world), world.vip.ip(), false).bytes();
            datapath.dropped(program, &request);
        }
    }
    assert_eq!(datapath.reasons(), [(Reason::SourceRange, 24)]);
}
