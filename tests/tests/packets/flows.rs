//! Connections over time: hairpin, backends that go away, closed and idle flows, shared source
//! ports.

use std::net::SocketAddr;

use etherparse::TransportHeader;
use lb_agent::maps::{BackendState, MapOp, Protocol};
use lb_common::layout::flow_state;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, NODE, SENDER, Seen, ack, rst, see, syn, syn_ack, udp};
use lb_tests::packet::world::{
    DEVICES, POD_DEVICE, PROTOCOLS, World, answer, at, data, first, is_given_out, keys, worlds,
};
use lb_tests::packet::{Datapath, datapath, datapath_without_address};

/// Runs a check for both families on a Service with these Pods.
fn with_pods(pods: impl Fn(&World) -> Vec<SocketAddr>, mut check: impl FnMut(&mut Datapath, &World, u32)) {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        let pods: Vec<_> = pods(&world).into_iter().map(at).collect();
        datapath.service(service, &keys(world.vip), &pods);
        check(&mut datapath, &world, service);
    }
}

fn one(world: &World) -> Vec<SocketAddr> {
    vec![world.pod]
}

fn two(world: &World) -> Vec<SocketAddr> {
    vec![world.pod, world.pod2]
}

/// Sends a request of a Pod and returns its new destination.
fn destination(datapath: &mut Datapath, packet: &Build) -> SocketAddr {
    see(&datapath.pass("lb_tc_from_pod", &packet.bytes())).destination
}

/// Opens a connection to a Service with two Pods, then makes all slots name the other Pod. Returns
/// the row of the connection's backend, and the other Pod.
fn open_and_move(datapath: &mut Datapath, world: &World, service: u32, packet: &Build) -> (u32, SocketAddr) {
    open_and_move_at("lb_tc_from_pod", datapath, world, service, packet)
}

fn open_and_move_at(
    program: &str,
    datapath: &mut Datapath,
    world: &World,
    service: u32,
    packet: &Build,
) -> (u32, SocketAddr) {
    let base = service * 100;
    datapath.set_slots(base, &[base, base + 1]);
    let destination = see(&datapath.pass(program, &packet.bytes())).destination;
    let (row, other, pod) = if destination == world.pod {
        (base, base + 1, world.pod2)
    } else {
        (base + 1, base, world.pod)
    };
    datapath.set_slots(base, &[other, other]);
    (row, pod)
}

/// The backend accepts a connection of a Pod, and the client acknowledges.
fn accept(datapath: &mut Datapath, client: SocketAddr, vip: SocketAddr, pod: SocketAddr) {
    let reply = datapath.pass("lb_tc_to_pod", &syn_ack(pod, client).bytes());
    assert_eq!(see(&reply).source, vip);
    destination(datapath, &ack(client, vip));
}

#[test]
fn hairpin_packets_have_the_nodes_address_as_source() {
    with_pods(one, |datapath, world, service| {
        let device = POD_DEVICE;
        for protocol in PROTOCOLS {
            let client = SocketAddr::new(world.pod.ip(), 40_000);
            let request = datapath.bounce(device.ingress, &first(protocol, client, world.vip).bytes());
            let seen = see(&request);
            assert_eq!((seen.link_source, seen.link_destination), (NODE, SENDER));
            assert_eq!(seen.source.ip(), world.node, "{request:02x?}");
            assert!(is_given_out(seen.source.port()), "{request:02x?}");
            assert_eq!(seen.destination, world.pod, "{request:02x?}");

            let reply = datapath.bounce(
                device.ingress,
                &data(protocol, seen.destination, seen.source).bytes(),
            );
            let seen = see(&reply);
            assert_eq!((seen.link_source, seen.link_destination), (NODE, SENDER));
            assert_eq!(
                (seen.source, seen.destination),
                (world.vip, client),
                "{reply:02x?}"
            );
        }
        assert_eq!(datapath.stats(service), (2, 0));
        assert_eq!(datapath.reasons(), []);
    });
}

