//! Deterministic backend choices: `ClientIP` session affinity, and hashes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_agent::maps::{BackendState, Protocol};
use lb_common::layout::{Frontend, Region, frontend_flags};
use lb_tests::packet::build::see;
use lb_tests::packet::world::{DEVICES, PROTOCOLS, World, first, keys, worlds};
use lb_tests::packet::{Borrowed, Datapath, datapath};

/// Affinity timeout in seconds.
const SECONDS: u32 = 100;
/// Number of backends of each Service.
const BACKENDS: u32 = 8;

/// The address that follows another at this distance.
fn behind(address: IpAddr, places: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) + places).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) + u128::from(places)).into()),
    }
}

/// The Pods of a Service.
fn pods(world: &World) -> Vec<(IpAddr, u16)> {
    let pod = |n| (behind(world.pod.ip(), n), world.pod.port());
    (0..BACKENDS).map(pod).collect()
}

/// The addresses of `count` clients.
fn clients(world: &World, count: u32) -> Vec<IpAddr> {
    (0..count).map(|n| behind(world.client.ip(), n)).collect()
}

/// The ids of a Service's backend rows.
fn rows(service: u32) -> Vec<u32> {
    (service * 100..service * 100 + BACKENDS).collect()
}

/// The backend row of a Service that holds a Pod.
fn row(service: u32, world: &World, pod: SocketAddr) -> u32 {
    let at = pods(world).iter().position(|(address, _)| *address == pod.ip());
    rows(service)[at.expect("a Pod of the Service")]
}

/// Lets all slots of a Service name this backend row.
fn lead_to(datapath: &mut Datapath, service: u32, row: u32) {
    datapath.set_slots(service * 100, &[row; BACKENDS as usize]);
}

/// Writes the frontend rows of a Service.
fn serve(datapath: &mut Datapath, vip: SocketAddr, value: Frontend) {
    for key in keys(vip) {
        datapath.frontend(key, value);
    }
}

/// The frontend row of a Service with affinity.
fn sticky(service: u32) -> Frontend {
    Frontend {
        affinity_seconds: SECONDS,
        ..Datapath::row(service, BACKENDS)
    }
}

/// Services with affinity for both families: 1 and 2.
fn prepared() -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &pods(&world));
        serve(&mut datapath, world.vip, sticky(service));
    }
    Some(datapath)
}

/// Opens connections, each from a different port.
struct Opener(u16);

impl Opener {
    /// Opens a client's next connection and returns its backend.
    fn open(
        &mut self,
        datapath: &mut Datapath,
        program: &str,
        client: IpAddr,
        vip: SocketAddr,
    ) -> SocketAddr {
        self.0 += 1;
        let source = SocketAddr::new(client, self.0);
        let protocol = PROTOCOLS[usize::from(self.0) % 2];
        see(&datapath.pass(program, &first(protocol, source, vip).bytes())).destination
    }
}

