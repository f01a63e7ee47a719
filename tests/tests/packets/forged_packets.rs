//! Forged packets, and segments of unknown connections, do not affect other connections.

use std::net::SocketAddr;

use lb_agent::maps::BackendState;
use lb_common::host::only_ports;
use lb_common::layout::{Region, frontend_flags};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_tests::packet::build::{Build, ack, rst, see, syn, syn_ack, tcp, udp};
use lb_tests::packet::network::{Place, TestNetwork, serve_from};
use lb_tests::packet::world::{
    DEVICES, Device, POD_DEVICE, PROTOCOLS, World, answer, at, first, keys, worlds,
};
use lb_tests::packet::{Datapath, datapath, datapath_with};

/// Runs a check at each device, for both families, with a Service of one Pod and no connections.
fn everywhere(mut check: impl FnMut(&mut Datapath, Device, &World)) {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        for device in DEVICES {
            datapath.forget();
            check(&mut datapath, device, &world);
        }
    }
}

/// Distance to sequence numbers that are in no window: as far as possible from those of [`tcp`] and
/// [`ack`].
const FAR: u32 = 1 << 31;

/// Ticks: longer than the lifetime of half-open connections, shorter than that of established ones,
/// at any tick rate of the kernel.
const MINUTES: u32 = 1800;

fn translated(datapath: &mut Datapath, program: &str, packet: &Build, expected: &Build) {
    assert_eq!(
        datapath.pass(program, &packet.bytes()),
        expected.bytes(),
        "{program}"
    );
}

/// Opens a connection up to the client's acknowledgement.
fn establish(datapath: &mut Datapath, device: Device, world: &World) {
    let (client, vip, pod) = (world.client, world.vip, world.pod);
    translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
    translated(
        datapath,
        device.egress,
        &syn_ack(pod, client),
        &syn_ack(vip, client),
    );
    translated(datapath, device.ingress, &ack(client, vip), &ack(client, pod));
}

/// Asserts that both directions of the connection are translated.
fn is_open(datapath: &mut Datapath, device: Device, world: &World) {
    let (client, vip, pod) = (world.client, world.vip, world.pod);
    translated(datapath, device.egress, &ack(pod, client), &ack(vip, client));
    translated(datapath, device.ingress, &ack(client, vip), &ack(client, pod));
}

#[test]
fn a_forged_syn_does_not_translate_a_direct_connection() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        // The backend already has a connection with this client. It answers the SYN with an ACK and
        // continues it.
        for segment in [
            ack(pod, client),
            ack(pod, client).flags(|header| header.fin = true),
            ack(pod, client).flags(|header| header.rst = true),
            rst(pod, client),
            ack(pod, client).payload(&[7; 500]),
        ] {
            datapath.untouched(device.egress, &segment.bytes());
        }
    });
}

#[test]
fn a_forged_syn_does_not_translate_replies_between_pods() {
    // The same with local redirects, where the ingress program hands replies over to their Pod.
    let Some(mut datapath) = datapath_with(|settings| settings.redirects_locally = true) else {
        return;
    };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        translated(
            &mut datapath,
            POD_DEVICE.ingress,
            &syn(world.client, world.vip),
            &syn(world.client, world.pod),
        );
        let segment = ack(world.pod, world.client).bytes();
        datapath.untouched(POD_DEVICE.ingress, &segment);
        datapath.untouched(POD_DEVICE.egress, &segment);
    }
}

#[test]
fn a_port_in_use_by_a_direct_connection_is_replaced() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        datapath.untouched(device.egress, &ack(pod, client).bytes());
        // The client repeats its SYN.
        let request = see(&datapath.pass(device.ingress, &syn(client, vip).bytes()));
        assert_eq!((request.source.ip(), request.destination), (client.ip(), pod));
        assert_ne!(request.source.port(), client.port());
        translated(
            datapath,
            device.egress,
            &syn_ack(pod, request.source),
            &syn_ack(vip, client),
        );
        datapath.untouched(device.egress, &ack(pod, client).bytes());
        translated(
            datapath,
            device.ingress,
            &ack(client, vip),
            &ack(request.source, pod),
        );
    });
}

#[test]
fn a_direct_connection_replaces_an_unestablished_flow() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        translated(
            datapath,
            device.egress,
            &syn_ack(pod, client),
            &syn_ack(vip, client),
        );
        datapath.untouched(device.ingress, &syn(client, pod).bytes());
        for segment in [syn_ack(pod, client), ack(pod, client)] {
            datapath.untouched(device.egress, &segment.bytes());
        }
    });
}

