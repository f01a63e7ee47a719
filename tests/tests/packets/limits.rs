//! Answers are limited, and senders with an invalid source address get no answer.

use std::net::{IpAddr, SocketAddr};

use lb_agent::maps::FrontendKey;
use lb_common::layout::{Frontend, frontend_flags};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{ack, icmp, syn, udp};
use lb_tests::packet::world::{DEVICES, World, at, keys, worlds};
use lb_tests::packet::{Borrowed, Datapath, datapath, datapath_with};

/// A VIP of each family that answers pings. Packets to its unknown ports are rejected.
fn prepared() -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        let value = Frontend {
            flags: frontend_flags::WILDCARD | frontend_flags::ECHO,
            ..Frontend::default()
        };
        datapath.frontend(FrontendKey::Wildcard(world.vip.ip()), value);
    }
    datapath.limits_answers = true;
    Some(datapath)
}

fn unknown(world: &World) -> SocketAddr {
    SocketAddr::new(world.vip.ip(), 9999)
}

/// The client's neighbour with this number, in another /24 or /64.
fn elsewhere(world: &World, n: u8) -> SocketAddr {
    let ip: IpAddr = match world.client.ip() {
        IpAddr::V4(_) => [203, 0, n, 7].into(),
        IpAddr::V6(_) => [0x2001, 0xdb8, 2, u16::from(n), 0, 0, 0, 7].into(),
    };
    SocketAddr::new(ip, world.client.port())
}

/// Returns the number of answered packets; asserts that the others are dropped.
fn answered(datapath: &mut Datapath, program: &str, packet: &[u8], times: usize) -> usize {
    let outcomes = (0..times).map(|_| datapath.verdict(program, packet).0);
    let outcomes: Vec<Verdict> = outcomes.collect();
    assert!(
        outcomes
            .iter()
            .all(|verdict| matches!(verdict, Verdict::Bounce | Verdict::Drop))
    );
    outcomes
        .iter()
        .filter(|verdict| **verdict == Verdict::Bounce)
        .count()
}

#[test]
fn icmp_errors_to_a_prefix_are_limited() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            datapath.forget_answers();
            let packet = udp(world.client, unknown(&world)).bytes();
            let count = answered(&mut datapath, device.ingress, &packet, 2000);
            // Each CPU allows a burst of 50, and 10 in each second that this loop takes.
            assert!((50..1000).contains(&count), "{count}");
            // Other prefixes still get errors.
            let packet = udp(elsewhere(&world, 1), unknown(&world)).bytes();
            assert_eq!(answered(&mut datapath, device.ingress, &packet, 1), 1);
            // Connections of this client are still reset.
            let packet = syn(world.client, unknown(&world)).bytes();
            assert_eq!(answered(&mut datapath, device.ingress, &packet, 500), 500);
            assert!(datapath.reason(Reason::AnswerLimit) > 0);
        }
    }
}

/// A test of the limit itself would have to be faster than the bucket fills.
#[test]
fn a_burst_of_a_thousand_resets_is_sent() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        for device in DEVICES {
            datapath.forget_answers();
            let packet = ack(world.client, unknown(&world)).bytes();
            assert_eq!(answered(&mut datapath, device.ingress, &packet, 1000), 1000);
        }
    }
    assert_eq!(datapath.reason(Reason::AnswerLimit), 0);
}

#[test]
fn packets_from_invalid_sources_are_never_answered() {
    let Some(mut datapath) = prepared() else { return };
    for world in worlds() {
        let sources: &[&str] = match world.vip.ip() {
            IpAddr::V4(_) => &[
                "0.0.0.0",
                "127.0.0.1",
                "224.0.0.1",
                "239.1.2.3",
                "255.255.255.255",
            ],
            IpAddr::V6(_) => &["::", "::1", "ff02::1", "ff0e::1:2"],
        };
        for source in sources {
            let source: IpAddr = source.parse().expect("an address");
            let client = SocketAddr::new(source, 4000);
            let echo = if source.is_ipv4() { [8, 0] } else { [128, 0] };
            for device in DEVICES {
                for to in [world.vip, unknown(&world)] {
                    for packet in [udp(client, to), syn(client, to), ack(client, to)] {
                        datapath.untouched(device.ingress, &packet.bytes());
                    }
                }
                let ping = icmp(source, world.vip.ip(), echo, 1);
                datapath.untouched(device.ingress, &ping.bytes());
            }
        }
        let echo = if world.vip.is_ipv4() { [8, 0] } else { [128, 0] };
        let ping = icmp(world.client.ip(), world.vip.ip(), echo, 1);
        datapath.bounce("lb_xdp", &ping.bytes());
    }
    assert_eq!(datapath.flow_count(), 0);
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn the_hash_seed_selects_backends_of_clients_outside() {
    let chosen = |seed: u64| {
        let mut datapath = datapath_with(|settings| settings.hash_seed = seed)?;
        let mut backends = Vec::new();
        for (service, world) in (1..).zip(worlds()) {
            datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
            for port in 1000..1064 {
                let packet = syn(world.client_at(port), world.vip).bytes();
                let bytes = datapath.pass("lb_xdp", &packet);
                backends.push(lb_tests::packet::build::see(&bytes).destination);
            }
        }
        Some(backends)
    };
    let Some(first) = chosen(1) else { return };
    assert_eq!(chosen(1).as_ref(), Some(&first));
    let other = chosen(2).expect("the programs are loaded");
    let same = first
        .iter()
        .zip(&other)
        .filter(|(one, other)| one == other)
        .count();
    // About half of 128. The probability of a value outside this range is less than 1 in 10^9.
    assert!((30..98).contains(&same), "{same}");
}
