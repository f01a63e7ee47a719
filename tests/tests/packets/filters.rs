//! The filters that decide which packets are looked up in the maps.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::SocketAddr;

use aya::maps::{Array, Map, MapData};
use lb_agent::datapath::live::{LiveFamily, LiveMaps};
use lb_agent::maps::{BackendState, MapOp};
use lb_common::map;
use lb_common::net::{Address4, Address6, Port};
use lb_tests::packet::build::{see, syn, syn_ack};
use lb_tests::packet::world::{DEVICES, Device, World, at, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

/// Opens a connection to a Service with one Pod.
fn open(datapath: &mut Datapath, world: &World, service: u32, device: Device) {
    datapath.service(service, &keys(world.vip), &[at(world.pod)]);
    let request = datapath.pass(device.ingress, &syn(world.client, world.vip).bytes());
    assert_eq!(see(&request).destination, world.pod);
}

/// Sends a reply of the Pod and returns its source after the program.
fn source_of_reply(datapath: &mut Datapath, world: &World, device: Device) -> SocketAddr {
    let reply = syn_ack(world.pod, world.client).bytes();
    see(&datapath.pass(device.egress, &reply)).source
}

/// Renews the filters as the agent does when it starts.
fn renew(datapath: &mut Datapath) {
    let directory = datapath.directory().to_owned();
    datapath.maps.renew_filters(&directory).unwrap();
}

/// Removes what [`open`] wrote, except for the flows.
fn remove(datapath: &mut Datapath, world: &World, service: u32) {
    for key in keys(world.vip) {
        datapath.apply(&MapOp::DeleteFrontend { key });
    }
    datapath.set_state(service * 100, BackendState::Gone);
    datapath.replace(service * 100, world.node);
}

/// Whether the filters contain the Service and the replies of its Pod.
fn looks_up(datapath: &Datapath, world: &World) -> (bool, bool) {
    fn both<A: LiveFamily>(maps: &LiveMaps, world: &World) -> (bool, bool) {
        let [vip, pod] = [world.vip, world.pod].map(|end| A::of(end.ip()).unwrap());
        let replies = maps.is_in_reply_filter(pod, Port::new(world.pod.port()));
        (maps.is_in_filter(vip).unwrap(), replies.unwrap())
    }
    let maps = LiveMaps::open(datapath.directory()).unwrap();
    match world.vip.is_ipv4() {
        true => both::<Address4>(&maps, world),
        false => both::<Address6>(&maps, world),
    }
}

#[test]
fn replies_are_looked_up_while_their_backend_or_flow_exists() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        for device in DEVICES {
            datapath.forget();
            open(&mut datapath, &world, service, device);
            renew(&mut datapath);
            assert_eq!(looks_up(&datapath, &world), (true, true));
            remove(&mut datapath, &world, service);
            renew(&mut datapath);
            assert_eq!(looks_up(&datapath, &world), (true, true));
            assert_eq!(source_of_reply(&mut datapath, &world, device), world.vip);
            datapath.forget();
            renew(&mut datapath);
            assert_eq!(looks_up(&datapath, &world), (false, false));
        }
    }
}

/// An older agent, without this filter, left the maps and open connections.
#[test]
fn a_new_filter_contains_existing_backends_and_flows() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        for device in DEVICES {
            for removed in [false, true] {
                datapath.forget();
                open(&mut datapath, &world, service, device);
                if removed {
                    remove(&mut datapath, &world, service);
                }
                clear(&datapath);
                assert_eq!(source_of_reply(&mut datapath, &world, device), world.pod);
                renew(&mut datapath);
                assert_eq!(source_of_reply(&mut datapath, &world, device), world.vip);
            }
        }
    }
}

fn clear(datapath: &Datapath) {
    let pin = MapData::from_pin(datapath.directory().join(map::REPLY_FILTER.name)).unwrap();
    let mut words: Array<_, u64> = Map::from_map_data(pin).unwrap().try_into().unwrap();
    for index in 0..words.len() {
        words.set(index, 0, 0).unwrap();
    }
}
