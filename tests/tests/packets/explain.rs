//! The result of `lb-agent explain` for a packet matches what the kernel programs do with it.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use lb_agent::datapath::clock::Clock;
use lb_agent::datapath::live::LiveMaps;
use lb_agent::datapath::passing::{PassingFlows, Translated};
use lb_agent::explain::{
    Explanation, Fate, From, KernelRoutes, PacketProtocol, Question, RouteLookup, Routes, Surroundings,
    explain,
};
use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::layout::{Frontend, Region, frontend_flags};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, Seen, ack, see};
use lb_tests::packet::network::{Place, TestNetwork, serve_from};
use lb_tests::packet::world::{PROTOCOLS, World, at, data, first, is_given_out, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

/// The ingress programs, each with the origin of its packets.
const HOOKS: [(&str, From); 3] = [
    ("lb_tc_from_pod", From::Pod),
    ("lb_tc_from_network", From::Outside),
    ("lb_xdp", From::Outside),
];

/// A node without any route.
struct NoRoutes;

impl Routes for NoRoutes {
    fn lookup(&self, _destination: IpAddr) -> RouteLookup {
        RouteLookup::NONE
    }
}

fn ask(
    datapath: &Datapath,
    routes: &dyn Routes,
    from: From,
    protocol: PacketProtocol,
    ends: (SocketAddr, SocketAddr),
) -> Explanation {
    let maps = LiveMaps::open(datapath.directory()).unwrap();
    let surroundings = Surroundings {
        clock: Clock::read().unwrap(),
        routes,
        ingress: 0,
        bare: &BTreeSet::new(),
        has_socket_programs: false,
    };
    let question = Question {
        protocol,
        source: ends.0,
        destination: ends.1,
    };
    explain(&maps, &surroundings, question, from).unwrap()
}

/// Explains a packet, runs the kernel program on it, compares both results, and returns the
/// explanation.
#[track_caller]
fn agree(datapath: &mut Datapath, hook: (&str, From), protocol: Protocol, packet: &Build) -> Explanation {
    agree_along(datapath, &NoRoutes, hook, protocol, packet)
}

#[track_caller]
fn agree_along(
    datapath: &mut Datapath,
    routes: &dyn Routes,
    (program, from): (&str, From),
    protocol: Protocol,
    packet: &Build,
) -> Explanation {
    let before = see(&packet.bytes());
    let asked = match protocol {
        Protocol::Tcp => PacketProtocol::Tcp,
        Protocol::Udp => PacketProtocol::Udp,
        Protocol::Sctp => PacketProtocol::Sctp,
    };
    let said = ask(datapath, routes, from, asked, (before.source, before.destination));
    let reasons = datapath.reasons();
    let (verdict, bytes) = datapath.verdict(program, &packet.bytes());
    let reasons: Vec<Reason> = new_reasons(&reasons, &datapath.reasons());
    let context = format!("{program} {protocol}: {verdict:?} {reasons:?}, explained {said:#?}");
    let names: Vec<&str> = reasons.iter().map(|reason| reason.name()).collect();
    assert_eq!(said.reason.into_iter().collect::<Vec<_>>(), names, "{context}");
    match said.verdict {
        Fate::Passed => assert_eq!((verdict, &bytes), (Verdict::Pass, &packet.bytes()), "{context}"),
        Fate::Dropped => assert_eq!(verdict, Verdict::Drop, "{context}"),
        Fate::Rejected => assert_eq!(verdict, Verdict::Bounce, "{context}"),
        Fate::Translated => {
            assert_eq!(verdict, Verdict::Pass, "{context}");
            assert_rewritten(&said, &see(&bytes), &context);
        }
        Fate::Hairpin | Fate::Forwarded => {
            let sent = match said.verdict {
                Fate::Hairpin => Verdict::Bounce,
                _ => Verdict::Redirect,
            };
            assert_eq!(verdict, sent, "{context}");
            assert_rewritten(&said, &see(&bytes), &context);
        }
        Fate::Answered => panic!("only pings are answered: {context}"),
        Fate::Unseen => panic!("no device is without programs: {context}"),
    }
    said
}

/// Asserts that the packet has the explained addresses and ports.
#[track_caller]
fn assert_rewritten(said: &Explanation, seen: &Seen, context: &str) {
    let source = said.new_source.unwrap();
    if said.source_port_by_chance {
        assert_eq!(source.ip(), seen.source.ip(), "{context}");
        assert!(is_given_out(seen.source.port()), "{context}");
    } else {
        assert_eq!(source, seen.source, "{context}");
    }
    if said.by_chance {
        let mut backends = said.backends.iter();
        assert!(
            backends.any(|backend| backend.address == seen.destination),
            "{context}"
        );
    } else {
        assert_eq!(said.new_destination, Some(seen.destination), "{context}");
    }
}

fn new_reasons(before: &[(Reason, u64)], after: &[(Reason, u64)]) -> Vec<Reason> {
    let was = |reason: Reason| {
        before
            .iter()
            .find(|(known, _)| *known == reason)
            .map_or(0, |row| row.1)
    };
    let new = after.iter().filter(|(reason, count)| *count != was(*reason));
    new.map(|(reason, _)| *reason).collect()
}

/// Runs a check at every hook, for both families and all protocols, each on a Service with two
/// Pods. `row` changes the frontend row.
fn with_service(
    row: impl Fn(Frontend) -> Frontend,
    mut check: impl FnMut(&mut Datapath, &World, (&str, From), Protocol),
) {
    let Some(mut datapath) = datapath() else { return };
    for hook in HOOKS {
        // Flows from the previous hook.
        datapath.forget();
        for (service, world) in (1..).zip(worlds()) {
            datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
            let value = row(Datapath::row(service, 2));
            for key in keys(world.vip) {
                datapath.frontend(key, value);
            }
            for protocol in PROTOCOLS {
                check(&mut datapath, &world, hook, protocol);
            }
        }
    }
}

#[test]
fn first_packets_and_open_connections_are_explained() {
    with_service(
        |row| row,
        |datapath, world, hook, protocol| {
            for port in 1000..1010 {
                let client = world.client_at(port);
                let said = agree(datapath, hook, protocol, &first(protocol, client, world.vip));
                assert_eq!(said.verdict, Fate::Translated);
                assert_eq!(said.by_chance, hook.1 == From::Pod);
                assert_eq!(said.backends.len(), 2);
                let known = agree(datapath, hook, protocol, &data(protocol, client, world.vip));
                assert_eq!((known.verdict, known.by_chance), (Fate::Translated, false));
                assert!(known.backends.is_empty(), "{known:?}");
            }
        },
    );
}

#[test]
fn session_affinity_is_explained() {
    with_service(
        |row| Frontend {
            affinity_seconds: 100,
            ..row
        },
        |datapath, world, hook, protocol| {
            for port in 1000..1004 {
                let client = world.client_at(port);
                let said = agree(datapath, hook, protocol, &first(protocol, client, world.vip));
                assert_eq!((said.verdict, said.by_chance), (Fate::Translated, false));
            }
        },
    );
}

#[test]
fn a_local_policy_without_local_endpoints_is_explained() {
    let local = frontend_flags::INSIDE_LOCAL | frontend_flags::OUTSIDE_LOCAL;
    with_service(
        |row| Frontend {
            flags: local,
            local: Region::default(),
            ..row
        },
        |datapath, world, hook, protocol| {
            let packet = first(protocol, world.client, world.vip);
            let said = agree(datapath, hook, protocol, &packet);
            assert_eq!(
                (said.verdict, said.reason),
                (Fate::Dropped, Some("no_local_endpoint"))
            );
        },
    );
}

#[test]
fn a_service_without_endpoints_is_explained() {
    with_service(
        |row| Frontend {
            cluster: Region::default(),
            local: Region::default(),
            ..row
        },
        |datapath, world, hook, protocol| {
            let packet = first(protocol, world.client, world.vip);
            let said = agree(datapath, hook, protocol, &packet);
            assert_eq!((said.verdict, said.reason), (Fate::Rejected, Some("no_endpoint")));
        },
    );
}

#[test]
fn unknown_ports_and_addresses_are_explained() {
    for (flags, expected) in [(0, Fate::Rejected), (frontend_flags::PASS_UNKNOWN, Fate::Passed)] {
        with_service(
            |row| row,
            |datapath, world, hook, protocol| {
                let value = Frontend {
                    flags: frontend_flags::WILDCARD | flags,
                    ..Frontend::default()
                };
                let key = FrontendKey::Wildcard(world.vip.ip());
                datapath.frontend(key, value);
                let unknown = SocketAddr::new(world.vip.ip(), 9);
                let said = agree(datapath, hook, protocol, &first(protocol, world.client, unknown));
                assert_eq!(said.verdict, expected);
                let said = agree(
                    datapath,
                    hook,
                    protocol,
                    &first(protocol, world.client, world.vip2),
                );
                assert_eq!(said.verdict, Fate::Passed);
            },
        );
    }
}

#[test]
fn source_ranges_are_explained() {
    // Each combination of family and protocol needs a new, empty set.
    let sets = Cell::new(0);
    with_service(
        |row| row,
        |datapath, world, hook, protocol| {
            sets.set(sets.get() + 1);
            let service = if world.vip.is_ipv4() { 1 } else { 2 };
            let value = Frontend {
                source_ranges: sets.get(),
                ..Datapath::row(service, 2)
            };
            for key in keys(world.vip) {
                datapath.frontend(key, value);
            }
            let packet = first(protocol, world.client, world.vip);
            let said = agree(datapath, hook, protocol, &packet);
            assert_eq!((said.verdict, said.reason), (Fate::Dropped, Some("source_range")));
            datapath.allow(sets.get(), world.client.ip(), 24);
            let said = agree(datapath, hook, protocol, &packet);
            assert_eq!(said.verdict, Fate::Translated);
        },
    );
}

#[test]
fn connections_to_removed_backends_are_explained() {
    with_service(
        |row| row,
        |datapath, world, hook, protocol| {
            let service = if world.vip.is_ipv4() { 1 } else { 2 };
            let rows = [service * 100, service * 100 + 1];
            agree(
                datapath,
                hook,
                protocol,
                &first(protocol, world.client, world.vip),
            );
            for row in rows {
                datapath.replace(row, world.pod2.ip());
            }
            datapath.set_slots(rows[0], &rows);
            let said = agree(datapath, hook, protocol, &data(protocol, world.client, world.vip));
            let expected = match protocol {
                Protocol::Tcp => (Fate::Rejected, Some("backend_gone")),
                _ => (Fate::Translated, None),
            };
            assert_eq!((said.verdict, said.reason), expected);
        },
    );
}

#[test]
fn idle_connections_are_explained_as_new_ones() {
    with_service(
        |row| row,
        |datapath, world, hook, protocol| {
            agree(
                datapath,
                hook,
                protocol,
                &first(protocol, world.client, world.vip),
            );
            datapath.age(100_000);
            let said = agree(
                datapath,
                hook,
                protocol,
                &first(protocol, world.client, world.vip),
            );
            assert_eq!(said.backends.len(), 2, "{said:?}");
        },
    );
}

#[test]
fn connections_of_another_service_proxy_are_explained_as_passed() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        let mut flows = PassingFlows::open(datapath.directory()).unwrap();
        let connection = Translated {
            protocol: Protocol::Tcp,
            client: world.client,
            frontend: world.vip,
            backend: world.pod,
        };
        flows.set(&[connection], Clock::read().unwrap()).unwrap();
        for hook in HOOKS {
            let said = agree(&mut datapath, hook, Protocol::Tcp, &ack(world.client, world.vip));
            assert_eq!(said.verdict, Fate::Passed, "{said:?}");
        }
    }
}

