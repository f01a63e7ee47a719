//! Pods and Services change while clients send requests.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;
use std::time::Duration;

use lb_agent::maps::BackendState;
use lb_tests::lab::cluster::{
    ECHO, HTTP, PORTS, SERVICE, SERVICE_FILE, Server, UDP, UNKNOWN_PORT, options, service, vips,
};
use lb_tests::lab::{
    Cluster, ServiceManifest, ServicePort, SocketLb, Talk, TcpState, require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Opens one connection to each of the Pods.
fn connect_to_all(cluster: &Cluster, vip: IpAddr) -> Vec<Talk> {
    let connect = |server: &Server| cluster.client.connect_to(&server.pod, vip, ECHO.port).unwrap();
    cluster.servers.iter().map(connect).collect()
}

#[test]
fn only_connections_to_a_removed_pod_are_reset() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("removed", &[0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let mut talks = vips().map(|vip| connect_to_all(&cluster, vip));

    let [gone, stays] = &cluster.servers[..] else {
        panic!("two servers");
    };
    cluster.remove_manifest(gone).unwrap();
    cluster.wait_for_active(&[stays]).unwrap();
    for talks in &mut talks {
        talks[0].expect_reset().unwrap();
        assert_eq!(talks[1].server().unwrap(), stays.pod.name());
    }
    // The same addresses are new backends now: an old connection does not belong to them.
    cluster.set_ready(gone, true).unwrap();
    cluster.wait_for_active(&[gone, stays]).unwrap();
    for talks in &mut talks {
        assert_eq!(talks[1].server().unwrap(), stays.pod.name());
    }

    cluster.lab.remove(SERVICE_FILE).unwrap();
    cluster.wait_for_active(&[]).unwrap();
    for talks in &mut talks {
        talks[1].expect_reset().unwrap();
    }
}

#[test]
fn an_unready_pod_keeps_its_connections_and_gets_no_new_ones() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let cluster = Cluster::new("not-ready", &[0, 1]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let mut talks = vips().map(|vip| connect_to_all(&cluster, vip));
        let [draining, ready] = &cluster.servers[..] else {
            panic!("two servers");
        };
        cluster.set_ready(draining, false).unwrap();
        cluster
            .wait_for_states(&[(draining, BackendState::Draining), (ready, BackendState::Active)])
            .unwrap();
        for (vip, talks) in vips().into_iter().zip(&mut talks) {
            assert_eq!(talks[0].server().unwrap(), draining.pod.name());
            assert_eq!(talks[1].server().unwrap(), ready.pod.name());
            let report = cluster.client.http(vip, HTTP.port).count(30).run().unwrap();
            assert_eq!(report.answers[ready.pod.name()], 30, "{report:?}");
        }
        cluster.set_ready(draining, true).unwrap();
        cluster.wait_for_active(&[draining, ready]).unwrap();
        for talks in &mut talks {
            assert_eq!(talks[0].server().unwrap(), draining.pod.name());
        }
    }
}

#[test]
fn datagrams_reach_another_pod_when_theirs_is_removed() {
    if !require_privileges() {
        return;
    }
    for (socket_lb, connected) in [
        (SocketLb::Off, false),
        (SocketLb::Off, true),
        (SocketLb::All, false),
        (SocketLb::All, true),
    ] {
        for vip in vips() {
            let cluster = Cluster::new("removed-udp", &[0, 1]).unwrap();
            let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
            let client = cluster
                .client
                .udp(vip, UDP.port)
                .count(100_000)
                .interval(Duration::from_millis(3));
            let client = if connected { client.connected() } else { client };
            let client = client.start().unwrap();
            let is_used = |server: &&Server| server.pod.received_datagrams().unwrap() > 0;
            let gone = wait_for("the first datagram", PATIENCE, || {
                cluster.servers.iter().find(is_used)
            })
            .unwrap();
            let stays = cluster
                .servers
                .iter()
                .find(|server| server.pod.name() != gone.pod.name())
                .unwrap();
            cluster.remove_manifest(gone).unwrap();
            // The client sends its second datagram when it has the answer to the first.
            wait_for("datagrams elsewhere", PATIENCE, || {
                (stays.pod.received_datagrams().unwrap() > 1).then_some(())
            })
            .unwrap();
            let before = gone.pod.received_datagrams().unwrap();
            let report = client.stop().unwrap();
            assert!(report.errors.is_empty(), "{socket_lb} {vip}: {report:?}");
            assert_eq!(report.answers.len(), 2, "{socket_lb} {vip}: {report:?}");
            assert_eq!(gone.pod.received_datagrams().unwrap(), before);
        }
    }
}

#[test]
fn without_pods_connections_are_reset_and_datagrams_refused() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("last", &[0]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let mut talks = vips().map(|vip| cluster.client.connect(vip, ECHO.port).unwrap().0);
    let udp = |vip| cluster.client.udp(vip, UDP.port).connected().source_port(40_000);
    for vip in vips() {
        assert_eq!(udp(vip).run().unwrap().answered(), 1);
    }
    cluster.remove_manifest(&cluster.servers[0]).unwrap();
    cluster.wait_for_active(&[]).unwrap();
    for (vip, talk) in vips().into_iter().zip(&mut talks) {
        talk.expect_reset().unwrap();
        let report = udp(vip).run().unwrap();
        assert!(
            report.errors.contains_key("receive: ConnectionRefused"),
            "{report:?}"
        );
    }
    cluster.set_ready(&cluster.servers[0], true).unwrap();
    cluster.wait_for_active(&[&cluster.servers[0]]).unwrap();
    for vip in vips() {
        assert_eq!(udp(vip).run().unwrap().answered(), 1);
        cluster.client.connect(vip, ECHO.port).unwrap();
    }
}

/// Pods are replaced one by one, as by a Deployment, and no request fails.
#[test]
fn no_request_fails_while_pods_are_replaced() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let mut cluster = Cluster::new("replaced", &[0, 1]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let clients = vips().map(|vip| {
            cluster
                .client
                .http(vip, HTTP.port)
                .count(1_000_000)
                .concurrency(2)
                .interval(Duration::from_millis(2))
                .start()
                .unwrap()
        });
        for round in 0..4 {
            cluster.add_server(round % 2).unwrap();
            cluster
                .wait_for_active(&cluster.servers.iter().collect::<Vec<_>>())
                .unwrap();
            let old = cluster.servers.remove(0);
            cluster.set_ready(&old, false).unwrap();
            let states: Vec<_> = cluster
                .servers
                .iter()
                .map(|server| (server, BackendState::Active))
                .chain([(&old, BackendState::Draining)])
                .collect();
            cluster.wait_for_states(&states).unwrap();
            // Connections that reached the old Pod just before must still be answered.
            wait_for("no connections to the old Pod", PATIENCE, || {
                let states = [TcpState::Established, TcpState::SynReceived];
                (old.pod.tcp_sockets(&states).unwrap() == 0).then_some(())
            })
            .unwrap();
            let manifest = old.manifest_file();
            old.stop().unwrap();
            cluster.lab.remove(&manifest).unwrap();
            cluster
                .wait_for_active(&cluster.servers.iter().collect::<Vec<_>>())
                .unwrap();
        }
        for client in clients {
            let report = client.stop().unwrap();
            assert!(report.errors.is_empty(), "{socket_lb}: {report:?}");
            assert!(report.answers.len() >= 4, "{socket_lb}: {report:?}");
        }
    }
}

