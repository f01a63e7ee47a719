//! Random packets in random order, at all programs. The kernel behaves as the same code on the
//! host; unrelated packets stay unchanged; rewritten packets have valid checksums; and no program
//! reads behind the end of a packet.

mod disguise;
mod services;
mod traffic;

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::Range;

use lb_common::packet::Verdict;
use lb_tests::packet::checksums::{faults, repair};
use lb_tests::packet::host::Host;
use lb_tests::packet::network::TestNetwork;
use lb_tests::packet::world::{PROGRAMS, worlds};
use lb_tests::packet::{Borrowed, LINK, datapath_with};
use lb_tests::slowness::cases;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use self::disguise::{LAYER3, ROUTES, disguised_worlds, everyone, is_layer3};
use self::services::{LIFETIMES, PORTS, SERVICES, backends, host, serve};
use self::traffic::{everything, openers};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// A packet for a program, with an Ethernet header if the program's device has one.
#[derive(Clone, Debug)]
struct Arrival {
    program: &'static str,
    packet: Vec<u8>,
    /// Number of padding bytes behind the packet in the frame.
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

/// Programs, and the frames whose packets they see.
type Traffic = (Vec<&'static str>, Vec<Vec<u8>>);

/// All programs with their frames.
fn traffic() -> [Traffic; 2] {
    [
        (PROGRAMS.to_vec(), everything(&worlds())),
        (LAYER3.to_vec(), everything(&disguised_worlds())),
    ]
}

/// A packet with random changes: some bytes, a truncated end, and repaired or wrong checksums.
fn arrival((programs, frames): Traffic) -> impl Strategy<Value = Arrival> {
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
    let program = prop::sample::select(programs);
    let parts = (
        prop::sample::select(frames),
        changes,
        cut,
        padding,
        program,
        any::<bool>(),
    );
    parts.prop_map(|(mut frame, changes, cut, padding, program, is_repaired)| {
        for (at, value) in changes {
            let at = at.min(frame.len() - 1);
            frame[at] = value;
        }
        // A test run needs an IP header behind the bytes that it treats as an Ethernet header.
        let least = if is_layer3(program) {
            2 * ETHERNET
        } else {
            ETHERNET
        } + 40;
        frame.truncate(frame.len().saturating_sub(cut).max(least));
        if is_repaired {
            repair(&mut frame);
        }
        Arrival {
            program,
            packet: seen_by(program, frame),
            padding,
        }
    })
}

/// The part of a frame that a program sees.
fn seen_by(program: &str, mut frame: Vec<u8>) -> Vec<u8> {
    if is_layer3(program) {
        frame.drain(..ETHERNET);
    }
    frame
}

/// The frame of a packet that a program saw, or that it returned with this verdict.
fn framed(program: &str, verdict: Verdict, ethertype: [u8; 2], seen: &[u8]) -> Vec<u8> {
    if !is_layer3(program) {
        return seen.to_vec();
    }
    // A forwarded packet has room for an Ethernet header.
    let network = if verdict == Verdict::Redirect { ETHERNET } else { 0 };
    [&[0; LINK], &ethertype[..], &seen[network..]].concat()
}

/// The bytes of an answer that a test run puts in another place than a device without Ethernet
/// headers. It inserts room for the answer's headers behind the bytes that it treats as a
/// link-layer header, not before them.
fn misplaced(program: &str, packet: &[u8], expected: &(Verdict, Vec<u8>)) -> Option<Range<usize>> {
    let (verdict, bytes) = expected;
    let (headers, is_icmp) = match bytes.first()? >> 4 {
        4 => (28, bytes[9] == 1),
        _ => (48, bytes[6] == 58),
    };
    let quoted = bytes.get(headers..headers + ETHERNET)?;
    let is_error = is_icmp && *verdict == Verdict::Bounce && quoted == &packet[..ETHERNET];
    (is_error && is_layer3(program)).then_some(headers..headers + ETHERNET)
}

/// The programs in the kernel and on the host.
struct Both {
    datapath: Borrowed,
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

    /// Runs a packet on both sides; returns the verdict and the bytes.
    fn step(&mut self, program: &str, packet: &[u8]) -> Result<(Verdict, Vec<u8>), TestCaseError> {
        let expected = self.host.run(program, packet);
        let (verdict, mut bytes) = self.datapath.verdict(program, packet);
        if let Some(part) = misplaced(program, packet, &expected) {
            bytes[part.clone()].copy_from_slice(&expected.1[part]);
        }
        // A test run cannot distinguish these two verdicts.
        let is_sent = |verdict| matches!(verdict, Verdict::Bounce | Verdict::Redirect);
        prop_assert!(
            verdict == expected.0 || is_sent(verdict) && is_sent(expected.0),
            "{program}: {verdict:?} and not {:?}: {packet:02x?}",
            expected.0
        );
        // TC leaves the link-layer addresses of forwarded packets to the kernel. The bytes of
        // dropped packets do not matter.
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

/// Whether a packet contains an address that the programs know.
fn is_ours(packet: &[u8]) -> bool {
    let names = |address: IpAddr| match address {
        IpAddr::V4(address) => packet.windows(4).any(|part| part == address.octets()),
        IpAddr::V6(address) => packet.windows(16).any(|part| part == address.octets()),
    };
    everyone().iter().any(|world| {
        names(world.vip.ip())
            || names(world.vip2.ip())
            || names(world.node)
            || names(world.back_address())
            || SERVICES
                .iter()
                .any(|(port, behind)| backends(world, *port, *behind).iter().any(|pod| names(pod.ip())))
    })
}

/// Checks invariants of a packet that do not depend on the host's result.
fn check(arrival: &Arrival, frame: &[u8], verdict: Verdict, bytes: &[u8]) -> Result<(), TestCaseError> {
    // Also without an Ethernet header: see `disguise`.
    let ethertype = [frame[LINK], frame[LINK + 1]];
    let is_ip = matches!(ethertype, [0x08, 0x00] | [0x86, 0xdd]);
    let faults = |verdict, seen| faults(&framed(arrival.program, verdict, ethertype, seen));
    if !is_ip || !is_ours(frame) {
        prop_assert_eq!(verdict, Verdict::Pass, "{:?}", arrival);
        prop_assert_eq!(bytes, frame, "{:?}", arrival);
    }
    if verdict != Verdict::Drop && faults(Verdict::Pass, frame).is_empty() {
        prop_assert_eq!(faults(verdict, bytes), [""; 0], "{:?} -> {:02x?}", arrival, bytes);
    }
    if verdict == Verdict::Pass && arrival.program.starts_with("lb_tc_to") {
        prop_assert_eq!(bytes.len(), frame.len(), "{:?}", arrival);
    }
    Ok(())
}

/// Whether the packet is as long as the length in its IP header.
fn is_complete(Arrival { program, packet, .. }: &Arrival) -> bool {
    let network = if is_layer3(program) { 0 } else { ETHERNET };
    let field = |at: usize| {
        usize::from(u16::from_be_bytes([
            packet[network + at],
            packet[network + at + 1],
        ]))
    };
    let length = match packet[LINK..ETHERNET] {
        [0x08, 0x00] => field(2),
        [0x86, 0xdd] => 40 + field(4),
        _ => 0,
    };
    network + length <= packet.len()
}

/// Runs a history on the host twice, with different padding. Only the padding may differ in the
/// results.
fn check_padding_is_not_read(host: &Host, arrivals: &[Arrival]) -> Result<(), TestCaseError> {
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

/// Runs every packet through every program that may see it, without and with padding.
fn whole(both: &mut Both, (programs, frames): &Traffic) {
    both.restart();
    for frame in frames {
        assert_eq!(faults(frame), [""; 0], "{frame:02x?}");
        for (program, padding) in programs.iter().flat_map(|&program| [(program, 0), (program, 33)]) {
            let arrival = Arrival {
                program,
                packet: seen_by(program, frame.clone()),
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
fn random_packets_get_the_same_result_in_kernel_and_host() {
    let settings = |settings: &mut lb_agent::datapath::object::settings::Settings| {
        settings.source_ports = PORTS;
        settings.lifetimes = LIFETIMES;
        settings.tables.flows = 16_384;
    };
    let Some(mut datapath) = datapath_with(settings) else {
        return;
    };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    network.ip(&ROUTES);
    serve(&mut datapath);
    let host = host(&datapath);
    let mut both = Both { datapath, host };
    for traffic in &traffic() {
        whole(&mut both, traffic);
    }
    let both = RefCell::new(both);
    let config = Config {
        cases: cases(2000),
        failure_persistence: None,
        ..Config::default()
    };
    let [ethernet, layer3] = traffic().map(arrival);
    let histories = prop::collection::vec(prop_oneof![3 => ethernet, 2 => layer3], 1..10);
    let result = TestRunner::new(config).run(&histories, |arrivals| {
        let mut both = both.borrow_mut();
        both.restart();
        for arrival in &arrivals {
            let frame = arrival.frame(0xa5);
            let (verdict, bytes) = both.step(arrival.program, &frame)?;
            check(arrival, &frame, verdict, &bytes)?;
        }
        if arrivals.iter().all(is_complete) {
            check_padding_is_not_read(&both.host, &arrivals)?;
        }
        Ok(())
    });
    drop(network);
    result.unwrap_or_else(|error| panic!("{error}"));
}