#[test]
fn hairpin_connections_are_explained() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        let hook = HOOKS[0];
        for protocol in PROTOCOLS {
            let client = SocketAddr::new(world.pod.ip(), 40_000);
            let said = agree(&mut datapath, hook, protocol, &first(protocol, client, world.vip));
            assert_eq!(said.verdict, Fate::Hairpin);
            // The flow exists now, so the explanation is exact, also for the reply.
            let packet = data(protocol, client, world.vip);
            agree(&mut datapath, hook, protocol, &packet);
            let request = see(&datapath.bounce(hook.0, &packet.bytes()));
            let reply = data(protocol, request.destination, request.source);
            let said = agree(&mut datapath, hook, protocol, &reply);
            assert_eq!(said.verdict, Fate::Hairpin);
            assert_eq!(
                (said.new_source, said.new_destination),
                (Some(world.vip), Some(client))
            );
        }
    }
}

#[test]
fn a_syn_on_a_closed_connection_is_explained_as_a_new_one() {
    let Some(mut datapath) = datapath() else { return };
    let [world, _] = worlds();
    datapath.service(1, &keys(world.vip), &[at(world.pod)]);
    agree(
        &mut datapath,
        HOOKS[0],
        Protocol::Tcp,
        &first(Protocol::Tcp, world.client, world.vip),
    );
    let reset = ack(world.client, world.vip).flags(|header| header.rst = true);
    datapath.pass(HOOKS[0].0, &reset.bytes());
    let said = agree(
        &mut datapath,
        HOOKS[0],
        Protocol::Tcp,
        &first(Protocol::Tcp, world.client, world.vip),
    );
    assert_eq!(said.backends.len(), 1, "{said:?}");
}

