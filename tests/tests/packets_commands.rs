//! What the commands read from the maps, and write to them, agrees with what the kernel programs do.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use lb_agent::datapath::clock::Clock;
use lb_agent::datapath::live::LiveMaps;
use lb_agent::maps::{FrontendKey, MapOp};
use lb_common::layout::{Frontend, Region};
use lb_tests::packet::build::syn;
use lb_tests::packet::world::{World, at, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

/// Lets the clients of a Service with one Pod stay with it.
fn affine_service(datapath: &mut Datapath, world: &World, service: u32) {
    datapath.service(service, &keys(world.vip), &[at(world.pod)]);
    let region = Region {
        base: service * 100,
        length: 1,
    };
    for key in keys(world.vip) {
        let value = Frontend {
            service,
            cluster: region,
            local: region,
            affinity_seconds: 100,
            ..Frontend::default()
        };
        set_frontend(datapath, key, value);
    }
}

fn set_frontend(datapath: &mut Datapath, key: FrontendKey, value: Frontend) {
    datapath.apply(&MapOp::SetFrontend { key, value });
}

#[test]
fn the_clock_is_that_of_the_programs() {
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
