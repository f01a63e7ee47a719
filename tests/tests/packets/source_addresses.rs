//! Checks of a packet's source address against the device that it arrives at.

use std::net::{IpAddr, SocketAddr};

use lb_agent::devices::Role;
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::see;
use lb_tests::packet::network::{Place, TestNetwork};
use lb_tests::packet::world::{PROTOCOLS, World, answer, at, first, keys, worlds};
use lb_tests::packet::{Borrowed, Datapath, datapath};

/// A client with this address of the world's family.
fn client(world: &World, v4: &str, v6: &str) -> SocketAddr {
    let ip: IpAddr = match world.vip.ip() {
        IpAddr::V4(_) => v4.parse(),
        IpAddr::V6(_) => v6.parse(),
    }
    .expect("an address");
    SocketAddr::new(ip, 40_000)
}

/// A Service of each family, with affinity, whose only Pod is at `place`.
fn prepared(place: Place, local: bool) -> Option<(Borrowed, TestNetwork)> {
    let mut datapath = datapath()?;
    let network = TestNetwork::enter(&mut datapath)?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.backend_at(place))]);
        datapath.change_backend(service * 100, |row| row.local = local);
        for key in keys(world.vip) {
            datapath.change_frontend(key, |row| row.affinity_seconds = 100);
        }
    }
    Some((datapath, network))
}

#[test]
fn packets_from_outside_with_a_pods_address_are_dropped() {
    let Some((mut datapath, network)) = prepared(Place::Back, true) else {
        return;
    };
    // `back` is the device of a Pod of this node.
    network.attach(
        &datapath,
        &[(network.front, Role::Network), (network.back, Role::Pod)],
    );
    datapath.device = network.front;
    let mut dropped = 0;
    for world in worlds() {
        for program in ["lb_xdp", "lb_tc_from_network"] {
            for protocol in PROTOCOLS {
                for forged in [
                    client(&world, "172.16.0.77", "fd00:172::77"),
                    client(&world, "10.1.0.77", "fd00:1::77"),
                    client(&world, "10.3.0.5", "fd00:3::5"),
                ] {
                    datapath.dropped(program, &first(protocol, forged, world.vip).bytes());
                    dropped += 1;
                }
            }
        }
    }
    assert_eq!((datapath.flow_count(), datapath.affinity_count()), (0, 0));
    assert_eq!(datapath.reasons(), [(Reason::ForgedSource, dropped)]);
    for world in worlds() {
        for program in ["lb_xdp", "lb_tc_from_network"] {
            datapath.pass(program, &first(PROTOCOLS[0], world.client, world.vip).bytes());
        }
    }
    assert_eq!(datapath.affinity_count(), 2);
}

/// Sends a request of `client` through `front`, a Pod's device, and its reply through `back`.
/// Returns the source that the backend sees.
fn replaced(datapath: &mut Datapath, network: &TestNetwork, world: &World, client: SocketAddr) -> SocketAddr {
    let backend = world.backend_at(Place::Back);
    let mut sources = Vec::new();
    for protocol in PROTOCOLS {
        datapath.device = network.front;
        let request = first(protocol, client, world.vip).bytes();
        let (verdict, bytes) = datapath.verdict("lb_tc_from_pod", &request);
        assert_eq!(verdict, Verdict::Redirect, "{request:02x?} -> {bytes:02x?}");
        let seen = see(&bytes);
        assert_eq!(seen.destination, backend);
        datapath.device = network.back;
        let reply = answer(protocol, backend, seen.source).bytes();
        let (verdict, bytes) = datapath.verdict("lb_tc_from_network", &reply);
        assert_eq!(verdict, Verdict::Redirect, "{reply:02x?} -> {bytes:02x?}");
        let reply = see(&bytes);
        assert_eq!((reply.source, reply.destination), (world.vip, client));
        sources.push(seen.source);
    }
    sources[0]
}

#[test]
fn a_pod_keeps_its_own_source_address() {
    let Some((mut datapath, network)) = prepared(Place::Back, false) else {
        return;
    };
    network.attach(
        &datapath,
        &[(network.front, Role::Pod), (network.back, Role::Network)],
    );
    datapath.device = network.front;
    for world in worlds() {
        let pod = world.neighbour();
        for protocol in PROTOCOLS {
            let request = datapath.pass("lb_tc_from_pod", &first(protocol, pod, world.vip).bytes());
            assert_eq!(
                request,
                first(protocol, pod, world.backend_at(Place::Back)).bytes()
            );
        }
    }
    assert_eq!(datapath.affinity_count(), 2);
}

