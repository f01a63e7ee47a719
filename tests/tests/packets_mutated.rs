//! Whatever comes, in whatever order, to whichever program: the kernel does what the same code does on the host, what
//! is not ours comes out as it came in, what is rewritten has valid checksums, and nothing is read behind its end.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::flow::Lifetimes;
use lb_common::layout::{Frontend, frontend_flags};
use lb_common::packet::{Route, Verdict};
use lb_common::tables::PortRange;
use lb_tests::packet::build::{Build, ack, icmp, sctp, tcp, udp};
use lb_tests::packet::checksums::{faults, repair};
use lb_tests::packet::host::{Host, Surroundings};
use lb_tests::packet::network::{BACK_LINK, CLIENT_LINK, NARROW_MTU, Network, Place};
use lb_tests::packet::world::{PROGRAMS, World, at, chunk, data, first, worlds};
use lb_tests::packet::{Datapath, LINK, datapath_with};
use lb_tests::slowness::cases;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One port, so that there is no choice.
const PORTS: PortRange = PortRange {
    first: 61_000,
    count: 1,
};
/// Longer than any test.
const SECONDS: u32 = 1_000_000;
const LIFETIMES: Lifetimes = Lifetimes {
    tcp_established: SECONDS,
    tcp_opening: SECONDS,
    tcp_closing: SECONDS,
    udp_answered: SECONDS,
    udp_unanswered: SECONDS,
};
/// The set of source ranges.
const SET: u32 = 9;

const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What is behind a port of the VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Behind {
    /// A Pod of this node.
    Pod,
    /// Two Pods, for clients that stay with one.
    Affinity,
    /// A Pod, for clients of the set of source ranges.
    Restricted,
    /// Nothing.
    Nothing,
    /// A backend that is not said to be of this node.
    Remote(Place),
}

/// Ports of the VIP, which are those of their backends too.
const SERVICES: [(u16, Behind); 9] = [
    (8080, Behind::Pod),
    (8081, Behind::Affinity),
    (8082, Behind::Restricted),
    (8083, Behind::Nothing),
    (8084, Behind::Remote(Place::Back)),
    (8085, Behind::Remote(Place::Narrow)),
    (8086, Behind::Remote(Place::Unresolved)),
    (8087, Behind::Remote(Place::Unreachable)),
    (8088, Behind::Remote(Place::Node)),
];

fn with_port(address: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), port)
}

/// The backends of a port.
fn backends(world: &World, port: u16, behind: Behind) -> Vec<SocketAddr> {
    let addresses = match behind {
        Behind::Pod | Behind::Restricted => vec![world.pod],
        Behind::Affinity => vec![world.pod, world.pod2],
        Behind::Nothing => vec![],
        Behind::Remote(place) => vec![world.backend_at(place)],
    };
    addresses.into_iter().map(|pod| with_port(pod, port)).collect()
}

/// Writes all Services, and the wildcard rows of two VIPs: one answers echo requests.
fn serve(datapath: &mut Datapath) {
    let mut service = 0;
    for world in worlds() {
        for (port, behind) in SERVICES {
            service += 1;
            let vip = with_port(world.vip, port);
            let keys = ALL.map(|protocol| FrontendKey::Port(vip.ip(), port, protocol));
            let pods: Vec<_> = backends(&world, port, behind).into_iter().map(at).collect();
            datapath.service(service, &keys, &pods);
            let mut row = Datapath::row(service, u32::try_from(pods.len()).expect("few"));
            match behind {
                Behind::Affinity => row.affinity_seconds = SECONDS,
                Behind::Restricted => row.source_ranges = SET,
                Behind::Remote(_) => {
                    datapath.change_backend(service * 100, |backend| backend.local = false);
                }
                Behind::Pod | Behind::Nothing => {}
            }
            for key in keys {
                datapath.frontend(key, row);
            }
        }
        for (vip, flags) in [(world.vip, frontend_flags::ECHO), (world.vip2, 0)] {
            let value = Frontend {
                flags: frontend_flags::WILDCARD | flags,
                ..Frontend::default()
            };
            datapath.frontend(FrontendKey::Wildcard(vip.ip()), value);
        }
        datapath.allow(SET, world.client.ip(), if world.vip.is_ipv4() { 32 } else { 128 });
    }
}