#[test]
fn explained_pings_match_the_programs() {
    let Some(mut datapath) = datapath() else { return };
    for world in worlds() {
        let key = FrontendKey::Wildcard(world.vip.ip());
        for (flags, expected) in [
            (None, Fate::Passed),
            (Some(frontend_flags::WILDCARD), Fate::Passed),
            (
                Some(frontend_flags::WILDCARD | frontend_flags::ECHO),
                Fate::Answered,
            ),
        ] {
            if let Some(flags) = flags {
                let value = Frontend {
                    flags,
                    ..Frontend::default()
                };
                datapath.frontend(key, value);
            }
            for (program, from) in HOOKS {
                let ends = (world.client, world.vip);
                let said = ask(&datapath, &NoRoutes, from, PacketProtocol::Icmp, ends);
                assert_eq!(said.verdict, expected, "{program}");
                let (verdict, _) = datapath.verdict(program, &ping(world.client.ip(), world.vip.ip()));
                let answered = verdict == Verdict::Bounce;
                assert_eq!(answered, expected == Fate::Answered, "{program} {verdict:?}");
            }
        }
    }
}

fn ping(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => link
            .ipv4(source.octets(), destination.octets(), 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut bytes, b"ping"),
        (IpAddr::V6(source), IpAddr::V6(destination)) => link
            .ipv6(source.octets(), destination.octets(), 64)
            .icmpv6_echo_request(1, 1)
            .write(&mut bytes, b"ping"),
        _ => panic!("two families"),
    }
    .unwrap();
    bytes
}