#[test]
fn a_direct_syn_does_not_end_an_established_connection() {
    everywhere(|datapath, device, world| {
        establish(datapath, device, world);
        datapath.untouched(device.ingress, &syn(world.client, world.pod).bytes());
        is_open(datapath, device, world);
    });
}

#[test]
fn a_refused_connection_is_reset_by_the_frontend() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        let refusal = |from, to| {
            ack(from, to).flags(|header| {
                (header.rst, header.sequence_number) = (true, 0);
            })
        };
        translated(
            datapath,
            device.egress,
            &refusal(pod, client),
            &refusal(vip, client),
        );
    });
}

#[test]
fn a_connection_is_established_when_the_client_acknowledges() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        // A SYN with a forged address, which the backend answers.
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        translated(
            datapath,
            device.egress,
            &syn_ack(pod, client),
            &syn_ack(vip, client),
        );
        let flows = datapath.flow_count();
        datapath.age(MINUTES);
        // The port is free for the same client and Pod behind another frontend.
        datapath.service(50, &keys(world.vip2), &[at(pod)]);
        translated(
            datapath,
            device.ingress,
            &syn(client, world.vip2),
            &syn(client, pod),
        );
        assert_eq!(datapath.flow_count(), flows + 1);
        translated(
            datapath,
            device.egress,
            &syn_ack(pod, client),
            &syn_ack(world.vip2, client),
        );
        translated(
            datapath,
            device.ingress,
            &ack(client, world.vip2),
            &ack(client, pod),
        );
        // Now it is established.
        datapath.age(MINUTES);
        let other = see(&datapath.pass(device.ingress, &syn(client, vip).bytes()));
        assert_ne!(other.source.port(), client.port());
    });
}

#[test]
fn an_acknowledgement_outside_the_window_establishes_nothing() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        translated(
            datapath,
            device.egress,
            &syn_ack(pod, client),
            &syn_ack(vip, client),
        );
        let blind = |from, to| ack(from, to).flags(|header| header.acknowledgment_number = FAR);
        for _ in 0..3 {
            translated(datapath, device.ingress, &blind(client, vip), &blind(client, pod));
        }
        datapath.age(MINUTES);
        datapath.service(50, &keys(world.vip2), &[at(pod)]);
        translated(
            datapath,
            device.ingress,
            &syn(client, world.vip2),
            &syn(client, pod),
        );
    });
}

#[test]
fn a_translated_syn_at_a_second_program_is_not_direct() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        for _ in 0..2 {
            translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
            // A second program sees it: TC after XDP, or a bridge after its port.
            datapath.untouched(device.ingress, &syn(client, pod).bytes());
            datapath.untouched("lb_tc_from_network", &syn(client, pod).bytes());
        }
        translated(
            datapath,
            device.egress,
            &syn_ack(pod, client),
            &syn_ack(vip, client),
        );
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        datapath.untouched("lb_tc_from_network", &syn(client, pod).bytes());
        translated(
            datapath,
            device.egress,
            &syn_ack(pod, client),
            &syn_ack(vip, client),
        );
    });
}

#[test]
fn refused_segments_of_unknown_connections_are_reset_by_the_frontend() {
    everywhere(|datapath, device, world| {
        if device.ingress == POD_DEVICE.ingress {
            return;
        }
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        translated(datapath, device.ingress, &ack(client, vip), &ack(client, pod));
        translated(datapath, device.egress, &rst(pod, client), &rst(vip, client));
    });
}

#[test]
fn a_reset_outside_the_window_ends_nothing() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        let far = |packet: Build| {
            packet.flags(|header| header.sequence_number = header.sequence_number.wrapping_add(FAR))
        };
        establish(datapath, device, world);
        translated(
            datapath,
            device.ingress,
            &far(rst(client, vip)),
            &far(rst(client, pod)),
        );
        translated(
            datapath,
            device.egress,
            &far(rst(pod, client)),
            &far(rst(vip, client)),
        );
        datapath.age(MINUTES);
        is_open(datapath, device, world);
        // No other connection gets the port.
        datapath.service(50, &keys(world.vip2), &[at(pod)]);
        let other = see(&datapath.pass(device.ingress, &syn(client, world.vip2).bytes()));
        assert_ne!(other.source.port(), client.port());
    });
}