#[test]
fn hairpin_flows_keep_their_source_port() {
    with_pods(one, |datapath, world, _| {
        let client = SocketAddr::new(world.pod.ip(), 40_000);
        let mut sources = (0..4).map(|_| {
            let packet = udp(client, world.vip);
            let seen = see(&datapath.bounce("lb_tc_from_pod", &packet.bytes()));
            seen.source
        });
        let source = sources.next();
        assert!(sources.all(|other| Some(other) == source));
    });
}

#[test]
fn hairpin_without_an_address_of_the_node_is_dropped() {
    let Some(mut datapath) = datapath_without_address() else {
        return;
    };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        let client = SocketAddr::new(world.pod.ip(), 40_000);
        for protocol in PROTOCOLS {
            datapath.dropped("lb_tc_from_pod", &first(protocol, client, world.vip).bytes());
        }
    }
    assert_eq!(datapath.reasons(), [(Reason::NoSourcePort, 4)]);
}

#[test]
fn tcp_to_a_removed_backend_is_reset() {
    with_pods(two, |datapath, world, service| {
        let before = datapath.reason(Reason::BackendGone);
        for (port, device) in (1000..).zip(DEVICES) {
            let client = world.client_at(port);
            let flows = datapath.flow_count();
            let packet = syn(client, world.vip);
            let (row, other) = open_and_move_at(device.ingress, datapath, world, service, &packet);
            assert_eq!(datapath.flow_count(), flows + 2);
            datapath.set_state(row, BackendState::Gone);
            let answer = datapath.bounce(device.ingress, &ack(client, world.vip).bytes());
            let header = see(&answer).tcp().clone();
            assert!(header.rst, "{answer:02x?}");
            assert_eq!(header.sequence_number, 2000, "{answer:02x?}");
            assert_eq!(datapath.flow_count(), flows);
            datapath.set_state(row, BackendState::Active);
            // The next attempt gets the other backend.
            let again = datapath.pass(device.ingress, &packet.bytes());
            assert_eq!(see(&again).destination, other);
        }
        assert_eq!(datapath.reason(Reason::BackendGone) - before, 3);
    });
}

#[test]
fn a_reset_to_a_removed_backend_is_not_answered() {
    with_pods(two, |datapath, world, service| {
        let (row, _) = open_and_move(datapath, world, service, &syn(world.client, world.vip));
        datapath.set_state(row, BackendState::Gone);
        let packet = ack(world.client, world.vip).flags(|header| header.rst = true);
        datapath.dropped("lb_tc_from_pod", &packet.bytes());
    });
}

#[test]
fn first_packets_leave_a_removed_backend() {
    with_pods(two, |datapath, world, service| {
        for (port, replaced) in [(1000, false), (2000, true)] {
            for packet in [udp, syn].map(|build| build(world.client_at(port), world.vip)) {
                let (row, other) = open_and_move(datapath, world, service, &packet);
                if replaced {
                    // Even an endpoint with the same address counts as another one.
                    let pod = if other == world.pod { world.pod2 } else { world.pod };
                    datapath.replace(row, pod.ip());
                } else {
                    datapath.set_state(row, BackendState::Gone);
                }
                assert_eq!(destination(datapath, &packet), other);
                assert_eq!(destination(datapath, &packet), other);
                datapath.set_state(row, BackendState::Active);
            }
        }
        assert_eq!(datapath.reason(Reason::BackendGone), 0);
    });
}

#[test]
fn a_draining_backend_keeps_flows_and_gets_no_new_ones() {
    with_pods(two, |datapath, world, service| {
        for protocol in PROTOCOLS {
            let packet = first(protocol, world.client, world.vip);
            let (row, other) = open_and_move(datapath, world, service, &packet);
            datapath.set_state(row, BackendState::Draining);
            let kept = destination(datapath, &data(protocol, world.client, world.vip));
            assert_ne!(kept, other);
            for port in 1000..1020 {
                let packet = first(protocol, world.client_at(port), world.vip);
                assert_eq!(destination(datapath, &packet), other);
            }
            datapath.set_state(row, BackendState::Active);
        }
    });
}