/// Runs a check for each family and device, without any flows or affinity entries.
fn everywhere(mut check: impl FnMut(&mut Datapath, &World, u32, &'static str, &mut Opener)) {
    let Some(mut datapath) = prepared() else { return };
    let mut opener = Opener(1000);
    for (service, world) in (1..).zip(worlds()) {
        for device in DEVICES {
            datapath.forget();
            datapath.set_slots(service * 100, &rows(service));
            check(&mut datapath, &world, service, device.ingress, &mut opener);
        }
    }
    assert_eq!(datapath.reasons(), []);
}

#[test]
fn clients_keep_their_backend_and_are_spread() {
    everywhere(|datapath, world, _, program, opener| {
        let clients = clients(world, 40);
        let mut chosen = Vec::new();
        for client in &clients {
            chosen.push(opener.open(datapath, program, *client, world.vip));
        }
        for (client, pod) in clients.iter().zip(&chosen) {
            for device in DEVICES {
                let again = opener.open(datapath, device.ingress, *client, world.vip);
                assert_eq!(again, *pod);
            }
        }
        assert!(chosen.iter().collect::<BTreeSet<_>>().len() > 4, "{chosen:?}");
        assert_eq!(datapath.affinity_count(), clients.len());
    });
}

#[test]
fn a_client_keeps_an_unused_backend_until_it_was_idle() {
    everywhere(|datapath, world, service, program, opener| {
        let client = world.client.ip();
        let mut open = |datapath: &mut Datapath| opener.open(datapath, program, client, world.vip);
        let pod = open(datapath);
        let base = service * 100;
        let other = if row(service, world, pod) == base {
            base + 1
        } else {
            base
        };
        lead_to(datapath, service, other);
        for _ in 0..3 {
            // Each connection restarts the timeout.
            datapath.age_affinities(SECONDS * 2 / 3);
            assert_eq!(open(datapath), pod);
        }
        datapath.age_affinities(SECONDS + 1);
        let new = open(datapath);
        assert_eq!(row(service, world, new), other);
        // The new backend is remembered.
        datapath.set_slots(base, &rows(service));
        assert_eq!(open(datapath), new);
        assert_eq!(datapath.affinity_count(), 1);
    });
}

/// Number of random choices. All of them give the same backend with a probability of 1 in 8^30.
const DRAWS: u32 = 30;

#[test]
fn a_client_whose_affinity_ended_gets_a_random_backend() {
    everywhere(|datapath, world, _, program, opener| {
        let mut open = |datapath: &mut Datapath| opener.open(datapath, program, world.client.ip(), world.vip);
        let pod = open(datapath);
        let other = (0..DRAWS)
            .map(|_| {
                datapath.age_affinities(SECONDS + 1);
                open(datapath)
            })
            .find(|drawn| *drawn != pod)
            .expect("another Pod");
        // The new backend is remembered until its affinity ends.
        assert_eq!(open(datapath), other);
        assert_eq!(datapath.affinity_count(), 1);
        // Without an affinity entry, the hash of the client's address decides, so all nodes agree.
        datapath.forget();
        assert_eq!(open(datapath), pod);
    });
}

#[test]
fn a_client_leaves_a_backend_without_new_connections() {
    everywhere(|datapath, world, service, program, opener| {
        let base = service * 100;
        let mut open = |datapath: &mut Datapath| opener.open(datapath, program, world.client.ip(), world.vip);
        for case in 0..3 {
            let pod = open(datapath);
            let left = row(service, world, pod);
            match case {
                0 => datapath.set_state(left, BackendState::Draining),
                1 => datapath.set_state(left, BackendState::Gone),
                _ => datapath.replace(left, pod.ip()),
            }
            // The slots change too, as the agent changes them.
            lead_to(datapath, service, base + (left + 1 - base) % BACKENDS);
            let new = open(datapath);
            assert_ne!(new, pod);
            datapath.set_state(left, BackendState::Active);
            datapath.set_slots(base, &rows(service));
            assert_eq!(open(datapath), new);
        }
    });
}

#[test]
fn with_a_local_policy_clients_leave_backends_of_other_nodes() {
    everywhere(|datapath, world, service, program, opener| {
        let mut open = |datapath: &mut Datapath| opener.open(datapath, program, world.client.ip(), world.vip);
        serve(datapath, world.vip, sticky(service));
        let pod = open(datapath);
        let left = row(service, world, pod);
        let base = service * 100;
        let stays = if left == base { base + 1 } else { base };
        datapath.change_backend(left, |backend| backend.in_local = false);
        // Without the policy, the client may stay.
        assert_eq!(open(datapath), pod);
        let value = Frontend {
            flags: frontend_flags::INSIDE_LOCAL | frontend_flags::OUTSIDE_LOCAL,
            local: Region {
                base: stays,
                length: 1,
            },
            ..sticky(service)
        };
        serve(datapath, world.vip, value);
        let new = open(datapath);
        assert_eq!(row(service, world, new), stays);
        datapath.change_backend(left, |backend| backend.in_local = true);
    });
}

#[test]
fn ports_of_a_service_have_independent_affinity() {
    let Some(mut datapath) = prepared() else { return };
    let mut opener = Opener(1000);
    for (service, world) in (1..).zip(worlds()) {
        let second = service + 2;
        datapath.service(second, &keys(world.vip2), &pods(&world));
        serve(&mut datapath, world.vip2, sticky(second));
        let (one, two) = (rows(service)[3], rows(second)[5]);
        lead_to(&mut datapath, service, one);
        lead_to(&mut datapath, second, two);
        let client = world.client.ip();
        for _ in 0..3 {
            let pod = opener.open(&mut datapath, "lb_xdp", client, world.vip);
            assert_eq!(row(service, &world, pod), one);
            let pod = opener.open(&mut datapath, "lb_xdp", client, world.vip2);
            assert_eq!(row(second, &world, pod), two);
        }
    }
    assert_eq!(datapath.affinity_count(), 4);
}

/// Size of the Maglev tables of these tests.
const TABLE: u32 = 61;

/// A Service with a Maglev table for each family.
fn with_table(affinity_seconds: u32) -> Option<Borrowed> {
    let mut datapath = datapath()?;
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &pods(&world));
        let base = service * 1000;
        let ids: Vec<_> = (0..TABLE).map(|n| service * 100 + n * 5 % BACKENDS).collect();
        datapath.set_slots(base, &ids);
        let value = Frontend {
            affinity_seconds,
            maglev: Region { base, length: TABLE },
            ..Datapath::row(service, BACKENDS)
        };
        serve(&mut datapath, world.vip, value);
    }
    Some(datapath)
}

/// Nodes with equal tables make the same choices, so a client keeps its backend when another node
/// takes over its packets.
#[test]
fn every_node_chooses_the_same_backend_for_a_client() {
    let (Some(mut one), Some(mut other)) = (with_table(SECONDS), with_table(SECONDS)) else {
        return;
    };
    let mut opener = Opener(1000);
    for world in worlds() {
        for programs in [
            ["lb_xdp", "lb_tc_from_network"],
            ["lb_tc_from_pod", "lb_tc_from_pod"],
        ] {
            one.forget();
            other.forget();
            for client in clients(&world, 40) {
                let pod = opener.open(&mut one, programs[0], client, world.vip);
                assert_eq!(opener.open(&mut other, programs[1], client, world.vip), pod);
            }
        }
    }
}

/// Without affinity, the hash of the connection decides for clients outside.
#[test]
fn every_node_chooses_the_same_backend_for_a_connection() {
    let (Some(mut one), Some(mut other)) = (with_table(0), with_table(0)) else {
        return;
    };
    for world in worlds() {
        let mut chosen = BTreeSet::new();
        for port in 1000..1040 {
            let packet = first(Protocol::Tcp, world.client_at(port), world.vip).bytes();
            let pod = see(&one.pass("lb_xdp", &packet)).destination;
            assert_eq!(see(&other.pass("lb_tc_from_network", &packet)).destination, pod);
            // Without a flow, the packet goes to the same backend again.
            one.forget();
            assert_eq!(see(&one.pass("lb_xdp", &packet)).destination, pod);
            chosen.insert(pod);
        }
        assert!(chosen.len() > 4, "{chosen:?}");
    }
}
