//! Packets to unallocated addresses of Service CIDRs.

use std::net::{IpAddr, SocketAddr};

use lb_agent::devices::Role;
use lb_agent::maps::{FrontendKey, MapOp, Protocol};
use lb_agent::network::Cidr;
use lb_common::cidr;
use lb_common::layout::{Frontend, frontend_flags};
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, Link, NODE, SENDER, ack, icmp, rst, see, syn_ack, udp};
use lb_tests::packet::network::{Place, TestNetwork};
use lb_tests::packet::world::{POD_DEVICE, World, at, data, first, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The programs that see packets from outside.
const FROM_OUTSIDE: [&str; 2] = ["lb_xdp", "lb_tc_from_network"];
/// The programs that see packets of this node's Pods and processes before they leave the node.
const FROM_INSIDE: [&str; 2] = ["lb_tc_from_pod", "lb_tc_to_network"];

fn programs() -> impl Iterator<Item = &'static str> {
    FROM_OUTSIDE.into_iter().chain(FROM_INSIDE)
}

/// The Service CIDRs that contain the VIPs of the worlds, and one that does not.
const CIDRS: [&str; 3] = ["10.97.0.0/16", "10.96.0.0/16", "fd00:96::/112"];

fn set(datapath: &mut Datapath, cidr: &str, in_force: bool) {
    let network: Cidr = cidr.parse().expect("a network");
    let set = cidr::SET;
    datapath.apply(&match in_force {
        true => MapOp::AddSourceRange { set, network },
        false => MapOp::DeleteSourceRange { set, network },
    });
}

fn set_all(datapath: &mut Datapath, in_force: bool) {
    for cidr in CIDRS {
        set(datapath, cidr, in_force);
    }
}

/// Asserts that only unallocated addresses were counted, and no flow was opened.
#[track_caller]
fn assert_dropped(datapath: &Datapath, count: u64) {
    let expected: &[_] = match count {
        0 => &[],
        count => &[(Reason::UnallocatedAddress, count)],
    };
    assert_eq!(datapath.reasons(), expected);
    assert_eq!(datapath.flow_count(), 0);
}

fn wildcard(datapath: &mut Datapath, address: IpAddr, flags: u32) {
    let value = Frontend {
        flags: frontend_flags::WILDCARD | flags,
        ..Frontend::default()
    };
    datapath.frontend(FrontendKey::Wildcard(address), value);
}

/// An address outside the Service CIDR. In IPv6, its first 64 bits are those of the Service CIDR.
fn outside_of_cidrs(world: &World) -> SocketAddr {
    let text = if world.vip.is_ipv4() {
        "10.98.0.11:80"
    } else {
        "[fd00:96::1:0:11]:80"
    };
    text.parse().expect("an address")
}

#[test]
fn first_packets_are_dropped_while_the_cidr_is_in_force() {
    let Some(mut datapath) = datapath() else { return };
    let packets = || {
        let of_world = |world: World| ALL.map(|protocol| first(protocol, world.client, world.vip).bytes());
        worlds().into_iter().flat_map(of_world)
    };
    for packet in packets() {
        programs().for_each(|program| datapath.untouched(program, &packet));
    }
    assert_dropped(&datapath, 0);
    set_all(&mut datapath, true);
    let mut dropped = 0;
    for packet in packets() {
        for program in programs() {
            datapath.dropped(program, &packet);
            dropped += 1;
        }
        // Behind a Pod's device, the address may exist.
        datapath.untouched("lb_tc_to_pod", &packet);
    }
    for world in worlds() {
        for program in programs() {
            for protocol in ALL {
                datapath.untouched(
                    program,
                    &first(protocol, world.client, outside_of_cidrs(&world)).bytes(),
                );
            }
        }
    }
    assert_dropped(&datapath, dropped);
    set_all(&mut datapath, false);
    for packet in packets() {
        programs().for_each(|program| datapath.untouched(program, &packet));
    }
    assert_dropped(&datapath, dropped);
}

#[test]
fn replies_from_inside_pass() {
    let Some(mut datapath) = datapath() else { return };
    set_all(&mut datapath, true);
    let mut dropped = 0;
    for world in worlds() {
        let (from, to) = (world.client, world.vip);
        for packet in [
            ack(from, to),
            syn_ack(from, to),
            rst(from, to),
            data(Protocol::Sctp, from, to),
        ] {
            for program in FROM_INSIDE {
                datapath.untouched(program, &packet.bytes());
            }
            // From outside, such packets are neither requests nor replies.
            for program in FROM_OUTSIDE {
                datapath.dropped(program, &packet.bytes());
                dropped += 1;
            }
        }
    }
    assert_dropped(&datapath, dropped);
}

