//! `--on-removed-backend=forward`: TCP connections to a removed backend continue.

use std::net::SocketAddr;

use lb_agent::maps::BackendState;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, ack, see, syn, udp};
use lb_tests::packet::world::{DEVICES, World, at, keys, worlds};
use lb_tests::packet::{Datapath, datapath_with};

/// Runs a check for each family and device, with a Service of two Pods. All slots name the first
/// Pod, whose backend row is passed to the check.
fn everywhere(mut check: impl FnMut(&mut Datapath, &World, &'static str, u32)) {
    let Some(mut datapath) = datapath_with(|settings| settings.keeps_removed = true) else {
        return;
    };
    for (service, world) in (1..).zip(worlds()) {
        for device in DEVICES {
            datapath.forget();
            datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
            let row = service * 100;
            datapath.set_slots(row, &[row, row]);
            check(&mut datapath, &world, device.ingress, row);
        }
    }
    assert_eq!(datapath.reasons(), []);
}

fn destination(datapath: &mut Datapath, program: &str, packet: &Build) -> SocketAddr {
    see(&datapath.pass(program, &packet.bytes())).destination
}

#[test]
fn open_connections_to_a_removed_backend_continue() {
    everywhere(|datapath, world, program, row| {
        let (client, vip) = (world.client, world.vip);
        assert_eq!(destination(datapath, program, &syn(client, vip)), world.pod);
        datapath.set_state(row, BackendState::Gone);
        for _ in 0..2 {
            assert_eq!(destination(datapath, program, &ack(client, vip)), world.pod);
        }
        let fin = ack(client, vip).flags(|header| header.fin = true);
        assert_eq!(destination(datapath, program, &fin), world.pod);
    });
}

#[test]
fn open_connections_continue_after_their_row_is_reused() {
    everywhere(|datapath, world, program, row| {
        let (client, vip) = (world.client, world.vip);
        assert_eq!(destination(datapath, program, &syn(client, vip)), world.pod);
        datapath.replace(row, world.node);
        assert_eq!(destination(datapath, program, &ack(client, vip)), world.pod);
    });
}

#[test]
fn new_connections_and_datagrams_get_another_backend() {
    everywhere(|datapath, world, program, row| {
        let (client, vip) = (world.client, world.vip);
        for packet in [syn, udp].map(|build| build(client, vip)) {
            assert_eq!(destination(datapath, program, &packet), world.pod);
        }
        datapath.set_slots(row, &[row + 1, row + 1]);
        datapath.set_state(row, BackendState::Gone);
        let other = syn(world.client_at(40_001), vip);
        assert_eq!(destination(datapath, program, &other), world.pod2);
        assert_eq!(destination(datapath, program, &udp(client, vip)), world.pod2);
        // The first backend did not answer the SYN and will not answer it any more.
        assert_eq!(destination(datapath, program, &syn(client, vip)), world.pod2);
        assert_eq!(destination(datapath, program, &ack(client, vip)), world.pod2);
        assert_eq!(datapath.reason(Reason::BackendGone), 0);
    });
}