#[test]
fn a_broken_manifest_changes_nothing() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("broken", &[0]).unwrap();
    let mut agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let assert_works = |port: u16| {
        for vip in vips() {
            let report = cluster.client.http(vip, port).count(5).run().unwrap();
            assert_eq!(report.answered(), 5, "{report:?}");
        }
    };
    let mut ports = PORTS.to_vec();
    ports.push(ServicePort {
        name: "new",
        port: UNKNOWN_PORT,
        ..HTTP.without_node_port()
    });
    let fixed = ServiceManifest::new(SERVICE, &vips(), &ports).to_string();
    let line = fixed.lines().position(|line| line.contains("selector:")).unwrap();
    let broken = fixed.replace("selector:", "selector: ]");
    cluster.lab.apply(SERVICE_FILE, &broken).unwrap();
    agent
        .wait_until_logged(&format!("{SERVICE_FILE}:{}:", line + 1))
        .unwrap();
    assert_works(HTTP.port);

    cluster.lab.apply(SERVICE_FILE, &fixed).unwrap();
    agent.wait_until_logged("all manifests are valid again").unwrap();
    cluster.wait_for_frontend(UNKNOWN_PORT).unwrap();
    assert_works(UNKNOWN_PORT);
    assert_works(HTTP.port);
}

#[test]
fn a_bad_service_is_reported_and_others_work() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("bad-service", &[0]).unwrap();
    let bad = ServicePort { port: 0, ..HTTP };
    let address = [IpAddr::from([10, 96, 0, 66])];
    let bad = ServiceManifest::new("bad", &address, &[bad]);
    let good = service();
    cluster
        .lab
        .apply(SERVICE_FILE, format!("{bad}---\n{good}"))
        .unwrap();
    let options = options(SocketLb::Off, &[]);
    let mut agent = cluster.nodes[0].start_agent_unready(&options).unwrap();
    agent.wait_until_logged("default/bad").unwrap();
    agent.wait_until_logged("in sync").unwrap();
    for vip in vips() {
        let report = cluster.client.http(vip, HTTP.port).count(5).run().unwrap();
        assert_eq!(report.answered(), 5, "{report:?}");
    }
}