/// The same core on the host, with the same tables and routes.
fn host(datapath: &Datapath) -> Host {
    let device = worlds().map(|world| world.back_address());
    let surroundings = Surroundings {
        translated_ports: PORTS,
        lifetimes: LIFETIMES,
        device,
    };
    let mut host = Host::new(datapath, &surroundings);
    for world in worlds() {
        host.allow(SET, world.client.ip());
        host.way(world.client.ip(), Route::Ready, CLIENT_LINK, 0);
        let mut way = |place, route, mtu| host.way(world.backend_at(place).ip(), route, BACK_LINK, mtu);
        way(Place::Back, Route::Ready, 0);
        way(Place::Narrow, Route::Ready, NARROW_MTU);
        way(Place::Unresolved, Route::Unresolved, 0);
        way(Place::Unreachable, Route::None, 0);
        way(Place::Node, Route::Local, 0);
    }
    host
}

/// What opens the flows that other packets belong to.
fn openers() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for world in worlds() {
        for (port, _) in SERVICES {
            let vip = with_port(world.vip, port);
            packets.extend(ALL.map(|protocol| first(protocol, world.client, vip).bytes()));
        }
        // A Pod that is its own backend.
        let (pod, vip) = (with_port(world.pod, 40_000), with_port(world.vip, 8080));
        packets.extend(ALL.map(|protocol| first(protocol, pod, vip).bytes()));
    }
    packets
}

