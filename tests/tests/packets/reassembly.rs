//! Later fragments that arrive before the first one of their datagram take a detour through the
//! kernel's reassembly.

use std::net::SocketAddr;

use lb_agent::devices::Role;
use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::budget::Limit;
use lb_common::layout::{DETOUR_LINK, Frontend, fragment_state, frontend_flags};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, Link, NODE, SENDER};
use lb_tests::packet::world::{PROTOCOLS, World, at, data, keys, worlds};
use lb_tests::packet::{Borrowed, Datapath, datapath};

/// TC programs of devices with Ethernet headers, and the roles of the devices.
const INGRESS: [(&str, Role); 2] = [
    ("lb_tc_from_network", Role::Network),
    ("lb_tc_from_pod", Role::Pod),
];
const FROM_REASSEMBLY: &str = "lb_tc_from_reassembly";
/// Payload length of all fragments but the last: a TCP header fits.
const LENGTH: usize = 24;
/// `TC_ACT_REDIRECT` (linux/pkt_cls.h)
const REDIRECT: u32 = 7;
/// `TC_ACT_SHOT`
const DROP: u32 = 2;
/// Link-layer destination of a fragment on its detour. It contains the index of the loopback
/// device.
const DETOUR: [u8; 6] = [DETOUR_LINK[0], DETOUR_LINK[1], 0, 0, 0, 1];

/// A Service of one Pod for each family, at an address with a wildcard row.
fn prepared(role: Option<Role>) -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        let value = Frontend {
            flags: frontend_flags::WILDCARD,
            ..Frontend::default()
        };
        datapath.frontend(FrontendKey::Wildcard(world.vip.ip()), value);
    }
    datapath.reassemble(role);
    Some(datapath)
}

/// A UDP datagram of four fragments.
fn datagram(world: &World, to: SocketAddr) -> Build {
    data(Protocol::Udp, world.client, to).payload(&[0x5a; 80])
}

fn detour(packet: &Build) -> Build {
    packet.clone().link(Link {
        destination: DETOUR,
        source: SENDER,
    })
}

/// Asserts that a program redirects a packet with the expected bytes.
#[track_caller]
fn redirected(datapath: &mut Datapath, program: &str, packet: &[u8], expected: &[u8]) {
    let outcome = datapath.run(program, packet);
    assert_eq!(outcome.action, REDIRECT, "{program}: {packet:02x?}");
    assert_eq!(outcome.bytes, expected, "{program}");
}

/// The states of all fragment rows.
fn states(datapath: &Datapath) -> Vec<u32> {
    let (v4, v6) = (datapath.fragments4(), datapath.fragments6());
    let v4 = v4.iter().map(|row| row.expect("a row").1);
    let v6 = v6.iter().map(|row| row.expect("a row").1);
    v4.chain(v6).map(|fragment| fragment.state).collect()
}

#[test]
fn a_later_fragment_that_arrives_first_starts_a_detour() {
    for (program, role) in INGRESS {
        let Some(mut datapath) = prepared(Some(role)) else {
            return;
        };
        for world in worlds() {
            for to in [world.vip, SocketAddr::new(world.node, 9)] {
                datapath.forget();
                let packet = datagram(&world, to);
                let expected = detour(&packet).split(1, LENGTH);
                for index in [2, 0, 1, 1, 3] {
                    redirected(
                        &mut datapath,
                        program,
                        &packet.split(1, LENGTH)[index],
                        &expected[index],
                    );
                }
                assert_eq!(states(&datapath), [fragment_state::DETOURED]);
                // Another datagram of the same client, whose fragments arrive in order, takes no
                // detour.
                for fragment in packet.split(2, LENGTH) {
                    datapath.pass(program, &fragment);
                }
            }
        }
        assert_eq!(datapath.reasons(), []);
    }
}

