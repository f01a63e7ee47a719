//! Packets of connections that another service proxy translates pass unchanged.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::SocketAddr;

use lb_agent::datapath::clock::Clock;
use lb_agent::datapath::passing::{PassingFlows, Translated};
use lb_agent::maps::Protocol;
use lb_common::reason::Reason;
use lb_tests::packet::build::rst;
use lb_tests::packet::world::{PROTOCOLS, World, at, data, first, keys, worlds};
use lb_tests::packet::{Borrowed, Datapath, datapath};

/// The ingress programs.
const INGRESS: [&str; 3] = ["lb_xdp", "lb_tc_from_network", "lb_tc_from_pod"];

/// Ticks: longer than the lifetime of reset flows, shorter than that of others, at any tick rate of
/// the kernel.
const MINUTES: u32 = 1800;

/// A Service of each family with two Pods.
fn prepared() -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
    }
    Some(datapath)
}

fn translated(world: &World, protocol: Protocol, backend: SocketAddr) -> Translated {
    Translated {
        protocol,
        client: world.client,
        frontend: world.vip,
        backend,
    }
}

fn passing(datapath: &Datapath) -> PassingFlows {
    PassingFlows::open(datapath.directory()).unwrap()
}

/// A connection of each family and protocol to the first Pod.
fn all() -> Vec<Translated> {
    let of = |world: &World| PROTOCOLS.map(|protocol| translated(world, protocol, world.pod));
    worlds().iter().flat_map(of).collect()
}

#[test]
fn packets_pass_until_their_connection_ends() {
    let Some(mut datapath) = prepared() else { return };
    let mut flows = passing(&datapath);
    assert_eq!(flows.set(&all(), Clock::read().unwrap()).unwrap(), 4);
    for world in worlds() {
        for program in INGRESS {
            for protocol in PROTOCOLS {
                let packet = data(protocol, world.client, world.vip).bytes();
                datapath.untouched(program, &packet);
                // A first packet of the same connection passes too: only the other proxy knows its
                // state.
                datapath.untouched(program, &first(protocol, world.client, world.vip).bytes());
                datapath.untouched(program, &packet);
            }
        }
    }
    assert_eq!(datapath.reasons(), []);

    // Another agent continues with the same maps.
    let mut flows = passing(&datapath);
    flows.recall().unwrap();
    assert_eq!(flows.set(&[], Clock::read().unwrap()).unwrap(), 0);
    assert_eq!(datapath.flow_count(), 0);
    for world in worlds() {
        for program in INGRESS {
            let packet = data(Protocol::Tcp, world.client, world.vip).bytes();
            let (_, answer) = datapath.verdict(program, &packet);
            assert_ne!(answer, packet, "{program}");
        }
    }
}

#[test]
fn a_reset_does_not_end_a_passing_connection() {
    let Some(mut datapath) = prepared() else { return };
    let mut flows = passing(&datapath);
    for world in worlds() {
        for program in INGRESS {
            flows.set(&all(), Clock::read().unwrap()).unwrap();
            datapath.untouched(program, &rst(world.client, world.vip).bytes());
            // A connection that is reset lives for 10 seconds.
            datapath.age(MINUTES);
            datapath.untouched(program, &data(Protocol::Tcp, world.client, world.vip).bytes());
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn only_connections_to_services_and_serving_pods_pass() {
    let Some(mut datapath) = prepared() else { return };
    let mut flows = passing(&datapath);
    let clock = Clock::read().unwrap();
    for world in worlds() {
        let other = Translated {
            frontend: world.vip2,
            ..translated(&world, Protocol::Tcp, world.pod)
        };
        assert_eq!(flows.set(&[other], clock).unwrap(), 0);
        for (protocol, expected) in [(Protocol::Tcp, 1), (Protocol::Udp, 0)] {
            let gone = translated(&world, protocol, world.client);
            assert_eq!(flows.set(&[gone], clock).unwrap(), expected, "{protocol}");
        }
        flows.set(&[], clock).unwrap();
        // The programs already translate this connection.
        datapath.pass(
            "lb_tc_from_pod",
            &first(Protocol::Tcp, world.client, world.vip).bytes(),
        );
        let served = translated(&world, Protocol::Tcp, world.pod);
        assert_eq!(
            flows.set(&[served], clock).unwrap(),
            1,
            "the connection from outside passes"
        );
        let packet = data(Protocol::Tcp, world.client, world.vip).bytes();
        assert_ne!(datapath.pass("lb_tc_from_pod", &packet), packet);
        datapath.untouched("lb_tc_from_network", &packet);
    }
    assert_eq!(datapath.reasons(), Vec::<(Reason, u64)>::new());
}
