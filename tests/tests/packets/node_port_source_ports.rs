//! Connections of the node from a port that is also a NodePort: their replies are not requests to
//! the Service.

use std::net::SocketAddr;

use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::layout::frontend_flags;
use lb_tests::packet::build::{ack, icmp, sctp, syn, syn_ack, udp};
use lb_tests::packet::world::{DEVICES, Device, World, at, chunk, first, worlds};
use lb_tests::packet::{Datapath, datapath};

/// A NodePort of the node.
fn node_port(world: &World) -> SocketAddr {
    SocketAddr::new(world.node, 30_053)
}

/// The "port unreachable" error that `from` sends to `to` about its packet.
fn unreachable(from: SocketAddr, to: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let kind = if to.is_ipv4() { [3, 3] } else { [1, 4] };
    icmp(from.ip(), to.ip(), kind, 0).payload(&packet[14..]).bytes()
}

/// Runs a check at each device, for both families, on a NodePort of a Service with one Pod.
fn everywhere(mut check: impl FnMut(&mut Datapath, Device, &World)) {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        let port = node_port(&world);
        let keys = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .map(|protocol| FrontendKey::Port(port.ip(), port.port(), protocol));
        datapath.service(service, &keys, &[at(world.pod)]);
        for key in keys {
            datapath.change_frontend(key, |row| row.flags |= frontend_flags::NODE_ADDRESS);
        }
        for device in DEVICES {
            datapath.forget();
            check(&mut datapath, device, &world);
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn replies_to_the_nodes_own_datagrams_are_not_translated() {
    everywhere(|datapath, device, world| {
        let (own, other) = (node_port(world), world.client);
        let answer = udp(other, own).bytes();
        for _ in 0..3 {
            datapath.untouched(device.egress, &udp(own, other).bytes());
            datapath.untouched(device.ingress, &answer);
        }
        assert_eq!(datapath.flow_count(), 2);
        // Other senders are clients.
        let stranger = world.client_at(1000);
        let request = datapath.pass(device.ingress, &udp(stranger, own).bytes());
        assert_eq!(request, udp(stranger, world.pod).bytes());
    });
}

#[test]
fn after_the_timeout_datagrams_are_requests_again() {
    everywhere(|datapath, device, world| {
        let (own, other) = (node_port(world), world.client);
        datapath.untouched(device.egress, &udp(own, other).bytes());
        datapath.age(1800);
        let request = datapath.pass(device.ingress, &udp(other, own).bytes());
        assert_eq!(request, udp(other, world.pod).bytes());
    });
}

#[test]
fn errors_about_the_nodes_own_datagrams_are_not_translated() {
    everywhere(|datapath, device, world| {
        let (own, other) = (node_port(world), world.client);
        let datagram = udp(own, other).bytes();
        datapath.untouched(device.egress, &datagram);
        datapath.untouched(device.ingress, &unreachable(other, own, &datagram));
    });
}

#[test]
fn a_clients_flow_to_the_node_port_is_kept() {
    everywhere(|datapath, device, world| {
        let (port, client) = (node_port(world), world.client);
        for _ in 0..3 {
            let request = datapath.pass(device.ingress, &udp(client, port).bytes());
            assert_eq!(request, udp(client, world.pod).bytes());
            // The translated reply at a second device, behind the one whose program translated it.
            datapath.untouched(device.egress, &udp(port, client).bytes());
        }
        assert_eq!(datapath.flow_count(), 2);
    });
}

#[test]
fn the_nodes_tcp_and_sctp_connections_need_no_entries() {
    everywhere(|datapath, device, world| {
        let (own, other) = (node_port(world), world.client);
        datapath.untouched(device.egress, &syn(own, other).bytes());
        for segment in [syn_ack(other, own), ack(other, own)] {
            datapath.untouched(device.ingress, &segment.bytes());
        }
        datapath.untouched(device.egress, &first(Protocol::Sctp, own, other).bytes());
        for answer in [chunk::INIT_ACK, chunk::DATA, chunk::ABORT] {
            datapath.untouched(device.ingress, &sctp(other, own, answer).bytes());
        }
        for packet in [
            syn(own, other),
            ack(own, other),
            first(Protocol::Sctp, own, other),
        ] {
            datapath.untouched(device.ingress, &unreachable(other, own, &packet.bytes()));
        }
        assert_eq!(datapath.flow_count(), 0);
    });
}

#[test]
fn datagrams_from_other_ports_and_addresses_add_no_entries() {
    everywhere(|datapath, device, world| {
        let (own, other) = (node_port(world), world.client);
        for from in [
            SocketAddr::new(own.ip(), own.port() + 1),
            SocketAddr::new(world.pod.ip(), own.port()),
            world.pod,
        ] {
            datapath.untouched(device.egress, &udp(from, other).bytes());
        }
        assert_eq!(datapath.flow_count(), 0);
    });
}
