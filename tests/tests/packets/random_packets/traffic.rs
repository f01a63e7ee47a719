//! Packets of all kinds.

use std::net::SocketAddr;

use lb_agent::maps::Protocol;
use lb_tests::packet::build::{Build, ack, icmp, sctp, tcp, udp};
use lb_tests::packet::network::Place;
use lb_tests::packet::world::{World, chunk, data, first};

use super::disguise::{everyone, like};
use super::services::{ALL, Behind, PORTS, SERVICES, backends, with_port};

/// Packets that open the flows to which other packets belong.
pub(crate) fn openers() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for world in everyone() {
        for (port, _) in SERVICES {
            let vip = with_port(world.vip, port);
            packets.extend(ALL.map(|protocol| first(protocol, world.client, vip).bytes()));
        }
        // A Pod that is its own backend (hairpin).
        let (pod, vip) = (with_port(world.pod, 40_000), with_port(world.vip, 8080));
        packets.extend(ALL.map(|protocol| first(protocol, pod, vip).bytes()));
    }
    packets
}

/// Pairs of sender and receiver of packets that some hook rewrites, and some that none rewrites.
fn talks(world: &World) -> Vec<(SocketAddr, SocketAddr)> {
    let mut talks = Vec::new();
    for (port, behind) in SERVICES {
        let vip = with_port(world.vip, port);
        talks.push((world.client, vip));
        for pod in backends(world, port, behind) {
            let seen = match behind {
                Behind::Remote(Place::Node) | Behind::Pod => world.client,
                Behind::Remote(_) => SocketAddr::new(world.back_address(), PORTS.all.first),
                _ => world.client,
            };
            talks.push((pod, seen));
            // SCTP keeps its port.
            talks.push((pod, with_port(seen, world.client.port())));
        }
    }
    let (pod, node) = (
        with_port(world.pod, 8080),
        SocketAddr::new(world.node, PORTS.all.first),
    );
    talks.extend([
        (with_port(world.pod, 40_000), with_port(world.vip, 8080)),
        (pod, node),
        (pod, with_port(node, 40_000)),
        (world.client_at(40_001), with_port(world.vip, 8080)),
        (world.client, with_port(world.vip, 9999)),
        (world.client, world.vip2),
        (world.client, world.pod2),
    ]);
    talks
}

/// Packets between two ends.
fn packets(source: SocketAddr, destination: SocketAddr) -> Vec<Vec<u8>> {
    let mut builds: Vec<Build> = Vec::new();
    for protocol in ALL {
        builds.push(first(protocol, source, destination));
        builds.push(data(protocol, source, destination).payload(&[0x5a; 33]));
    }
    builds.push(udp(source, destination).without_checksum());
    builds.push(ack(source, destination).flags(|header| header.fin = true));
    builds.push(tcp(source, destination).flags(|header| header.rst = true));
    builds.push(sctp(source, destination, chunk::ABORT));
    builds.push(ack(source, destination).payload(&[1; 1400]));
    builds.push(udp(source, destination).hop_limit(1));
    let options = |build: Build| match source.is_ipv4() {
        true => build.options(&[1; 8]),
        false => build.extension(60, &[0; 14]),
    };
    builds.push(options(ack(source, destination)));
    builds.push(options(udp(source, destination)));
    let mut packets: Vec<Vec<u8>> = builds.iter().map(Build::bytes).collect();
    packets.push(builds[0].clone().vlans(&[7]).bytes());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let whole = data(protocol, source, destination).payload(&[0x77; 70]);
        packets.extend(whole.split(5, 32));
    }
    let kind = if source.is_ipv4() { 8 } else { 128 };
    packets.push(icmp(source.ip(), destination.ip(), [kind, 0], 1).bytes());
    packets
}

/// Pairs of sender and receiver after the rewrite: errors quote such packets.
fn rewritten(world: &World) -> Vec<(SocketAddr, SocketAddr)> {
    let reversed = |(source, destination)| (destination, source);
    let replies = SERVICES.map(|(port, _)| (with_port(world.vip, port), world.client));
    let requests = talks(world).into_iter().map(reversed);
    let hairpin = (with_port(world.vip, 8080), with_port(world.pod, 40_000));
    requests.chain(replies).chain([hairpin]).collect()
}

/// Errors about packets between two ends, from their receiver and from a router.
fn errors(source: SocketAddr, destination: SocketAddr) -> Vec<Vec<u8>> {
    let ([error, too_big], header, router) = match source.is_ipv4() {
        true => ([[3, 3], [3, 4]], 20, "203.0.113.9"),
        false => ([[1, 4], [2, 0]], 40, "2001:db8:9::9"),
    };
    let router = like(source.ip(), router.parse().expect("an address"));
    let mut errors = Vec::new();
    for protocol in ALL {
        let packet = data(protocol, source, destination).payload(&[0x5a; 33]).bytes();
        let quoted = &packet[14..];
        for speaker in [destination.ip(), router] {
            let message = |error, quoted| icmp(speaker, source.ip(), error, 1280).payload(quoted).bytes();
            errors.push(message(error, &quoted[..header + 8]));
            errors.push(message(error, &quoted[..header + 20]));
            errors.push(message(too_big, quoted));
        }
    }
    errors
}

/// All packets of these worlds.
pub(crate) fn everything(worlds: &[World]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for world in worlds {
        all.extend(talks(world).into_iter().flat_map(|(from, to)| packets(from, to)));
        all.extend(
            rewritten(world)
                .into_iter()
                .flat_map(|(from, to)| errors(from, to)),
        );
    }
    all
}