/// Everything that is rewritten: pairs of who sends and who receives, at any hook.
fn talks(world: &World) -> Vec<(SocketAddr, SocketAddr)> {
    let mut talks = Vec::new();
    for (port, behind) in SERVICES {
        let vip = with_port(world.vip, port);
        talks.push((world.client, vip));
        for pod in backends(world, port, behind) {
            let seen = match behind {
                Behind::Remote(Place::Node) | Behind::Pod => world.client,
                Behind::Remote(_) => SocketAddr::new(world.back_address(), PORTS.first),
                _ => world.client,
            };
            talks.push((pod, seen));
            // SCTP keeps its port.
            talks.push((pod, with_port(seen, world.client.port())));
        }
    }
    let (pod, node) = (
        with_port(world.pod, 8080),
        SocketAddr::new(world.node, PORTS.first),
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

/// Pairs of who seems to send and who receives after the rewrite: errors are about such packets.
fn rewritten(world: &World) -> Vec<(SocketAddr, SocketAddr)> {
    let reversed = |(source, destination)| (destination, source);
    let replies = SERVICES.map(|(port, _)| (with_port(world.vip, port), world.client));
    let requests = talks(world).into_iter().map(reversed);
    let hairpin = (with_port(world.vip, 8080), with_port(world.pod, 40_000));
    requests.chain(replies).chain([hairpin]).collect()
}

/// Errors about packets between two ends, from who has received them and from a router.
fn errors(source: SocketAddr, destination: SocketAddr) -> Vec<Vec<u8>> {
    let ([error, too_big], header, router) = match source.is_ipv4() {
        true => ([[3, 3], [3, 4]], 20, "203.0.113.9"),
        false => ([[1, 4], [2, 0]], 40, "2001:db8:9::9"),
    };
    let router: IpAddr = router.parse().expect("an address");
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

/// Every packet, as it was sent.
fn everything() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for world in worlds() {
        all.extend(talks(&world).into_iter().flat_map(|(from, to)| packets(from, to)));
        all.extend(
            rewritten(&world)
                .into_iter()
                .flat_map(|(from, to)| errors(from, to)),
        );
    }
    all
}

/// A packet that comes to a program.
#[derive(Clone, Debug)]
struct Arrival {
    program: &'static str,
    packet: Vec<u8>,
    /// Bytes behind it in the frame.
    padding: usize,
}

impl Arrival {
    /// The frame, padded with this byte.
    fn frame(&self, byte: u8) -> Vec<u8> {
        let mut frame = self.packet.clone();
        frame.resize(frame.len() + self.padding, byte);
        frame
    }
}

/// What is changed in a packet: some bytes, its end, and the checksums to match or not.
fn arrival(packets: Vec<Vec<u8>>) -> impl Strategy<Value = Arrival> {
    let interesting = prop::sample::select(vec![
        0, 1, 2, 3, 4, 5, 6, 8, 17, 44, 58, 60, 132, 0x20, 0x40, 0x45, 0x46, 0x60, 0x80, 0xff,
    ]);
    let change = (0_usize..130, prop_oneof![any::<u8>(), interesting]);
    let changes = prop_oneof![
        2 => Just(Vec::new()),
        5 => prop::collection::vec(change, 1..4),
    ];
    let cut = prop_oneof![6 => Just(0_usize), 1 => 1_usize..60];
    let padding = prop_oneof![4 => Just(0_usize), 1 => 1_usize..40];
    let program = prop::sample::select(PROGRAMS.to_vec());
    let parts = (
        prop::sample::select(packets),
        changes,
        cut,
        padding,
        program,
        any::<bool>(),
    );
    parts.prop_map(|(mut packet, changes, cut, padding, program, is_repaired)| {
        for (at, value) in changes {
            let at = at.min(packet.len() - 1);
            packet[at] = value;
        }
        // No test run without an IP header.
        packet.truncate(packet.len().saturating_sub(cut).max(14 + 40));
        if is_repaired {
            repair(&mut packet);
        }
        Arrival {
            program,
            packet,
            padding,
        }
    })
}

/// Kernel and host side by side.
struct Both {
    datapath: Datapath,
    host: Host,
}

impl Both {
    fn restart(&mut self) {
        self.datapath.forget();
        self.host.forget();
        for packet in openers() {
            self.step("lb_tc_from_network", &packet).expect("the same");
        }
    }

    /// Runs a packet on both sides; returns what becomes of it.
    fn step(&mut self, program: &str, packet: &[u8]) -> Result<(Verdict, Vec<u8>), TestCaseError> {
        let expected = self.host.run(program, packet);
        let (verdict, bytes) = self.datapath.verdict(program, packet);
        // In a test run one looks like the other.
        let is_sent = |verdict| matches!(verdict, Verdict::Bounce | Verdict::Redirect);
        prop_assert!(
            verdict == expected.0 || is_sent(verdict) && is_sent(expected.0),
            "{program}: {verdict:?} and not {:?}: {packet:02x?}",
            expected.0
        );
        // TC leaves the link-layer addresses of what it sends on to the kernel; the bytes of what is dropped are nobody's.
        let from = match (expected.0, program) {
            (Verdict::Drop, _) => return Ok(expected),
            (Verdict::Redirect, "lb_xdp") => 0,
            (Verdict::Redirect, _) => LINK,
            _ => 0,
        };
        prop_assert!(
            bytes[from..] == expected.1[from..],
            "{program}: {packet:02x?} -> {bytes:02x?} and not {:02x?}",
            expected.1
        );
        Ok((expected.0, bytes))
    }
}

/// Whether a packet names one of the addresses that anything is known of.
fn is_ours(packet: &[u8]) -> bool {
    let names = |address: IpAddr| match address {
        IpAddr::V4(address) => packet.windows(4).any(|part| part == address.octets()),
        IpAddr::V6(address) => packet.windows(16).any(|part| part == address.octets()),
    };
    worlds().iter().any(|world| {
        names(world.vip.ip())
            || names(world.vip2.ip())
            || names(world.node)
            || names(world.back_address())
            || SERVICES
                .iter()
                .any(|(port, behind)| backends(world, *port, *behind).iter().any(|pod| names(pod.ip())))
    })
}

/// What must hold of a packet whatever the host says.
fn check(arrival: &Arrival, frame: &[u8], verdict: Verdict, bytes: &[u8]) -> Result<(), TestCaseError> {
    let is_ip = matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]);
    if !is_ip || !is_ours(frame) {
        prop_assert_eq!(verdict, Verdict::Pass, "{:?}", arrival);
        prop_assert_eq!(bytes, frame, "{:?}", arrival);
    }
    if verdict != Verdict::Drop && faults(frame).is_empty() {
        prop_assert_eq!(faults(bytes), [""; 0], "{:?} -> {:02x?}", arrival, bytes);
    }
    if verdict == Verdict::Pass && arrival.program.starts_with("lb_tc_to") {
        prop_assert_eq!(bytes.len(), frame.len(), "{:?}", arrival);
    }
    Ok(())
}