#[test]
fn an_absent_backend_keeps_answered_flows_and_tcp() {
    with_pods(two, |datapath, world, service| {
        let cases = PROTOCOLS
            .into_iter()
            .flat_map(|protocol| [(protocol, false), (protocol, true)]);
        for (port, (protocol, answered)) in (3000..).step_by(100).zip(cases) {
            let client = world.client_at(port);
            let (row, other) = open_and_move(datapath, world, service, &first(protocol, client, world.vip));
            let pod = if other == world.pod { world.pod2 } else { world.pod };
            if answered {
                datapath.pass("lb_tc_to_pod", &data(protocol, pod, client).bytes());
            }
            datapath.set_state(row, BackendState::Absent);
            let is_kept = answered || protocol == Protocol::Tcp;
            let expected = if is_kept { pod } else { other };
            for _ in 0..2 {
                let packet = data(protocol, client, world.vip);
                assert_eq!(destination(datapath, &packet), expected, "{protocol} {answered}");
            }
            for port in port + 1..port + 20 {
                let packet = first(protocol, world.client_at(port), world.vip);
                assert_eq!(destination(datapath, &packet), other);
            }
            datapath.set_state(row, BackendState::Active);
            let packet = data(protocol, client, world.vip);
            assert_eq!(destination(datapath, &packet), expected, "{protocol} {answered}");
        }
        assert_eq!(datapath.reason(Reason::BackendGone), 0);
    });
}

#[test]
fn draining_and_absent_backends_are_not_chosen() {
    with_pods(one, |datapath, world, service| {
        for state in [BackendState::Draining, BackendState::Absent] {
            datapath.set_state(service * 100, state);
            datapath.dropped("lb_xdp", &syn(world.client, world.vip).bytes());
        }
    });
}

/// A FIN segment, one of the last of a connection.
fn fin(source: SocketAddr, destination: SocketAddr) -> Build {
    ack(source, destination).flags(|header| header.fin = true)
}

#[test]
fn a_syn_on_a_closed_connection_selects_a_new_backend() {
    with_pods(two, |datapath, world, service| {
        for (port, close) in [
            (1000, &[(fin as fn(_, _) -> _, true), (fin, false)][..]),
            (2000, &[(fin, false), (fin, true)]),
            (3000, &[(rst, true)]),
            (4000, &[(rst, false)]),
        ] {
            let client = world.client_at(port);
            let (_, other) = open_and_move(datapath, world, service, &syn(client, world.vip));
            let pod = destination(datapath, &ack(client, world.vip));
            assert_ne!(pod, other);
            accept(datapath, client, world.vip, pod);
            assert_eq!(destination(datapath, &syn(client, world.vip)), pod, "still open");
            for (build, from_client) in close {
                if *from_client {
                    assert_eq!(destination(datapath, &build(client, world.vip)), pod);
                } else {
                    let reply = datapath.pass("lb_tc_to_pod", &build(pod, client).bytes());
                    assert_eq!(see(&reply).source, world.vip);
                }
            }
            // The last acknowledgements are still translated. After a RST there are none.
            if close.len() > 1 {
                assert_eq!(destination(datapath, &ack(client, world.vip)), pod);
            }
            assert_eq!(destination(datapath, &syn(client, world.vip)), other);
            assert_eq!(destination(datapath, &ack(client, world.vip)), other);
        }
    });
}

#[test]
fn a_fin_of_one_side_does_not_close_the_flow() {
    with_pods(two, |datapath, world, service| {
        let (_, other) = open_and_move(datapath, world, service, &syn(world.client, world.vip));
        destination(datapath, &fin(world.client, world.vip));
        assert_ne!(destination(datapath, &syn(world.client, world.vip)), other);
    });
}