#[test]
fn xdp_leaves_fragments_on_a_detour_to_tc() {
    let Some(mut datapath) = prepared(Some(Role::Network)) else {
        return;
    };
    for world in worlds() {
        datapath.forget();
        let packet = datagram(&world, world.vip);
        let fragments = packet.split(1, LENGTH);
        datapath.untouched("lb_xdp", &fragments[1]);
        assert_eq!(states(&datapath), [0; 0]);
        datapath.run("lb_tc_from_network", &fragments[1]);
        for fragment in &fragments {
            datapath.untouched("lb_xdp", fragment);
        }
        assert_eq!(states(&datapath), [fragment_state::DETOURED]);
        let expected = packet.clone().between(world.client, world.pod).split(2, LENGTH);
        for (fragment, expected) in packet.split(2, LENGTH).iter().zip(expected) {
            assert_eq!(datapath.pass("lb_xdp", fragment), expected);
        }
    }
    assert_eq!(datapath.reasons(), []);
}

/// `lab::fragments` tests what the device's program does with it: a test run cannot set the mark.
#[test]
fn reassembled_packets_reenter_through_their_device() {
    for (_, role) in INGRESS {
        let Some(mut datapath) = prepared(Some(role)) else {
            return;
        };
        for world in worlds() {
            for protocol in PROTOCOLS {
                let packet = data(protocol, world.client, world.vip).payload(&[0x5a; 80]);
                let sent = detour(&packet).split(1, LENGTH);
                for (fragment, expected) in sent.iter().zip(packet.split(1, LENGTH)) {
                    redirected(&mut datapath, FROM_REASSEMBLY, fragment, &expected);
                }
            }
        }
        assert_eq!(datapath.reasons(), []);
        assert_eq!(states(&datapath), [0; 0]);
    }
}

/// Reassembled packets take the same path; only their mark differs.
#[test]
fn without_the_reassembly_device_fragments_take_no_detour() {
    for (program, role) in INGRESS {
        let Some(mut datapath) = prepared(Some(role)) else {
            return;
        };
        for world in worlds() {
            datapath.reassemble(Some(role));
            datapath.forget();
            let packet = datagram(&world, world.vip);
            let fragments = packet.split(1, LENGTH);
            redirected(
                &mut datapath,
                program,
                &fragments[1],
                &detour(&packet).split(1, LENGTH)[1],
            );
            datapath.reassemble(None);
            datapath.dropped(program, &fragments[1]);
            let expected = packet.between(world.client, world.pod).split(1, LENGTH);
            for index in [0, 1, 2, 3, 1] {
                assert_eq!(
                    datapath.pass(program, &fragments[index]),
                    expected[index],
                    "{program}"
                );
            }
            assert_eq!(states(&datapath), [fragment_state::PORTS]);
        }
        assert_eq!(datapath.reasons(), [(Reason::UnknownFragment, 2)]);
    }
}

#[test]
fn only_detoured_fragments_are_reinjected() {
    let Some(mut datapath) = prepared(Some(Role::Network)) else {
        return;
    };
    for world in worlds() {
        let packet = datagram(&world, world.vip);
        datapath.dropped(FROM_REASSEMBLY, &packet.split(1, LENGTH)[0]);
        for destination in [[2, 0xfa, 0, 0, 0, 9], [0xff; 6], NODE] {
            let link = Link {
                destination,
                source: SENDER,
            };
            datapath.dropped(FROM_REASSEMBLY, &packet.clone().link(link).split(1, LENGTH)[0]);
        }
    }
    assert_eq!(datapath.fragment_count(), 0);
}

#[test]
fn egress_and_other_destinations_take_no_detour() {
    let Some(mut datapath) = prepared(Some(Role::Pod)) else {
        return;
    };
    for world in worlds() {
        let packet = datagram(&world, world.vip2);
        datapath.untouched("lb_tc_from_pod", &packet.split(1, LENGTH)[1]);
        let packet = datagram(&world, world.vip);
        datapath.untouched("lb_tc_to_pod", &packet.split(1, LENGTH)[1]);
    }
    assert_eq!(datapath.fragment_count(), 0);
}