#[test]
fn later_segments_undo_a_reset_inside_the_window() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        establish(datapath, device, world);
        translated(datapath, device.ingress, &rst(client, vip), &rst(client, pod));
        // The backend ignores the RST.
        is_open(datapath, device, world);
        datapath.age(MINUTES);
        datapath.service(50, &keys(world.vip2), &[at(pod)]);
        let other = see(&datapath.pass(device.ingress, &syn(client, world.vip2).bytes()));
        assert_ne!(other.source.port(), client.port());
        // Even if nothing follows for a while, later packets still belong to the connection.
        translated(datapath, device.ingress, &rst(client, vip), &rst(client, pod));
        datapath.age(MINUTES);
        is_open(datapath, device, world);
    });
}

#[test]
fn late_replies_are_translated() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        let fin = |from, to| ack(from, to).flags(|header| header.fin = true);
        establish(datapath, device, world);
        translated(datapath, device.ingress, &fin(client, vip), &fin(client, pod));
        translated(datapath, device.egress, &fin(pod, client), &fin(vip, client));
        datapath.age(1 << 20);
        translated(datapath, device.egress, &fin(pod, client), &fin(vip, client));
        // The client's RST is lost behind this node, so the backend keeps repeating its answer.
        datapath.forget();
        let answer = (syn_ack(pod, client), syn_ack(vip, client));
        translated(datapath, device.ingress, &syn(client, vip), &syn(client, pod));
        translated(datapath, device.egress, &answer.0, &answer.1);
        translated(datapath, device.ingress, &rst(client, vip), &rst(client, pod));
        datapath.age(1 << 20);
        translated(datapath, device.egress, &answer.0, &answer.1);
    });
}

/// Runs a check for both programs that see clients outside, with a Service whose only backend is on
/// another node.
fn from_outside_to_another_node(mut check: impl FnMut(&mut Datapath, &TestNetwork, &World, &'static str)) {
    let Some(mut datapath) = datapath_with(|settings| settings.source_ports = only_ports(61_000, 1)) else {
        return;
    };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve_from(&mut datapath, Place::Back);
    for world in worlds() {
        for program in ["lb_xdp", "lb_tc_from_network"] {
            datapath.forget();
            check(&mut datapath, &network, &world, program);
        }
    }
}

/// Forwards a client's packet and returns the source that the backend sees.
fn asked(datapath: &mut Datapath, network: &TestNetwork, program: &str, packet: &Build) -> SocketAddr {
    datapath.device = network.front;
    sent_on(datapath, program, packet)
}

/// Forwards a backend's packet and returns the source that the client sees.
fn replied(datapath: &mut Datapath, network: &TestNetwork, program: &str, packet: &Build) -> SocketAddr {
    datapath.device = network.back;
    sent_on(datapath, program, packet)
}

fn sent_on(datapath: &mut Datapath, program: &str, packet: &Build) -> SocketAddr {
    let (verdict, bytes) = datapath.verdict(program, &packet.bytes());
    assert_eq!(verdict, Verdict::Redirect, "{program}: {bytes:02x?}");
    see(&bytes).source
}

#[test]
fn segments_outside_the_window_do_not_change_forwarded_connections() {
    from_outside_to_another_node(|datapath, network, world, program| {
        let (client, vip, pod) = (world.client, world.vip, world.backend_at(Place::Back));
        let far = |packet: Build| {
            packet.flags(|header| header.sequence_number = header.sequence_number.wrapping_add(FAR))
        };
        let blind = ack(client, vip).flags(|header| header.acknowledgment_number = FAR);
        let source = asked(datapath, network, program, &syn(client, vip));
        replied(datapath, network, program, &syn_ack(pod, source));
        asked(datapath, network, program, &blind);
        // The connection is not established, so another client gets the only port after its
        // timeout.
        datapath.age(MINUTES);
        let other = world.client_at(client.port() + 1);
        assert_eq!(asked(datapath, network, program, &syn(other, vip)), source);

        datapath.forget();
        asked(datapath, network, program, &syn(client, vip));
        replied(datapath, network, program, &syn_ack(pod, source));
        asked(datapath, network, program, &ack(client, vip));
        asked(datapath, network, program, &far(rst(client, vip)));
        replied(datapath, network, program, &far(rst(pod, source)));
        datapath.age(MINUTES);
        assert_eq!(replied(datapath, network, program, &ack(pod, source)), vip);
        assert_eq!(asked(datapath, network, program, &ack(client, vip)), source);
        // No other connection gets the port.
        datapath.device = network.front;
        datapath.dropped(program, &syn(other, vip).bytes());
        // Late packets after the end are translated.
        asked(datapath, network, program, &rst(client, vip));
        datapath.age(1 << 20);
        assert_eq!(replied(datapath, network, program, &ack(pod, source)), vip);
    });
}

#[test]
fn an_allocated_port_is_in_use_while_its_client_sends() {
    from_outside_to_another_node(|datapath, network, world, program| {
        let (client, vip, pod) = (world.client, world.vip, world.backend_at(Place::Back));
        let other = world.client_at(client.port() + 1);
        let source = asked(datapath, network, program, &udp(client, vip));
        datapath.age_if(MINUTES, |source, _| source != client);
        let before = datapath.reason(Reason::NoSourcePort);
        datapath.device = network.front;
        datapath.dropped(program, &udp(other, vip).bytes());
        assert_eq!(datapath.reason(Reason::NoSourcePort), before + 1);
        assert_eq!(replied(datapath, network, program, &udp(pod, source)), vip);
        // After its timeout, the flow has ended.
        datapath.age(MINUTES);
        assert_eq!(asked(datapath, network, program, &udp(other, vip)), source);
    });
}

#[test]
fn an_idle_connection_continues_with_its_backend() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        for device in DEVICES {
            datapath.forget();
            datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
            let base = service * 100;
            datapath.set_slots(base, &[base, base]);
            establish(&mut datapath, device, &world);
            datapath.set_slots(base, &[base + 1, base + 1]);
            datapath.age(1 << 20);
            is_open(&mut datapath, device, &world);
        }
    }
}