#[test]
fn both_directions_have_the_same_state() {
    let Some(mut datapath) = datapath() else { return };
    let [world, _] = worlds();
    datapath.service(1, &keys(world.vip), &[at(world.pod)]);
    destination(&mut datapath, &syn(world.client, world.vip));
    accept(&mut datapath, world.client, world.vip, world.pod);
    datapath.pass("lb_tc_to_network", &fin(world.pod, world.client).bytes());
    destination(&mut datapath, &rst(world.client, world.vip));
    let expected = flow_state::ANSWERED | flow_state::CONFIRMED | flow_state::FIN_REPLY | flow_state::RESET;
    let states: Vec<u8> = datapath
        .flows4()
        .iter()
        .map(|row| row.expect("a flow").1.state)
        .collect();
    assert_eq!(states, [expected; 2]);
}

/// Ticks: half an hour at 250 Hz. More than the lifetime of UDP flows, less than that of open TCP
/// connections.
const HALF_AN_HOUR: u32 = 1800;
/// Ticks: more than any lifetime.
const LONG: u32 = 1 << 20;

#[test]
fn idle_flows_expire() {
    with_pods(two, |datapath, world, service| {
        for protocol in PROTOCOLS {
            let packet = first(protocol, world.client, world.vip);
            let (_, other) = open_and_move(datapath, world, service, &packet);
            let pod = destination(datapath, &packet);
            datapath.age(LONG);
            let reply = data(protocol, pod, world.client).bytes();
            datapath.untouched("lb_tc_to_pod", &reply);
            assert_eq!(destination(datapath, &packet), other);
        }
    });
}

#[test]
fn established_connections_live_longer_than_opening_ones() {
    with_pods(two, |datapath, world, service| {
        for (port, answered, acknowledged) in [(1000, true, true), (2000, true, false), (3000, false, false)]
        {
            let client = world.client_at(port);
            let (_, other) = open_and_move(datapath, world, service, &syn(client, world.vip));
            let pod = destination(datapath, &syn(client, world.vip));
            if answered {
                datapath.pass("lb_tc_to_pod", &syn_ack(pod, client).bytes());
            }
            if acknowledged {
                destination(datapath, &ack(client, world.vip));
            }
            datapath.age(HALF_AN_HOUR);
            let now = destination(datapath, &syn(client, world.vip));
            assert_eq!(now == other, !acknowledged, "{port}");
        }
    });
}

#[test]
fn one_direction_keeps_the_other_alive() {
    with_pods(two, |datapath, world, service| {
        for (port, protocol) in [(1000, Protocol::Tcp), (2000, Protocol::Udp)] {
            let client = world.client_at(port);
            let packet = first(protocol, client, world.vip);
            let (_, other) = open_and_move(datapath, world, service, &packet);
            let pod = destination(datapath, &packet);
            assert_ne!(pod, other);
            let reply = answer(protocol, pod, client).bytes();
            datapath.age(LONG);
            // Both entries are expired, except that the client has just sent a packet.
            touch(datapath, client, world.vip);
            assert_eq!(see(&datapath.pass("lb_tc_to_pod", &reply)).source, world.vip);
            datapath.age(LONG);
            touch(datapath, pod, client);
            assert_eq!(destination(datapath, &packet), pod);
        }
    });
}

/// Undoes the ageing of one direction of a flow, as if it had just been used.
fn touch(datapath: &Datapath, source: SocketAddr, destination: SocketAddr) {
    datapath.age_if(LONG.wrapping_neg(), |from, to| {
        (from, to) == (source, destination)
    });
}