#[test]
fn clients_behind_a_pod_are_masqueraded() {
    let Some((mut datapath, network)) = prepared(Place::Back, false) else {
        return;
    };
    network.attach(
        &datapath,
        &[(network.front, Role::Pod), (network.back, Role::Network)],
    );
    for world in worlds() {
        // The route to this client goes through the router behind `front`.
        let source = replaced(
            &mut datapath,
            &network,
            &world,
            client(&world, "10.8.0.9", "fd00:8::9"),
        );
        assert_eq!(source.ip(), world.back_address());
        // This client has an address of the outside network.
        let source = replaced(
            &mut datapath,
            &network,
            &world,
            client(&world, "10.1.0.9", "fd00:1::9"),
        );
        assert_eq!(source.ip(), world.back_address());
    }
    // Their addresses may be forged, so they get no affinity.
    assert_eq!(datapath.affinity_count(), 0);
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn a_pod_with_the_address_of_another_pod_is_masqueraded() {
    let Some((mut datapath, network)) = prepared(Place::Back, false) else {
        return;
    };
    network.attach(
        &datapath,
        &[(network.front, Role::Pod), (network.back, Role::Pod)],
    );
    for world in worlds() {
        let source = replaced(
            &mut datapath,
            &network,
            &world,
            client(&world, "172.16.0.9", "fd00:172::9"),
        );
        assert_eq!(source.ip(), world.back_address());
    }
    assert_eq!(datapath.affinity_count(), 0);
}

/// Only packets of the Pod itself are hairpin packets.
#[test]
fn a_pod_with_the_address_of_the_backend_is_masqueraded() {
    let Some((mut datapath, network)) = prepared(Place::Back, true) else {
        return;
    };
    network.attach(
        &datapath,
        &[(network.front, Role::Pod), (network.back, Role::Pod)],
    );
    for world in worlds() {
        let backend = world.backend_at(Place::Back);
        let forged = SocketAddr::new(backend.ip(), 40_000);
        datapath.device = network.front;
        let (verdict, bytes) =
            datapath.verdict("lb_tc_from_pod", &first(PROTOCOLS[0], forged, world.vip).bytes());
        let seen = see(&bytes);
        assert_eq!((verdict, seen.destination), (Verdict::Redirect, backend));
        assert_eq!(seen.source.ip(), world.back_address());
    }
    assert_eq!(datapath.affinity_count(), 0);
}

#[test]
fn clients_behind_the_backend_are_masqueraded() {
    let Some((mut datapath, network)) = prepared(Place::Front, true) else {
        return;
    };
    network.attach(
        &datapath,
        &[(network.front, Role::Pod), (network.back, Role::Network)],
    );
    datapath.device = network.front;
    for world in worlds() {
        let (source, backend) = (
            client(&world, "10.8.0.9", "fd00:8::9"),
            world.backend_at(Place::Front),
        );
        // The backend is the router itself.
        let router = client(&world, "192.0.2.253", "2001:db8::fd").ip();
        let service = if world.vip.is_ipv4() { 1 } else { 2 };
        datapath.change_backend(service * 100, |row| row.address = router);
        let backend = SocketAddr::new(router, backend.port());
        for protocol in PROTOCOLS {
            let request = first(protocol, source, world.vip).bytes();
            let (verdict, bytes) = datapath.verdict("lb_tc_from_pod", &request);
            assert_eq!(verdict, Verdict::Redirect, "{request:02x?} -> {bytes:02x?}");
            let seen = see(&bytes);
            assert_eq!((seen.source.ip(), seen.destination), (world.node, backend));
            let reply = answer(protocol, backend, seen.source).bytes();
            let (verdict, bytes) = datapath.verdict("lb_tc_from_pod", &reply);
            assert_eq!(verdict, Verdict::Redirect, "{reply:02x?} -> {bytes:02x?}");
            let reply = see(&bytes);
            assert_eq!((reply.source, reply.destination), (world.vip, source));
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn clients_behind_a_pod_keep_their_source_to_local_pods() {
    let Some((mut datapath, network)) = prepared(Place::Back, true) else {
        return;
    };
    network.attach(
        &datapath,
        &[(network.front, Role::Pod), (network.back, Role::Pod)],
    );
    datapath.device = network.front;
    for world in worlds() {
        let source = client(&world, "10.8.0.9", "fd00:8::9");
        for protocol in PROTOCOLS {
            let request = datapath.pass("lb_tc_from_pod", &first(protocol, source, world.vip).bytes());
            assert_eq!(
                request,
                first(protocol, source, world.backend_at(Place::Back)).bytes()
            );
        }
    }
}