/// The end of the IP packet in a frame, as its header says.
fn end(packet: &[u8]) -> usize {
    let field = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    match packet[12..14] {
        [0x08, 0x00] => 14 + field(16),
        [0x86, 0xdd] => 14 + 40 + field(18),
        _ => 0,
    }
}

/// Runs a history on the host twice, with other bytes behind the packets' ends: nothing else differs.
fn padding_is_not_read(host: &Host, arrivals: &[Arrival]) -> Result<(), TestCaseError> {
    let history = |byte| {
        host.forget();
        for packet in openers() {
            host.run("lb_tc_from_network", &packet);
        }
        let run = |arrival: &Arrival| host.run(arrival.program, &arrival.frame(byte));
        arrivals.iter().map(run).collect::<Vec<_>>()
    };
    for ((arrival, one), other) in arrivals.iter().zip(history(0)).zip(history(0xff)) {
        let (one, other) = ((one.0, one.1), (other.0, other.1));
        prop_assert_eq!(one.0, other.0, "{:?}", arrival);
        prop_assert_eq!(one.1.len(), other.1.len(), "{:?}", arrival);
        let kept = one.1.len() - arrival.padding.min(one.1.len());
        prop_assert_eq!(&one.1[..kept], &other.1[..kept], "{:?}", arrival);
    }
    Ok(())
}

/// Runs every packet through every program, as it is and in a longer frame.
fn whole(both: &mut Both, packets: &[Vec<u8>]) {
    both.restart();
    for packet in packets {
        assert_eq!(faults(packet), [""; 0], "{packet:02x?}");
        for (program, padding) in PROGRAMS
            .into_iter()
            .flat_map(|program| [(program, 0), (program, 33)])
        {
            let arrival = Arrival {
                program,
                packet: packet.clone(),
                padding,
            };
            let frame = arrival.frame(0xa5);
            both.step(program, &frame)
                .and_then(|(verdict, bytes)| check(&arrival, &frame, verdict, &bytes))
                .unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn whatever_comes() {
    let settings = |settings: &mut lb_agent::datapath::object::Settings| {
        settings.translated_ports = PORTS;
        settings.lifetimes = LIFETIMES;
        settings.flows = 16_384;
    };
    let Some(mut datapath) = datapath_with(settings) else {
        return;
    };
    let network = Network::enter(&mut datapath);
    serve(&mut datapath);
    let host = host(&datapath);
    let mut both = Both { datapath, host };
    let all = everything();
    whole(&mut both, &all);
    let both = RefCell::new(both);
    let config = Config {
        cases: cases(2000),
        failure_persistence: None,
        ..Config::default()
    };
    let histories = prop::collection::vec(arrival(all), 1..10);
    let result = TestRunner::new(config).run(&histories, |arrivals| {
        let mut both = both.borrow_mut();
        both.restart();
        for arrival in &arrivals {
            let frame = arrival.frame(0xa5);
            let (verdict, bytes) = both.step(arrival.program, &frame)?;
            check(arrival, &frame, verdict, &bytes)?;
        }
        if arrivals
            .iter()
            .all(|arrival| end(&arrival.packet) <= arrival.packet.len())
        {
            padding_is_not_read(&both.host, &arrivals)?;
        }
        Ok(())
    });
    drop(network);
    result.unwrap_or_else(|error| panic!("{error}"));
}
