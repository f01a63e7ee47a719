//! The commands and the kernel programs read and write the maps consistently.

use lb_agent::datapath::clock::Clock;
use lb_agent::datapath::live::LiveMaps;
use lb_agent::inspect::ServiceFilter;
use lb_agent::maps::{BackendState, MapOp};
use lb_agent::show::affinity::{self, Client, PinError, Which};
use lb_common::layout::Frontend;
use lb_tests::packet::build::{see, syn};
use lb_tests::packet::world::{World, at, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

/// A Service with two Pods and session affinity.
fn affine_service(datapath: &mut Datapath, world: &World, service: u32) {
    let pods = [at(world.pod), at(world.pod2)];
    datapath.service(service, &keys(world.vip), &pods);
    let name = format!("default/web-{service}/http/TCP");
    datapath.apply(&MapOp::SetName { service, name });
    for key in keys(world.vip) {
        let value = Frontend {
            affinity_seconds: 100,
            ..Datapath::row(service, 2)
        };
        datapath.frontend(key, value);
    }
}

#[test]
fn commands_and_programs_use_the_same_clock() {
    let Some(mut datapath) = datapath() else { return };
    let [world, _] = worlds();
    affine_service(&mut datapath, &world, 1);
    let before = Clock::read().unwrap();
    datapath.pass("lb_tc_from_pod", &syn(world.client, world.vip).bytes());
    let after = Clock::read().unwrap();
    let live = LiveMaps::open(datapath.directory()).unwrap();
    let rows = live.ipv4().affinities().unwrap();
    let written = rows.values().next().unwrap().last_used;
    let second = u64::from(before.jiffies_per_second);
    println!("{} <= {written} <= {}", before.jiffies, after.jiffies);
    assert!(before.jiffies <= written + second, "{before:?} {written}");
    assert!(written <= after.jiffies + second, "{written} {after:?}");
    assert!(after.passed_jiffies() < written, "{written} {after:?}");

    let flows = live.ipv4().flows().unwrap();
    assert_eq!(flows.len(), 2);
    for flow in flows.values() {
        assert!(after.seconds_since_tick(flow.last_seen) < 4, "{flow:?} {after:?}");
    }
}

#[test]
fn a_pinned_client_gets_the_pinned_pod() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        affine_service(&mut datapath, &world, service);
        let clock = Clock::read().unwrap();
        let mut maps = LiveMaps::open(datapath.directory()).unwrap();
        let filter: ServiceFilter = format!("default/web-{service}:80").parse().unwrap();
        for port in 1000..1002 {
            let client = world.client_at(port);
            for pod in [world.pod, world.pod2] {
                let to = affinity::pin(&mut maps, clock, &filter, Client::Address(client.ip()), pod.ip());
                assert_eq!(to.unwrap(), pod);
                let packet = datapath.pass("lb_tc_from_pod", &syn(client, world.vip).bytes());
                assert_eq!(see(&packet).destination, pod);
                let rows = affinity::list(&maps, Clock::read().unwrap(), &Which::default()).unwrap();
                let [row] = &rows[..] else { panic!("{rows:?}") };
                assert_eq!((row.backend, row.usable), (Some(pod), true), "{row:?}");
                assert_eq!(row.client, Client::Address(client.ip()));
                assert!(row.left_seconds > 95, "{row:?}");
                // The old flow expires, so the next packet opens a new connection.
                datapath.age(1_000_000);
            }
        }
        datapath.set_state(service * 100, BackendState::Draining);
        let client = Client::Address(world.client.ip());
        let refused = affinity::pin(&mut maps, clock, &filter, client, world.pod.ip());
        assert!(matches!(refused, Err(PinError::NoBackend { .. })), "{refused:?}");
        assert_eq!(affinity::clear(&mut maps, &Which::default()).unwrap(), 1);
        assert_eq!(affinity::clear(&mut maps, &Which::default()).unwrap(), 0);
    }
}