/// Asserts that a program drops a fragment whose bucket is empty. `drain` empties it; retries if
/// the bucket has filled in the meantime.
fn refused(datapath: &mut Datapath, program: &str, fragment: &[u8], drain: impl Fn(&Datapath)) {
    let before = datapath.reason(Reason::UnknownFragment);
    let is_refused = |_| {
        assert_eq!(datapath.run(program, fragment).action, REDIRECT, "{program}");
        drain(datapath);
        let outcome = datapath.run(program, fragment);
        datapath.forget_answers();
        match datapath.reason(Reason::UnknownFragment) - before {
            0 => assert_eq!(outcome.action, REDIRECT, "{program}"),
            count => assert_eq!((count, outcome.action), (1, DROP), "{program}"),
        }
        outcome.action == DROP
    };
    assert!((0..1000).any(is_refused), "{program}");
}

/// The second fragment of a datagram from another prefix, before and after the redirect.
fn from_elsewhere(world: &World) -> (Vec<u8>, Vec<u8>) {
    let other = match world.client {
        SocketAddr::V4(_) => "203.0.113.7:40000".parse(),
        SocketAddr::V6(_) => "[2001:db8:77::7]:40000".parse(),
    }
    .expect("a socket address");
    let packet = datagram(world, world.vip).between(other, world.vip);
    let expected = detour(&packet).split(1, LENGTH).remove(1);
    (packet.split(1, LENGTH).remove(1), expected)
}

#[test]
fn detours_of_a_prefix_are_rate_limited() {
    for (program, role) in INGRESS {
        let Some(mut datapath) = prepared(Some(role)) else {
            return;
        };
        for world in worlds() {
            datapath.forget_answers();
            let packet = datagram(&world, world.vip);
            let (fragment, expected) = (&packet.split(1, LENGTH)[1], &detour(&packet).split(1, LENGTH)[1]);
            // The burst is larger than that of ICMP errors.
            for _ in 0..200 {
                redirected(&mut datapath, program, fragment, expected);
            }
            refused(&mut datapath, program, fragment, |datapath| {
                datapath.drain(Limit::Detours, world.client.ip());
            });
            let (fragment, expected) = from_elsewhere(&world);
            redirected(&mut datapath, program, &fragment, &expected);
        }
    }
}

#[test]
fn detours_of_all_senders_are_rate_limited() {
    for (program, role) in INGRESS {
        let Some(mut datapath) = prepared(Some(role)) else {
            return;
        };
        for world in worlds() {
            let fragment = &datagram(&world, world.vip).split(1, LENGTH)[1];
            refused(&mut datapath, program, fragment, Datapath::drain_detours);
            refused(
                &mut datapath,
                program,
                &from_elsewhere(&world).0,
                Datapath::drain_detours,
            );
        }
    }
}

#[test]
fn first_fragments_without_ports_start_no_detour() {
    let Some(mut datapath) = prepared(Some(Role::Network)) else {
        return;
    };
    for world in worlds() {
        for to in [world.vip, SocketAddr::new(world.node, 9)] {
            datapath.forget();
            let packet = data(Protocol::Tcp, world.client, to).payload(&[0x5a; 80]);
            let fragments = packet.split(1, 16);
            datapath.untouched("lb_tc_from_network", &fragments[0]);
            if to == world.vip {
                datapath.dropped("lb_tc_from_network", &fragments[1]);
            } else {
                datapath.untouched("lb_tc_from_network", &fragments[1]);
            }
        }
    }
}

#[test]
fn a_detour_is_remembered_for_a_few_seconds() {
    let Some(mut datapath) = prepared(Some(Role::Network)) else {
        return;
    };
    let program = "lb_tc_from_network";
    for world in worlds() {
        datapath.forget();
        let packet = datagram(&world, world.vip);
        let (fragments, expected) = (packet.split(1, LENGTH), detour(&packet).split(1, LENGTH));
        redirected(&mut datapath, program, &fragments[1], &expected[1]);
        datapath.age_fragments(1);
        redirected(&mut datapath, program, &fragments[0], &expected[0]);
        datapath.age_fragments(6);
        // Now the fragments belong to another datagram with the same identification.
        let expected = packet.between(world.client, world.pod).split(1, LENGTH);
        for (fragment, expected) in fragments.iter().zip(expected) {
            let (verdict, bytes) = datapath.verdict(program, fragment);
            assert_eq!((verdict, bytes), (Verdict::Pass, expected));
        }
    }
}
