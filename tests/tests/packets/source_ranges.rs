//! `loadBalancerSourceRanges`: packets of clients outside all ranges are dropped.

use std::net::SocketAddr;

use lb_common::layout::Frontend;
use lb_common::reason::Reason;
use lb_tests::packet::build::see;
use lb_tests::packet::world::{DEVICES, PROTOCOLS, World, answer, at, data, first, keys, worlds};
use lb_tests::packet::{Borrowed, Datapath, datapath};

/// The id of the Services' set of source ranges.
const SET: u32 = 7;

/// Restricts a Service with one Pod to clients in the set.
fn restrict(datapath: &mut Datapath, service: u32, world: &World) {
    for key in keys(world.vip) {
        let value = Frontend {
            source_ranges: SET,
            ..Datapath::row(service, 1)
        };
        datapath.frontend(key, value);
    }
}

/// Restricted Services for both families.
fn prepared() -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        restrict(&mut datapath, service, &world);
    }
    Some(datapath)
}

/// Adds a network to a set.
fn allow(datapath: &Datapath, set: u32, network: &str, prefix: u32) {
    datapath.allow(set, network.parse().expect("an address"), prefix);
}

/// Asserts that every program serves, or drops, packets of this client.
fn check(datapath: &mut Datapath, world: &World, client: &str, is_allowed: bool) {
    let client = SocketAddr::new(client.parse().expect("an address"), 40_000);
    for device in DEVICES {
        for protocol in PROTOCOLS {
            datapath.forget();
            let packet = first(protocol, client, world.vip).bytes();
            if is_allowed {
                let bytes = datapath.pass(device.ingress, &packet);
                assert_eq!(see(&bytes).destination, world.pod, "{client}");
            } else {
                let before = datapath.reason(Reason::SourceRange);
                datapath.dropped(device.ingress, &packet);
                assert_eq!(datapath.reason(Reason::SourceRange), before + 1, "{client}");
                assert_eq!(datapath.flow_count(), 0);
            }
        }
    }
}

#[test]
fn ipv4_source_ranges_match_at_their_edges() {
    let Some(mut datapath) = prepared() else { return };
    let [world, _] = worlds();
    allow(&datapath, SET, "198.51.100.64", 26);
    allow(&datapath, SET, "203.0.113.8", 29);
    allow(&datapath, SET, "192.0.2.9", 32);
    allow(&datapath, SET, "130.0.0.0", 7);
    for (client, is_allowed) in [
        ("198.51.100.63", false),
        ("198.51.100.64", true),
        ("198.51.100.127", true),
        ("198.51.100.128", false),
        ("203.0.113.7", false),
        ("203.0.113.8", true),
        ("203.0.113.15", true),
        ("203.0.113.16", false),
        ("192.0.2.8", false),
        ("192.0.2.9", true),
        ("192.0.2.10", false),
        ("129.255.255.255", false),
        ("131.255.255.255", true),
        ("132.0.0.0", false),
    ] {
        check(&mut datapath, &world, client, is_allowed);
    }
}

#[test]
fn ipv6_source_ranges_match_at_their_edges() {
    let Some(mut datapath) = prepared() else { return };
    let [_, world] = worlds();
    allow(&datapath, SET, "2001:db8:1::", 48);
    allow(&datapath, SET, "2001:db8:2:8::", 61);
    allow(&datapath, SET, "2001:db8:3::5", 128);
    for (client, is_allowed) in [
        ("2001:db8:0:ffff:ffff:ffff:ffff:ffff", false),
        ("2001:db8:1::", true),
        ("2001:db8:1:ffff:ffff:ffff:ffff:ffff", true),
        ("2001:db8:2::", false),
        ("2001:db8:2:7:ffff:ffff:ffff:ffff", false),
        ("2001:db8:2:8::", true),
        ("2001:db8:2:f:ffff:ffff:ffff:ffff", true),
        ("2001:db8:2:10::", false),
        ("2001:db8:3::4", false),
        ("2001:db8:3::5", true),
        ("2001:db8:3::6", false),
    ] {
        check(&mut datapath, &world, client, is_allowed);
    }
}

#[test]
fn source_range_sets_are_independent_and_may_contain_all_addresses() {
    let Some(mut datapath) = prepared() else { return };
    let [world4, world6] = worlds();
    for (world, client, all) in [
        (world4, "198.51.100.7", "0.0.0.0"),
        (world6, "2001:db8:1::7", "::"),
    ] {
        check(&mut datapath, &world, client, false);
        for set in [SET - 1, SET + 1, SET << 8] {
            allow(&datapath, set, all, 0);
        }
        check(&mut datapath, &world, client, false);
        allow(&datapath, SET, all, 0);
        check(&mut datapath, &world, client, true);
    }
}

/// An open connection continues after its client's address is excluded.
#[test]
fn only_first_packets_are_checked_against_source_ranges() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        for device in DEVICES {
            for protocol in PROTOCOLS {
                datapath.service(service, &keys(world.vip), &[at(world.pod)]);
                datapath.pass(device.ingress, &first(protocol, world.client, world.vip).bytes());
                datapath.pass(device.egress, &answer(protocol, world.pod, world.client).bytes());
                restrict(&mut datapath, service, &world);
                let request = data(protocol, world.client, world.vip).bytes();
                let request = datapath.pass(device.ingress, &request);
                assert_eq!(see(&request).destination, world.pod);
                let reply = data(protocol, world.pod, world.client).bytes();
                let reply = datapath.pass(device.egress, &reply);
                assert_eq!(see(&reply).source, world.vip);
            }
        }
    }
    assert_eq!(datapath.reasons(), []);
}