#[test]
fn segments_of_unknown_connections_reach_no_random_pod() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
        let segment = ack(world.client, world.vip);
        // From inside, the choice would be random, so the segment is rejected.
        let answer = datapath.bounce(POD_DEVICE.ingress, &segment.bytes());
        assert!(see(&answer).tcp().rst);
        datapath.dropped(POD_DEVICE.ingress, &rst(world.client, world.vip).bytes());
        assert!(datapath.reason(Reason::UnknownConnection) >= 2);
        for device in &DEVICES[..2] {
            datapath.forget();
            // From outside, the hash selects the Pod that a SYN would get.
            let pod = see(&datapath.pass(device.ingress, &syn(world.client, world.vip).bytes())).destination;
            datapath.forget();
            datapath.dropped(device.ingress, &rst(world.client, world.vip).bytes());
            assert_eq!(datapath.flow_count(), 0);
            let request = see(&datapath.pass(device.ingress, &segment.bytes()));
            assert_eq!(request.destination, pod);
            // A segment with a distant acknowledgement number belongs to another connection.
            let far = ack(pod, world.client).flags(|header| header.acknowledgment_number = FAR);
            datapath.untouched(device.egress, &far.bytes());
            datapath.forget();
            datapath.pass(device.ingress, &segment.bytes());
            translated(
                &mut datapath,
                device.egress,
                &ack(pod, world.client),
                &ack(world.vip, world.client),
            );
        }
        // Without a Maglev table, segments from outside are rejected too.
        for key in keys(world.vip) {
            datapath.change_frontend(key, |row| row.maglev = Region::default());
        }
        for device in &DEVICES[..2] {
            datapath.forget();
            let answer = datapath.bounce(device.ingress, &segment.bytes());
            assert!(see(&answer).tcp().rst);
        }
    }
}

#[test]
fn replies_to_the_node_are_not_requests() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        for key in keys(world.vip) {
            datapath.change_frontend(key, |row| row.flags |= frontend_flags::NODE_ADDRESS);
        }
        for device in DEVICES {
            datapath.forget();
            for segment in [syn_ack, ack, rst, tcp] {
                let segment = segment(world.client, world.vip);
                datapath.untouched(device.ingress, &segment.bytes());
            }
            establish(&mut datapath, device, &world);
        }
    }
}

