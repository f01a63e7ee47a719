//! Network devices in addition to the one with the node's address and default route: every device
//! that carries traffic of frontends gets the programs.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::lab::cluster::{HTTP, SERVICE_FILE, UDP, load_balancer_addresses, options, service};
use lb_tests::lab::{
    AgentOptions, Attached, Capture, Cluster, Layer3Client, Machine, SecondLink, SocketLb, Xdp,
    require_privileges, wait_for,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

/// A device towards a client that is reachable only through a policy routing rule.
const fn by_policy(ethernet: bool) -> SecondLink {
    SecondLink {
        ethernet,
        table: Some(100),
    }
}

/// A load-balanced Service with Pods on two nodes.
fn cluster(title: &str) -> Cluster {
    let cluster = Cluster::new(title, &[0, 1]).unwrap();
    let service = service().ingress(&load_balancer_addresses(), None);
    cluster.lab.apply(SERVICE_FILE, service).unwrap();
    cluster
}

fn pods(cluster: &Cluster) -> BTreeSet<String> {
    let servers = cluster.servers.iter();
    servers.map(|server| server.pod.name().to_owned()).collect()
}

/// All frontends that a client outside can use, each with its HTTP and UDP address.
fn frontends(cluster: &Cluster) -> Vec<[SocketAddr; 2]> {
    let balanced =
        load_balancer_addresses().map(|address| [HTTP, UDP].map(|port| (address, port.port).into()));
    let node = cluster.nodes[0].host().addresses().both();
    let node_ports = node.map(|address| [HTTP, UDP].map(|port| (address, port.node_port.unwrap()).into()));
    balanced.into_iter().chain(node_ports).collect()
}

/// Asserts that the client reaches all Pods through all frontends.
#[track_caller]
fn assert_served(cluster: &Cluster, client: &Machine) {
    for [http, udp] in frontends(cluster) {
        let report = client.http(http.ip(), http.port()).count(40).run().unwrap();
        assert_eq!(report.answered(), 40, "{http}: {report:?}");
        assert_eq!(report.answers.into_keys().collect::<BTreeSet<_>>(), pods(cluster));
        let report = client.udp(udp.ip(), udp.port()).sockets(40).run().unwrap();
        assert_eq!(report.answered(), 40, "{udp}: {report:?}");
        assert_eq!(report.sources, [udp].into());
    }
}

fn wait_for_programs(cluster: &Cluster, client: &Layer3Client, expected: Attached) {
    let namespace = cluster.nodes[0].host().namespace();
    let device = client.machine.far_device();
    wait_for(&format!("{expected:?} at {device}"), PATIENCE, || {
        (namespace.attached(device).ok()? == expected).then_some(())
    })
    .unwrap();
}

/// The devices without programs in `lb-agent status`: names and reasons.
fn without_programs(cluster: &Cluster) -> Vec<(String, String)> {
    let status = cluster.nodes[0].agent_command("status", &["-o", "json"]).unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let rows = status["withoutPrograms"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.map(|row| (text(&row["device"]), text(&row["why"])))
        .collect()
}

/// Runs `lb-agent explain` for a packet of a client to a frontend. Returns whether the packet gets
/// through, and the whole output.
fn explain(cluster: &Cluster, client: &Machine, to: SocketAddr) -> (bool, Value) {
    let [v4, v6] = client.addresses().both();
    let source = if to.is_ipv4() { v4 } else { v6 };
    let (source, to) = (source.to_string(), to.to_string());
    let line = ["tcp", &source, &to, "--from=outside", "-o", "json"];
    let (code, said) = cluster.nodes[0].agent_command_code("explain", &line).unwrap();
    (code == 0, serde_json::from_str(&said).unwrap())
}

#[test]
fn clients_reachable_only_by_policy_routing_are_served() {
    if !require_privileges() {
        return;
    }
    for (ethernet, xdp) in [(true, Xdp::Auto), (true, Xdp::Generic), (false, Xdp::Auto)] {
        let cluster = cluster("by-policy");
        let client = cluster
            .lab
            .second_client(&cluster.nodes[0], "far-1", by_policy(ethernet))
            .unwrap();
        client.add_route(&cluster.nodes[0]).unwrap();
        let _peer = cluster.lab.prepare_for_xdp(&cluster.nodes[0]).unwrap();
        let agent = AgentOptions {
            xdp: Some(xdp),
            ..options(SocketLb::Off, &[])
        };
        let _agent = cluster.nodes[0].start_agent(&agent).unwrap();
        let captures = [&client.machine, cluster.nodes[0].host()]
            .map(|machine| Capture::start(machine.namespace()).unwrap());
        assert_served(&cluster, &client.machine);
        for capture in captures {
            capture.finish().unwrap();
        }
        assert_eq!(without_programs(&cluster), []);
        for [http, _] in frontends(&cluster) {
            let (gets_through, said) = explain(&cluster, &client.machine, http);
            assert!(gets_through, "{said}");
        }
    }
}

#[test]
fn a_device_gets_programs_when_a_route_uses_it() {
    if !require_privileges() {
        return;
    }
    for ethernet in [true, false] {
        let cluster = cluster("new-route");
        let node = &cluster.nodes[0];
        let client = cluster
            .lab
            .second_client(node, "far-1", by_policy(ethernet))
            .unwrap();
        let mut agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
        let device = client.machine.far_device();
        wait_for_programs(&cluster, &client, Attached::NOTHING);
        let nowhere = [(device.to_owned(), "leads-nowhere".to_owned())];
        assert_eq!(without_programs(&cluster), nowhere);
        agent
            .wait_until_logged("no programs at this device: it has no global address")
            .unwrap();
        assert_eq!(agent.log().matches("no programs at this device").count(), 1);
        let check = node.agent_command("check", &[]).unwrap();
        assert!(
            check.contains(&format!("{device}: it has no global address")),
            "{check}"
        );

        client.add_route(node).unwrap();
        wait_for_programs(&cluster, &client, Attached::TCX);
        assert_served(&cluster, &client.machine);
        assert_eq!(without_programs(&cluster), []);

        // The programs stay while a routing protocol temporarily withdraws the route. They are
        // detached when the device goes down.
        client.remove_route(node).unwrap();
        client.add_route(node).unwrap();
        assert_served(&cluster, &client.machine);
        client.remove_route(node).unwrap();
        node.host()
            .namespace()
            .ip(&[format!("link set {device} down")])
            .unwrap();
        wait_for_programs(&cluster, &client, Attached::NOTHING);
        node.host()
            .namespace()
            .ip(&[format!("link set {device} up")])
            .unwrap();
        client.add_route(node).unwrap();
        wait_for_programs(&cluster, &client, Attached::TCX);
        assert_served(&cluster, &client.machine);
    }
}

#[test]
fn a_device_gets_programs_when_it_has_an_address() {
    if !require_privileges() {
        return;
    }
    for address in ["192.168.99.1/24", "2001:db8:99::1/64"] {
        let cluster = cluster("second-address");
        let node = &cluster.nodes[0];
        let client = cluster.lab.second_client(node, "far-1", by_policy(true)).unwrap();
        let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
        wait_for_programs(&cluster, &client, Attached::NOTHING);
        let device = client.machine.far_device();
        let change = |what: &str| {
            node.host()
                .namespace()
                .ip(&[format!("address {what} {address} dev {device}")])
        };
        change("add").unwrap();
        wait_for_programs(&cluster, &client, Attached::TCX);
        change("delete").unwrap();
        wait_for_programs(&cluster, &client, Attached::NOTHING);
    }
}

#[test]
fn explain_names_the_clients_device_without_programs() {
    if !require_privileges() {
        return;
    }
    for ethernet in [true, false] {
        let cluster = cluster("unseen");
        let node = &cluster.nodes[0];
        let client = cluster
            .lab
            .second_client(node, "far-1", by_policy(ethernet))
            .unwrap();
        client.add_route(node).unwrap();
        let device = client.machine.far_device();
        let _agent = cluster
            .start_agent(SocketLb::Off, &["--network-device=eth0"])
            .unwrap();
        assert_eq!(
            without_programs(&cluster),
            [(device.to_owned(), "not-chosen".to_owned())]
        );
        for [http, _] in frontends(&cluster) {
            let report = client.machine.http(http.ip(), http.port()).run().unwrap();
            assert_eq!(report.answered(), 0, "{report:?}");
            let (gets_through, said) = explain(&cluster, &client.machine, http);
            assert!(!gets_through, "{said}");
            assert_eq!(
                (&said["verdict"], &said["withoutPrograms"]),
                (&"unseen".into(), &device.into()),
                "{said}"
            );
            let (gets_through, said) = explain(&cluster, &cluster.outside, http);
            assert!(gets_through, "{said}");
        }
        // Traffic that is not for a Service passes unchanged.
        let other = SocketAddr::new(node.host().addresses().ipv4.into(), 9);
        let (gets_through, said) = explain(&cluster, &client.machine, other);
        assert_eq!(
            (gets_through, &said["verdict"]),
            (true, &"passed".into()),
            "{said}"
        );
    }
}

#[test]
fn explain_names_the_backends_device_without_programs() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("unseen-backend", &[1]).unwrap();
    let _link = cluster
        .lab
        .layer3_link([&cluster.nodes[0], &cluster.nodes[1]])
        .unwrap();
    let _agent = cluster
        .start_agent(SocketLb::Off, &["--network-device=eth0"])
        .unwrap();
    for address in cluster.nodes[0].host().addresses().both() {
        let to = SocketAddr::new(address, HTTP.node_port.unwrap());
        let report = cluster.outside.http(to.ip(), to.port()).run().unwrap();
        assert_eq!(report.answered(), 0, "{report:?}");
        let (gets_through, said) = explain(&cluster, &cluster.outside, to);
        assert!(!gets_through, "{said}");
        assert_eq!(
            (&said["verdict"], &said["device"]),
            (&"unseen".into(), &"tun-node-2".into()),
            "{said}"
        );
        let verdict = said["steps"].as_array().unwrap().last().unwrap();
        let finding = verdict["finding"].as_str().unwrap();
        assert!(
            finding.contains("it leaves through tun-node-2, which carries no programs"),
            "{said}"
        );
    }
}