#[test]
fn packets_to_addresses_with_a_row_are_not_dropped() {
    let Some(mut datapath) = datapath() else { return };
    set_all(&mut datapath, true);
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        for program in ["lb_xdp", "lb_tc_from_network", "lb_tc_from_pod"] {
            datapath.forget();
            let bytes = datapath.pass(program, &first(Protocol::Tcp, world.client, world.vip).bytes());
            assert_eq!(see(&bytes).destination, world.pod, "{program}");
        }
        // This address belongs to a Service of another proxy, whose ports are unknown.
        wildcard(&mut datapath, world.vip2.ip(), frontend_flags::PASS_UNKNOWN);
        for program in programs() {
            for protocol in ALL {
                datapath.untouched(program, &first(protocol, world.client, world.vip2).bytes());
            }
            datapath.untouched(program, &echo(world.client.ip(), world.vip2.ip()).bytes());
        }
        // A packet of the node to a Service that no socket program translated is not dropped
        // either.
        datapath.untouched(
            "lb_tc_to_network",
            &first(Protocol::Tcp, world.client, world.vip).bytes(),
        );
        let other_port = SocketAddr::new(world.vip.ip(), 99);
        wildcard(&mut datapath, world.vip.ip(), 0);
        datapath.untouched(
            "lb_tc_to_network",
            &first(Protocol::Tcp, world.client, other_port).bytes(),
        );
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn only_open_flows_reach_a_deleted_services_address() {
    let Some(mut datapath) = datapath() else { return };
    set_all(&mut datapath, true);
    let mut dropped = 0;
    for (service, world) in (1..).zip(worlds()) {
        for program in ["lb_xdp", "lb_tc_from_network", "lb_tc_from_pod"] {
            datapath.forget();
            datapath.service(service, &keys(world.vip), &[at(world.pod)]);
            wildcard(&mut datapath, world.vip.ip(), 0);
            datapath.pass(program, &first(Protocol::Tcp, world.client, world.vip).bytes());
            // The rows are deleted; the filter's bits stay.
            let rows = keys(world.vip)
                .into_iter()
                .chain([FrontendKey::Wildcard(world.vip.ip())]);
            for key in rows {
                datapath.apply(&MapOp::DeleteFrontend { key });
            }
            let bytes = datapath.pass(program, &ack(world.client, world.vip).bytes());
            assert_eq!(see(&bytes).destination, world.pod);
            let other = first(Protocol::Tcp, world.client_at(40_001), world.vip);
            datapath.dropped(program, &other.bytes());
            dropped += 1;
        }
    }
    assert_eq!(datapath.reasons(), [(Reason::UnallocatedAddress, dropped)]);
}

fn echo(source: IpAddr, destination: IpAddr) -> Build {
    let kind = if source.is_ipv4() { 8 } else { 128 };
    icmp(source, destination, [kind, 0], 0x1234_0001)
}

#[test]
fn echo_requests_are_dropped_but_errors_and_replies_pass() {
    let Some(mut datapath) = datapath() else { return };
    set_all(&mut datapath, true);
    let mut dropped = 0;
    for world in worlds() {
        let (from, to) = (world.client.ip(), world.vip.ip());
        let (unreachable, reply) = match to.is_ipv4() {
            true => ([3, 3], [0, 0]),
            false => ([1, 4], [129, 0]),
        };
        let quoted = udp(world.vip, world.client).bytes();
        let error = icmp(from, to, unreachable, 0).payload(&quoted[14..]);
        for program in programs() {
            datapath.dropped(program, &echo(from, to).bytes());
            dropped += 1;
            datapath.untouched(program, &error.bytes());
            datapath.untouched(program, &icmp(from, to, reply, 0).bytes());
        }
        datapath.untouched("lb_tc_to_pod", &echo(from, to).bytes());
    }
    assert_dropped(&datapath, dropped);
}

#[test]
fn other_protocols_are_dropped_from_outside() {
    const GRE: u8 = 47;
    let Some(mut datapath) = datapath() else { return };
    set_all(&mut datapath, true);
    let mut dropped = 0;
    for world in worlds() {
        let mut packet = udp(world.client, world.vip).bytes();
        let (protocol, checksum) = if world.vip.is_ipv4() {
            (14 + 9, Some(14 + 10))
        } else {
            (14 + 6, None)
        };
        packet[protocol] = GRE;
        if let Some(checksum) = checksum {
            packet[checksum..checksum + 2].fill(0);
            let sum = lb_tests::packet::build::checksum(&packet[14..34]);
            packet[checksum..checksum + 2].copy_from_slice(&sum.to_be_bytes());
        }
        for program in FROM_OUTSIDE {
            datapath.dropped(program, &packet);
            dropped += 1;
        }
        for program in FROM_INSIDE {
            datapath.untouched(program, &packet);
        }
    }
    assert_dropped(&datapath, dropped);
}

#[test]
fn all_fragments_of_a_datagram_are_dropped() {
    let Some(mut datapath) = datapath() else { return };
    set_all(&mut datapath, true);
    let mut dropped = 0;
    for world in worlds() {
        let datagram = udp(world.client, world.vip).payload(&[7; 200]);
        for (identification, program) in (1..).zip(programs()) {
            for fragment in datagram.split(identification, 64) {
                datapath.dropped(program, &fragment);
                dropped += 1;
            }
            // Later fragments without the first one are dropped too.
            for fragment in &datagram.split(100 + identification, 64)[1..] {
                datapath.dropped(program, fragment);
                dropped += 1;
            }
            datapath.forget();
        }
        for fragment in datagram.split(9, 64) {
            datapath.untouched("lb_tc_to_pod", &fragment);
        }
        datapath.forget();
    }
    assert_dropped(&datapath, dropped);
}

#[test]
fn frames_for_other_link_layer_addresses_are_not_dropped() {
    let Some(mut datapath) = datapath() else { return };
    set_all(&mut datapath, true);
    let link = Link {
        destination: [2, 0, 0, 0, 0, 9],
        source: SENDER,
    };
    assert_ne!(link.destination, NODE);
    for world in worlds() {
        for packet in [
            first(Protocol::Tcp, world.client, world.vip),
            echo(world.client.ip(), world.vip.ip()),
        ] {
            for program in FROM_OUTSIDE.into_iter().chain([POD_DEVICE.ingress]) {
                datapath.untouched(program, &packet.clone().link(link).bytes());
            }
        }
    }
    assert_dropped(&datapath, 0);
}

/// The networks of [`Place::Node`] and [`Place::Back`].
const PLACES: [&str; 4] = ["10.3.0.0/16", "10.1.0.0/16", "fd00:3::/112", "fd00:1::/112"];

#[test]
fn packets_to_the_node_and_its_pods_are_never_dropped() {
    let Some(mut datapath) = datapath() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    for cidr in PLACES {
        set(&mut datapath, cidr, true);
    }
    let hooks = ["lb_xdp", "lb_tc_from_network", "lb_tc_from_pod"];
    let mut dropped = 0;
    for (role, is_dropped) in [(Role::Pod, false), (Role::Network, true)] {
        network.attach(&datapath, &[(network.front, Role::Network), (network.back, role)]);
        datapath.device = network.front;
        for world in worlds() {
            let [own, behind] = [Place::Node, Place::Back].map(|place| world.backend_at(place));
            for program in hooks {
                for (to, is_dropped) in [(own, false), (behind, is_dropped)] {
                    for packet in [
                        first(Protocol::Tcp, world.client, to),
                        first(Protocol::Udp, world.client, to),
                        echo(world.client.ip(), to.ip()),
                    ] {
                        if is_dropped {
                            datapath.dropped(program, &packet.bytes());
                            dropped += 1;
                        } else {
                            datapath.untouched(program, &packet.bytes());
                        }
                    }
                }
            }
        }
    }
    assert_dropped(&datapath, dropped);
}

#[test]
fn the_maximum_number_of_networks_is_in_force() {
    let Some(mut datapath) = datapath() else { return };
    let address = |n: u8| SocketAddr::new(IpAddr::from([10, n, 0, 9]), 80);
    let most = u8::try_from(cidr::MAX).expect("few");
    for n in 0..most {
        set(&mut datapath, &format!("10.{n}.0.0/16"), true);
    }
    let [world, _] = worlds();
    for program in programs() {
        for n in 0..most {
            datapath.dropped(program, &first(Protocol::Tcp, world.client, address(n)).bytes());
        }
        datapath.untouched(
            program,
            &first(Protocol::Tcp, world.client, address(most)).bytes(),
        );
    }
    // One network in the middle is replaced by another one; the others stay.
    set(&mut datapath, "10.3.0.0/16", false);
    set(&mut datapath, "10.77.0.0/16", true);
    for program in programs() {
        for n in (0..most).chain([77]) {
            let packet = first(Protocol::Tcp, world.client, address(n)).bytes();
            match n {
                3 => datapath.untouched(program, &packet),
                _ => datapath.dropped(program, &packet),
            }
        }
    }
}