#[test]
fn packets_from_outside_do_not_use_a_pods_flow() {
    let Some(mut datapath) = datapath() else { return };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve_from(&mut datapath, Place::Back);
    for world in worlds() {
        let (client, backend) = (world.neighbour(), world.backend_at(Place::Back));
        for protocol in PROTOCOLS {
            datapath.forget();
            let request = first(protocol, client, world.vip).bytes();
            datapath.device = network.front;
            // First the forged packets: their flow masquerades and leaves this node.
            for program in ["lb_xdp", "lb_tc_from_network"] {
                let (verdict, bytes) = datapath.verdict(program, &request);
                assert_eq!(verdict, Verdict::Redirect);
                assert_eq!(see(&bytes).source.ip(), world.back_address());
            }
            translated(
                &mut datapath,
                POD_DEVICE.ingress,
                &first(protocol, client, world.vip),
                &first(protocol, client, backend),
            );
            translated(
                &mut datapath,
                POD_DEVICE.egress,
                &answer(protocol, backend, client),
                &answer(protocol, world.vip, client),
            );
        }
    }
}

#[test]
fn a_port_is_in_use_while_its_client_sends_without_answers() {
    everywhere(|datapath, device, world| {
        let (client, vip, pod) = (world.client, world.vip, world.pod);
        translated(datapath, device.ingress, &udp(client, vip), &udp(client, pod));
        // Only requests are seen, as from a statsd client.
        datapath.age_if(MINUTES, |source, _| source.port() != client.port());
        datapath.service(50, &keys(world.vip2), &[at(pod)]);
        let other = see(&datapath.pass(device.ingress, &udp(client, world.vip2).bytes()));
        assert_ne!(other.source.port(), client.port());
        translated(datapath, device.egress, &udp(pod, client), &udp(vip, client));
    });
}

#[test]
fn slots_that_belong_to_another_service_now_are_not_chosen() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        datapath.service(service + 10, &keys(world.vip2), &[at(world.pod2)]);
        // This is what a program sees that read the frontend row before the slots were reused.
        datapath.set_slots(service * 100, &[(service + 10) * 100; 1]);
        for device in DEVICES {
            for protocol in PROTOCOLS {
                datapath.dropped(device.ingress, &first(protocol, world.client, world.vip).bytes());
            }
        }
        datapath.set_state((service + 10) * 100, BackendState::Active);
    }
    assert_eq!(datapath.reasons(), [(Reason::StaleSlots, 12)]);
}

/// The same for affinity.
#[test]
fn clients_leave_a_backend_that_belongs_to_another_service_now() {
    let Some(mut datapath) = datapath() else { return };
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod), at(world.pod2)]);
        for key in keys(world.vip) {
            datapath.change_frontend(key, |row| row.affinity_seconds = 1000);
        }
        let (first_row, second_row) = (service * 100, service * 100 + 1);
        for device in DEVICES {
            datapath.forget();
            datapath.change_backend(first_row, |row| row.service = service);
            datapath.set_slots(first_row, &[first_row, first_row]);
            let port = |port| syn(world.client_at(port), world.vip).bytes();
            let bytes = datapath.pass(device.ingress, &port(1000));
            assert_eq!(see(&bytes).destination, world.pod);
            datapath.set_slots(first_row, &[second_row, second_row]);
            let bytes = datapath.pass(device.ingress, &port(1001));
            assert_eq!(see(&bytes).destination, world.pod, "the client keeps its backend");
            datapath.change_backend(first_row, |row| row.service = service + 10);
            let bytes = datapath.pass(device.ingress, &port(1002));
            assert_eq!(see(&bytes).destination, world.pod2);
        }
    }
}

#[test]
fn ports_of_forged_syns_are_free_after_a_minute() {
    let Some(mut datapath) = datapath_with(|settings| settings.source_ports = only_ports(61_000, 4)) else {
        return;
    };
    let Some(network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve_from(&mut datapath, Place::Back);
    for world in worlds() {
        let backend = world.backend_at(Place::Back);
        for program in ["lb_xdp", "lb_tc_from_network"] {
            datapath.forget();
            let mut sources: Vec<SocketAddr> = Vec::new();
            for port in 1000..1200 {
                datapath.device = network.front;
                let (verdict, bytes) =
                    datapath.verdict(program, &syn(world.client_at(port), world.vip).bytes());
                if verdict == Verdict::Redirect {
                    let source = see(&bytes).source;
                    datapath.device = network.back;
                    datapath.verdict(program, &syn_ack(backend, source).bytes());
                    sources.push(source);
                }
            }
            assert_eq!(sources.len(), 4, "{sources:?}");
            datapath.age(MINUTES);
            datapath.device = network.front;
            let genuine = world.client_at(2000);
            let (verdict, _) = datapath.verdict(program, &syn(genuine, world.vip).bytes());
            assert_eq!(verdict, Verdict::Redirect);
        }
    }
}
