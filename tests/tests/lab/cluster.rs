//! The starting point of Service tests: agents on all nodes, and manifests of all kinds.

use std::collections::BTreeSet;

use lb_agent::maps::BackendState;
use lb_tests::lab::cluster::{
    HTTP, SERVICE_FILE, SLICES_FILE, Server, load_balancer_addresses, service, vips,
};
use lb_tests::lab::{Cluster, SocketLb, require_privileges};

#[test]
fn agents_on_all_nodes_reach_all_pods() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("all-nodes", &[0, 1, 2]).unwrap();
    let servers: Vec<&Server> = cluster.servers.iter().collect();
    let manifest = service().ingress(&load_balancer_addresses(), None);
    cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
    let _agents = [0, 1, 2].map(|node| {
        let agent = cluster.start_agent_on(node, SocketLb::Host, &[]).unwrap();
        cluster.wait_for_active_on(node, &servers).unwrap();
        let addresses = load_balancer_addresses();
        cluster
            .wait_for_frontends_on(node, &addresses, HTTP.port)
            .unwrap();
        agent
    });
    for node in &cluster.nodes {
        for vip in vips() {
            let report = node.host().http(vip, HTTP.port).count(40).run().unwrap();
            assert_eq!((report.answered(), report.answers.len()), (40, 3), "{report:?}");
        }
    }
    // Each node reaches at least its own Pod.
    cluster.route_load_balancer(&[0, 1, 2]).unwrap();
    for address in load_balancer_addresses() {
        let report = cluster.outside.http(address, HTTP.port).count(60).run().unwrap();
        assert_eq!((report.answered(), report.answers.len()), (60, 3), "{report:?}");
    }
}

#[test]
fn endpoint_slices_override_pod_objects() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("slices", &[0, 1, 2]).unwrap();
    let [ready, draining, absent] = &cluster.servers[..] else {
        panic!("three servers");
    };
    let _agent = cluster.start_agent(SocketLb::Host, &[]).unwrap();
    cluster.wait_for_active(&[ready, draining, absent]).unwrap();
    let endpoints = [ready.endpoint(), draining.draining_endpoint().terminating(true)];
    cluster.apply_slices(endpoints).unwrap();
    cluster
        .wait_for_states(&[(ready, BackendState::Active), (draining, BackendState::Draining)])
        .unwrap();
    cluster.lab.remove(SLICES_FILE).unwrap();
    cluster.wait_for_active(&[ready, draining, absent]).unwrap();

    let terminating = draining.manifest().ready(false).terminating();
    cluster.lab.apply(&draining.manifest_file(), terminating).unwrap();
    cluster
        .wait_for_states(&[
            (ready, BackendState::Active),
            (draining, BackendState::Draining),
            (absent, BackendState::Active),
        ])
        .unwrap();
}

#[test]
fn clients_reach_only_endpoints_hinted_for_their_zone() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("hints", &[0, 1, 2]).unwrap();
    let zones = ["a", "a", "b"];
    for (node, zone) in cluster.nodes.iter().zip(zones) {
        let manifest = node.manifest().label("topology.kubernetes.io/zone", zone);
        let file = format!("node-{}.yaml", node.name());
        cluster.lab.apply(&file, manifest).unwrap();
    }
    let endpoints = cluster.servers.iter().zip(zones);
    let endpoints = endpoints.map(|(server, zone)| server.endpoint().for_zones(&[zone]));
    cluster.apply_slices(endpoints).unwrap();
    let _agent = cluster.start_agent(SocketLb::Host, &[]).unwrap();
    for vip in vips() {
        let report = cluster.client.http(vip, HTTP.port).count(40).run().unwrap();
        let names: BTreeSet<&str> = report.answers.keys().map(String::as_str).collect();
        assert_eq!(names, ["web-1", "web-2"].into(), "{report:?}");
    }
}