#[test]
fn forwarding_to_other_nodes_is_explained() {
    let Some(mut datapath) = datapath() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    for (service, world) in (1..).zip(worlds()) {
        for place in [Place::Back, Place::Front, Place::Node, Place::Unreachable] {
            let backend = world.backend_at(place);
            datapath.service(service, &keys(world.vip), &[at(backend)]);
            datapath.change_backend(service * 100, |row| row.local = false);
            let routes = KernelRoutes::connect(world.client.ip()).unwrap();
            for protocol in PROTOCOLS {
                datapath.forget();
                let packet = first(protocol, world.client, world.vip);
                let said = agree_along(&mut datapath, &routes, HOOKS[1], protocol, &packet);
                let source = said.new_source.map(|source| source.ip());
                let (verdict, expected, device) = match place {
                    Place::Back => (Fate::Forwarded, Some(world.back_address()), Some("back")),
                    Place::Front => (Fate::Forwarded, Some(world.node), Some("front")),
                    Place::Node => (Fate::Translated, Some(world.client.ip()), None),
                    _ => (Fate::Dropped, None, None),
                };
                assert_eq!(
                    (said.verdict, source, said.device.as_deref()),
                    (verdict, expected, device),
                    "{place:?}"
                );
                if verdict == Fate::Forwarded {
                    // The connection is open now.
                    let packet = data(protocol, world.client, world.vip);
                    let said = agree_along(&mut datapath, &routes, HOOKS[1], protocol, &packet);
                    assert_eq!((said.verdict, said.source_port_by_chance), (verdict, false));
                }
            }
        }
    }
    network.sysctl(&[("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")]);
    serve_from(&mut datapath, Place::Back);
    for world in worlds() {
        datapath.forget();
        let routes = KernelRoutes::connect(world.client.ip()).unwrap();
        let packet = first(Protocol::Tcp, world.client, world.vip);
        let said = agree_along(&mut datapath, &routes, HOOKS[1], Protocol::Tcp, &packet);
        assert_eq!(said.reason, Some("no_route"));
    }
}