#[test]
fn one_source_port_reaches_two_frontends_of_one_pod() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        datapath.service(service + 10, &keys(world.vip2), &[at(world.pod)]);
        for protocol in PROTOCOLS {
            let requests = [world.vip, world.vip2].map(|vip| {
                let packet = first(protocol, world.client, vip).bytes();
                let seen: Seen = see(&datapath.pass("lb_tc_from_pod", &packet));
                assert_eq!(seen.destination, world.pod);
                (vip, seen.source)
            });
            let [(_, kept), (_, translated)] = requests;
            assert_eq!(kept, world.client);
            assert_eq!(translated.ip(), world.client.ip());
            assert!(is_given_out(translated.port()), "{translated}");
            for (vip, source) in requests {
                let reply = datapath.pass("lb_tc_to_pod", &answer(protocol, world.pod, source).bytes());
                let seen = see(&reply);
                assert_eq!((seen.source, seen.destination), (vip, world.client));
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn one_source_port_reaches_two_frontends_of_two_pods() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        for (offset, vip) in [(0, world.vip), (10, world.vip2)] {
            datapath.service(service + offset, &keys(vip), &[at(world.pod), at(world.pod2)]);
        }
        for port in 1000..1050 {
            let client = world.client_at(port);
            let requests = [world.vip, world.vip2].map(|vip| {
                let packet = syn(client, vip).bytes();
                (vip, see(&datapath.pass("lb_tc_from_pod", &packet)))
            });
            for (vip, request) in requests {
                let reply = syn_ack(request.destination, request.source).bytes();
                let seen = see(&datapath.pass("lb_tc_to_pod", &reply));
                assert_eq!((seen.source, seen.destination), (vip, client));
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn late_packets_do_not_change_the_next_connection() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        datapath.service(service + 10, &keys(world.vip2), &[at(world.pod)]);
        let client = world.client;
        destination(&mut datapath, &syn(client, world.vip));
        accept(&mut datapath, client, world.vip, world.pod);
        destination(&mut datapath, &fin(client, world.vip));
        datapath.pass("lb_tc_to_pod", &fin(world.pod, client).bytes());
        // The port is free again and the Pod is the same, so the reply entry now belongs to the new
        // connection.
        let request = see(&datapath.pass("lb_tc_from_pod", &syn(client, world.vip2).bytes()));
        assert_eq!(request.source, client);
        accept(&mut datapath, client, world.vip2, world.pod);
        destination(&mut datapath, &rst(client, world.vip));
        datapath.set_state(service * 100, BackendState::Gone);
        datapath.bounce("lb_tc_from_pod", &ack(client, world.vip).bytes());
        // A reset connection would not live for half an hour.
        datapath.pass("lb_tc_to_pod", &ack(world.pod, client).bytes());
        datapath.age(HALF_AN_HOUR);
        let reply = see(&datapath.pass("lb_tc_to_pod", &ack(world.pod, client).bytes()));
        assert_eq!(reply.source, world.vip2);
    }
}

#[test]
fn a_direct_connection_from_a_closed_ones_port_passes() {
    with_pods(one, |datapath, world, _| {
        let client = world.client;
        destination(datapath, &syn(client, world.vip));
        destination(datapath, &rst(client, world.vip));
        datapath.untouched("lb_tc_from_pod", &syn(client, world.pod).bytes());
        datapath.untouched("lb_tc_to_pod", &ack(world.pod, client).bytes());
    });
}

#[test]
fn flows_continue_after_their_frontends_are_deleted() {
    with_pods(one, |datapath, world, service| {
        for protocol in PROTOCOLS {
            destination(datapath, &first(protocol, world.client, world.vip));
        }
        for key in keys(world.vip) {
            datapath.apply(&MapOp::DeleteFrontend { key });
        }
        for protocol in PROTOCOLS {
            let packet = data(protocol, world.client, world.vip);
            assert_eq!(destination(datapath, &packet), world.pod);
            let packet = first(protocol, world.client_at(1000), world.vip);
            datapath.untouched("lb_tc_from_pod", &packet.bytes());
        }
        datapath.set_state(service * 100, BackendState::Gone);
        let answer = datapath.bounce("lb_tc_from_pod", &ack(world.client, world.vip).bytes());
        assert!(matches!(see(&answer).transport, TransportHeader::Tcp(header) if header.rst));
        datapath.untouched("lb_tc_from_pod", &udp(world.client, world.vip).bytes());
    });
}
