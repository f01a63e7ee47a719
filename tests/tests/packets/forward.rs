//! Clients outside and backends on other nodes: the node rewrites and forwards requests and
//! replies.

use std::net::SocketAddr;

use lb_agent::maps::Protocol;
use lb_common::host::only_ports;
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, Link, ack, see, syn, udp};
use lb_tests::packet::network::{
    BACK_LINK, CLIENT_LINK, FRONT_LINK, NARROW_MTU, Place, TestNetwork, serve_from,
};
use lb_tests::packet::world::{PROTOCOLS, World, answer, data, first, is_given_out, worlds};
use lb_tests::packet::{Datapath, datapath, datapath_with};

/// The programs that see packets of clients outside.
const FROM_NETWORK: [&str; 2] = ["lb_xdp", "lb_tc_from_network"];

/// Runs a check for both families and both programs, with a backend at `place`.
fn with_backend(place: Place, mut check: impl FnMut(&mut Datapath, &TestNetwork, &World, &'static str)) {
    let Some(mut datapath) = datapath() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve_from(&mut datapath, place);
    for world in worlds() {
        for program in FROM_NETWORK {
            datapath.forget();
            check(&mut datapath, &network, &world, program);
        }
    }
}

/// Runs a program that forwards a packet, and returns the bytes. XDP returns `verdict`; TC always
/// redirects.
fn sent(datapath: &mut Datapath, program: &str, packet: &Build, verdict: Verdict) -> Vec<u8> {
    let packet = packet.bytes();
    let (found, bytes) = datapath.verdict(program, &packet);
    let expected = if program == "lb_xdp" {
        verdict
    } else {
        Verdict::Redirect
    };
    assert_eq!(found, expected, "{program}: {packet:02x?} -> {bytes:02x?}");
    bytes
}

/// The bytes of a packet after forwarding, with these link-layer addresses if the program writes
/// them.
fn forwarded(packet: Build, program: &str, link: Link) -> Vec<u8> {
    let packet = packet.hop_limit(63);
    if program == "lb_xdp" {
        packet.link(link)
    } else {
        packet
    }
    .bytes()
}

/// Forwards a request and its reply, both built by `build`, and compares all bytes. Returns the
/// source that the backend sees.
fn there_and_back(
    datapath: &mut Datapath,
    network: &TestNetwork,
    world: &World,
    program: &str,
    build: impl Fn(SocketAddr, SocketAddr) -> Build,
) -> SocketAddr {
    let (client, pod) = (world.client, world.backend_at(Place::Back));
    datapath.device = network.front;
    let request = sent(datapath, program, &build(client, world.vip), Verdict::Redirect);
    let source = see(&request).source;
    assert_eq!(source.ip(), world.back_address(), "{request:02x?}");
    assert!(is_given_out(source.port()), "{request:02x?}");
    assert_eq!(
        request,
        forwarded(build(source, pod), program, BACK_LINK),
        "request {program}: {request:02x?}"
    );
    datapath.device = network.back;
    let reply = sent(datapath, program, &build(pod, source), Verdict::Redirect);
    assert_eq!(
        reply,
        forwarded(build(world.vip, client), program, CLIENT_LINK),
        "reply {program}: {reply:02x?}"
    );
    source
}

#[test]
fn requests_and_replies_are_forwarded() {
    with_backend(Place::Back, |datapath, network, world, program| {
        let builds: [fn(SocketAddr, SocketAddr) -> Build; 4] = [
            |from, to| first(Protocol::Tcp, from, to),
            |from, to| data(Protocol::Tcp, from, to).payload(&[7; 1001]),
            |from, to| {
                let packet = data(Protocol::Tcp, from, to);
                match from.is_ipv4() {
                    true => packet.options(&[1; 8]),
                    false => packet.extension(60, &[0; 14]),
                }
            },
            |from, to| data(Protocol::Tcp, from, to).flags(|header| header.fin = true),
        ];
        let sources = builds.map(|build| there_and_back(datapath, network, world, program, build));
        assert!(sources.iter().all(|source| *source == sources[0]), "{sources:?}");
        let source = there_and_back(datapath, network, world, program, udp);
        let again = there_and_back(datapath, network, world, program, |from, to| {
            udp(from, to).without_checksum()
        });
        assert_eq!(source, again);
        assert_eq!(datapath.flow_count(), 4);
        assert_eq!(datapath.reasons(), []);
    });
}

#[test]
fn xdp_bounces_packets_that_leave_by_their_ingress_device() {
    with_backend(Place::Front, |datapath, _, world, program| {
        let pod = world.backend_at(Place::Front);
        for protocol in PROTOCOLS {
            let request = sent(
                datapath,
                program,
                &first(protocol, world.client, world.vip),
                Verdict::Bounce,
            );
            // The device has no address in the devices map.
            let source = see(&request).source;
            assert_eq!(source.ip(), world.node);
            assert_eq!(
                request,
                forwarded(first(protocol, source, pod), program, FRONT_LINK)
            );
            let reply = sent(datapath, program, &data(protocol, pod, source), Verdict::Bounce);
            assert_eq!(
                reply,
                forwarded(data(protocol, world.vip, world.client), program, CLIENT_LINK)
            );
        }
    });
}

#[test]
fn packets_of_local_clients_are_left_to_the_stack() {
    with_backend(Place::Back, |datapath, _, world, _| {
        // The Pod is at the other end of the device.
        let pod = world.neighbour();
        for protocol in PROTOCOLS {
            let request = first(protocol, pod, world.vip).bytes();
            let expected = first(protocol, pod, world.backend_at(Place::Back)).bytes();
            assert_eq!(datapath.pass("lb_tc_from_pod", &request), expected);
        }
    });
}

#[test]
fn packets_to_local_backends_are_left_to_the_stack() {
    with_backend(Place::Back, |datapath, _, world, program| {
        let pod = world.backend_at(Place::Back);
        let service = if world.vip.is_ipv4() { 1 } else { 2 };
        datapath.change_backend(service * 100, |backend| backend.local = true);
        for protocol in PROTOCOLS {
            let request = datapath.pass(program, &first(protocol, world.client, world.vip).bytes());
            assert_eq!(request, first(protocol, world.client, pod).bytes());
        }
        datapath.change_backend(service * 100, |backend| backend.local = false);
    });
}

#[test]
fn packets_to_addresses_of_the_node_are_left_to_the_stack() {
    with_backend(Place::Node, |datapath, _, world, program| {
        let pod = world.backend_at(Place::Node);
        for protocol in PROTOCOLS {
            let request = datapath.pass(program, &first(protocol, world.client, world.vip).bytes());
            assert_eq!(request, first(protocol, world.client, pod).bytes());
            let reply = datapath.pass("lb_tc_to_network", &answer(protocol, pod, world.client).bytes());
            assert_eq!(reply, answer(protocol, world.vip, world.client).bytes());
        }
    });
}

#[test]
fn xdp_leaves_packets_with_unresolved_neighbours_to_tc() {
    with_backend(Place::Unresolved, |datapath, _, world, _| {
        let pod = world.backend_at(Place::Unresolved);
        for protocol in PROTOCOLS {
            for packet in [
                first(protocol, world.client, world.vip),
                data(protocol, world.client, world.vip),
            ] {
                datapath.untouched("lb_xdp", &packet.bytes());
                let program = "lb_tc_from_network";
                let bytes = sent(datapath, program, &packet, Verdict::Redirect);
                let source = see(&bytes).source;
                assert_eq!(source.ip(), world.back_address());
                assert_eq!(bytes, packet.between(source, pod).hop_limit(63).bytes());
            }
        }
        assert_eq!(datapath.reasons(), []);
    });
}

#[test]
fn xdp_leaves_packets_to_tc_if_the_device_cannot_transmit() {
    with_backend(Place::Back, |datapath, network, world, _| {
        network.tell(datapath, &[network.front]);
        for protocol in PROTOCOLS {
            let packet = first(protocol, world.client, world.vip);
            datapath.untouched("lb_xdp", &packet.bytes());
            sent(datapath, "lb_tc_from_network", &packet, Verdict::Redirect);
        }
    });
}

#[test]
fn without_a_route_packets_are_dropped() {
    let mut count = 0;
    with_backend(Place::Unreachable, |datapath, _, world, program| {
        for protocol in PROTOCOLS {
            datapath.dropped(program, &first(protocol, world.client, world.vip).bytes());
            count += 1;
        }
        assert_eq!(datapath.reasons(), [(Reason::NoRoute, count)]);
        assert_eq!(datapath.flow_count(), 0);
    });
}

#[test]
fn packets_of_open_connections_without_a_route_are_dropped() {
    with_backend(Place::Back, |datapath, network, world, program| {
        let source = there_and_back(datapath, network, world, program, syn);
        let before = datapath.reason(Reason::NoRoute);
        let (route, client) = match world.vip.is_ipv4() {
            true => ("unreachable 10.1.0.5", "unreachable 198.51.100.7"),
            false => ("unreachable fd00:1::5", "unreachable 2001:db8:1::7"),
        };
        let lines = |verb: &str| [route, client].map(|what| format!("route {verb} {what}"));
        network.ip(&lines("add").each_ref().map(String::as_str));
        datapath.dropped(program, &ack(world.client, world.vip).bytes());
        datapath.dropped(program, &ack(world.backend_at(Place::Back), source).bytes());
        network.ip(&lines("del").each_ref().map(String::as_str));
        assert_eq!(datapath.reason(Reason::NoRoute) - before, 2);
        assert_eq!(there_and_back(datapath, network, world, program, ack), source);
    });
}

#[test]
fn packets_are_dropped_if_ip_forwarding_is_off() {
    with_backend(Place::Back, |datapath, network, world, program| {
        let before = datapath.reason(Reason::NoRoute);
        network.sysctl(&[("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")]);
        datapath.dropped(program, &syn(world.client, world.vip).bytes());
        assert_eq!(datapath.reason(Reason::NoRoute) - before, 1);
        network.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
    });
}

/// The second 32-bit word of an ICMP header.
fn rest(bytes: &[u8]) -> u32 {
    let offset = 14 + if bytes[14] >> 4 == 4 { 20 } else { 40 } + 4;
    u32::from_be_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

/// Asserts that a packet is answered with an ICMP error of this type and code that quotes it;
/// returns the second word of its header.
fn answered(datapath: &mut Datapath, program: &str, packet: &Build, [kind4, kind6]: [(u8, u8); 2]) -> u32 {
    let packet = packet.bytes();
    let bytes = datapath.bounce(program, &packet);
    let (request, answer) = (see(&packet), see(&bytes));
    let (kind, header) = match request.source.is_ipv4() {
        true => (kind4, 20),
        false => (kind6, 40),
    };
    let is_tcp = matches!(request.transport, etherparse::TransportHeader::Tcp(_));
    assert_eq!(answer.icmp(), kind, "{bytes:02x?}");
    assert_eq!(answer.source.ip(), request.destination.ip(), "{bytes:02x?}");
    assert_eq!(answer.destination.ip(), request.source.ip(), "{bytes:02x?}");
    assert_eq!(
        (answer.link_source, answer.link_destination),
        (CLIENT_LINK.source, CLIENT_LINK.destination)
    );
    let quoted = 14 + header + if is_tcp { 20 } else { 8 };
    assert_eq!(answer.payload, packet[14..quoted], "{bytes:02x?}");
    rest(&bytes)
}

/// A packet whose IP header and payload together have this length.
fn of_length(protocol: Protocol, world: &World, length: u32) -> Build {
    let headers = match (world.vip.is_ipv4(), protocol) {
        (true, Protocol::Tcp) => 40,
        (true, _) => 28,
        (false, Protocol::Tcp) => 60,
        (false, _) => 48,
    };
    let payload = usize::try_from(length).expect("fits") - headers;
    data(protocol, world.client, world.vip).payload(&vec![7; payload])
}

#[test]
fn packets_above_the_mtu_are_answered_with_an_error() {
    let mut count = 0;
    with_backend(Place::Narrow, |datapath, _, world, program| {
        for protocol in PROTOCOLS {
            for length in [NARROW_MTU + 1, 1500] {
                let packet = of_length(protocol, world, length);
                let mtu = answered(datapath, program, &packet, [(3, 4), (2, 0)]);
                assert_eq!(mtu, NARROW_MTU);
                count += 1;
            }
            let packet = of_length(protocol, world, NARROW_MTU);
            sent(datapath, program, &packet, Verdict::Redirect);
        }
        assert_eq!(datapath.reasons(), [(Reason::TooBig, count)]);
    });
}

#[test]
fn packets_with_an_expired_hop_limit_are_answered_with_an_error() {
    let mut count = 0;
    with_backend(Place::Back, |datapath, _, world, program| {
        for protocol in PROTOCOLS {
            for limit in [0, 1] {
                let packet = first(protocol, world.client, world.vip).hop_limit(limit);
                let rest = answered(datapath, program, &packet, [(11, 0), (3, 0)]);
                assert_eq!(rest, 0);
                count += 1;
            }
            let packet = first(protocol, world.client, world.vip);
            let bytes = sent(datapath, program, &packet.clone().hop_limit(2), Verdict::Redirect);
            let source = see(&bytes).source;
            let expected = packet.between(source, world.backend_at(Place::Back));
            assert_eq!(bytes[14..], expected.hop_limit(1).bytes()[14..]);
        }
        assert_eq!(datapath.reasons(), [(Reason::HopLimit, count)]);
    });
}

#[test]
fn a_reset_with_an_expired_hop_limit_is_not_answered() {
    with_backend(Place::Back, |datapath, _, world, program| {
        let packet = ack(world.client, world.vip).flags(|header| header.rst = true);
        datapath.dropped(program, &packet.hop_limit(1).bytes());
    });
}

/// While a route is missing, packets are dropped. They leave no flow, so they are forwarded when
/// the route returns.
#[test]
fn connections_continue_when_a_route_returns() {
    const AWAY: [&str; 4] = [
        "route del 10.1.0.0/16",
        "route del fd00:1::/64",
        "route del default via 192.0.2.254 dev front",
        "route del default via 2001:db8::fe dev front",
    ];
    const BACK: [&str; 4] = [
        "route add 10.1.0.0/16 via 172.16.0.2 dev back",
        "route add fd00:1::/64 via fd00:172::2 dev back",
        "route add default via 192.0.2.254 dev front",
        "route add default via 2001:db8::fe dev front",
    ];
    with_backend(Place::Back, |datapath, network, world, program| {
        for protocol in PROTOCOLS {
            let before = datapath.reason(Reason::NoRoute);
            let request = first(protocol, world.client, world.vip);
            network.ip(&AWAY);
            datapath.dropped(program, &request.bytes());
            datapath.dropped(program, &request.bytes());
            assert_eq!(datapath.reason(Reason::NoRoute), before + 2);
            assert_eq!(datapath.flow_count(), 0);
            network.ip(&BACK);
            there_and_back(datapath, network, world, program, |from, to| {
                first(protocol, from, to)
            });
            // Open connections continue after the route returns.
            datapath.device = network.front;
            network.ip(&AWAY);
            let data = data(protocol, world.client, world.vip);
            datapath.dropped(program, &data.bytes());
            assert_eq!(datapath.reason(Reason::NoRoute), before + 3);
            network.ip(&BACK);
            sent(datapath, program, &data, Verdict::Redirect);
            datapath.forget();
        }
    });
}

#[test]
fn connections_to_one_backend_have_distinct_source_ports() {
    let two = only_ports(61_000, 2);
    let Some(mut datapath) = datapath_with(|settings| settings.source_ports = two) else {
        return;
    };
    let Some(_network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve_from(&mut datapath, Place::Back);
    for world in worlds() {
        for protocol in PROTOCOLS {
            let mut ports = Vec::new();
            let mut client = 40_000;
            // The random search may not find a free port; then the client tries again.
            for _ in 0..50 {
                let packet = first(protocol, world.client_at(client), world.vip).bytes();
                let (verdict, bytes) = datapath.verdict("lb_xdp", &packet);
                if verdict == Verdict::Redirect {
                    ports.push(see(&bytes).source.port());
                    client += 1;
                }
            }
            ports.sort_unstable();
            assert_eq!(ports, [61_000, 61_001]);
            let before = datapath.reason(Reason::NoSourcePort);
            let packet = first(protocol, world.client_at(client), world.vip).bytes();
            datapath.dropped("lb_xdp", &packet);
            assert_eq!(datapath.reason(Reason::NoSourcePort), before + 1);
            // Ports of idle connections are reused.
            datapath.age(1_000_000);
            assert_eq!(datapath.verdict("lb_xdp", &packet).0, Verdict::Redirect);
        }
    }
}
