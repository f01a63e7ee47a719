//! `--on-removed-backend=forward`: TCP connections to a backend that is gone go on.

use std::net::SocketAddr;

use lb_agent::maps::BackendState;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, ack, see, syn, udp};
use lb_tests::packet::world::{DEVICES, World, at, keys, worlds};
use lb_tests::packet::{Datapath, datapath_with};

/// Runs a check for each family and device: with a Service of two Pods, of which the first is
/// chosen by now, with its backend row.
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
fn open_connections_go_on() {
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
fn also_when_the_row_has_another_endpoint() {
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
        // Nobody answered the first one's SYN, and nobody will.
        assert_eq!(destination(datapath, program, &syn(client, vip)), world.pod2);
        assert_eq!(destination(datapath, program, &ack(client, vip)), world.pod2);
        assert_eq!(datapath.reason(Reason::BackendGone), 0);
    });
}
