//! Services as in most Kubernetes tutorials: their manifests contain neither an address nor a
//! NodePort.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::lab::cluster::{HTTP, SERVICE_FILE};
use lb_tests::lab::{Cluster, Node, Outcome, SocketLb, require_privileges, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);
/// Not the default, so that the test shows that the option is used.
const RANGE: &str = "--service-cidr=10.98.0.0/24,fd00:98::/112";

/// A Service with this name and type and the Pods of the lab's usual Service.
fn manifest(name: &str, fields: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  {fields}
  selector: {{app: web}}
  ports: [{{name: http, port: {}, targetPort: {}}}]
",
        HTTP.port, HTTP.target_port
    )
}

/// The addresses and ports of a Service in the output of `lb-agent services`.
fn shown(node: &Node, name: &str) -> BTreeSet<SocketAddr> {
    let text = node.agent_command("services", &["-o", "json"]).unwrap();
    let services: Vec<Value> = serde_json::from_str(&text).unwrap();
    let services = services.iter().filter(|service| service["name"] == name);
    services
        .flat_map(|service| service["frontends"].as_array().unwrap())
        .map(|frontend| frontend["address"].as_str().unwrap().parse().unwrap())
        .collect()
}

/// The addresses and ports of the cluster IPs.
fn cluster_ips(shown: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
    let ips = shown.iter().filter(|address| address.port() == HTTP.port);
    ips.copied().collect()
}

/// The NodePort of the Service.
fn node_port(shown: &BTreeSet<SocketAddr>) -> u16 {
    let ports: BTreeSet<u16> = shown.iter().map(SocketAddr::port).collect();
    let [_, port] = ports.into_iter().collect::<Vec<_>>()[..] else {
        panic!("{shown:?}");
    };
    port
}

/// Asserts that a Pod and the host reach the Service at its cluster IPs, and a client outside at
/// its NodePort.
#[track_caller]
fn assert_reachable(cluster: &Cluster, shown: &BTreeSet<SocketAddr>) {
    let pods = Outcome::pods(["web-1", "web-2"]);
    for address in cluster_ips(shown) {
        for from in [&cluster.client, cluster.nodes[0].host()] {
            from.expect_tcp(address, &pods).unwrap();
        }
    }
    for address in cluster.nodes[0].host().addresses().both() {
        let to = SocketAddr::new(address, node_port(shown));
        cluster.outside.expect_tcp(to, &pods).unwrap();
    }
}

fn is_ipv4_in(address: &SocketAddr, network: [u8; 3]) -> bool {
    matches!(address.ip(), IpAddr::V4(ip) if ip.octets()[..3] == network)
}

#[test]
fn assigned_addresses_work_on_all_nodes_and_after_a_restart() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("given", &[0, 1]).unwrap();
    let both = manifest("given", "type: NodePort\n  ipFamilyPolicy: PreferDualStack");
    cluster.lab.apply(SERVICE_FILE, both).unwrap();
    let agent = cluster.start_agent(SocketLb::Host, &[RANGE]).unwrap();
    let other = cluster.start_agent_on(1, SocketLb::Host, &[RANGE]).unwrap();
    let [first, second, _] = &cluster.nodes;

    let before = shown(first, "given");
    let ips = cluster_ips(&before);
    assert!(ips.len() == 2 && is_ipv4_in(&ips[0], [10, 98, 0]), "{before:?}");
    assert_reachable(&cluster, &before);
    let table = first.agent_command("services", &[]).unwrap();
    assert!(table.contains(&ips[0].to_string()), "{table}");
    // Machines with the same files assign the same addresses and ports.
    let there = shown(second, "given");
    assert_eq!(
        (cluster_ips(&there), node_port(&there)),
        (ips, node_port(&before))
    );

    // The agent finds them again without any pinned maps.
    agent.kill();
    first.agent_command("cleanup", &[]).unwrap();
    let agent = cluster.start_agent(SocketLb::Host, &[RANGE]).unwrap();
    assert_eq!(shown(first, "given"), before);
    assert_reachable(&cluster, &before);

    // The remembered address is used, not the one that the hash yields.
    drop((agent, other));
    let file = first.state_directory().join("allocations.json");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace(&cluster_ips(&before)[0].ip().to_string(), "10.98.0.7");
    fs::write(&file, text).unwrap();
    let _agent = cluster.start_agent(SocketLb::Host, &[RANGE]).unwrap();
    let remembered = shown(first, "given");
    assert!(
        remembered.contains(&"10.98.0.7:80".parse().unwrap()),
        "{remembered:?}"
    );
    assert_reachable(&cluster, &remembered);
}

#[test]
fn a_manifest_that_names_an_assigned_address_gets_it() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("given-claimed", &[0, 1]).unwrap();
    let given = manifest("given", "type: NodePort");
    cluster.lab.apply("given.yaml", given).unwrap();
    let mut agent = cluster.start_agent(SocketLb::Host, &[RANGE]).unwrap();
    let node = &cluster.nodes[0];
    let before = shown(node, "given");
    let [address] = cluster_ips(&before)[..] else {
        panic!("{before:?}");
    };
    let claim = manifest("claim", &format!("type: NodePort\n  clusterIP: {}", address.ip()));
    cluster.lab.apply("claim.yaml", claim).unwrap();
    let [claimed, moved] = wait_for("both Services at their addresses", PATIENCE, || {
        let [claimed, moved] = ["claim", "given"].map(|name| shown(node, name));
        let is_moved = claimed.contains(&address) && !moved.contains(&address);
        (is_moved && !moved.is_empty()).then_some([claimed, moved])
    })
    .unwrap();
    assert_eq!(node_port(&moved), node_port(&before));
    agent
        .wait_until_logged("Service default/claim names it in its manifest")
        .unwrap();
    for service in [&claimed, &moved] {
        let pods = Outcome::pods(["web-1", "web-2"]);
        let [address] = cluster_ips(service)[..] else {
            panic!("{service:?}");
        };
        cluster.client.expect_tcp(address, &pods).unwrap();
        for node in node.host().addresses().both() {
            // NodePorts are in the families of the cluster IPs.
            if node.is_ipv4() {
                let to = SocketAddr::new(node, node_port(service));
                cluster.outside.expect_tcp(to, &pods).unwrap();
            }
        }
    }
}

#[test]
fn load_balancers_get_a_health_check_port() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("given-check", &[0, 1]).unwrap();
    let balanced = manifest("given", "type: LoadBalancer\n  externalTrafficPolicy: Local");
    cluster.lab.apply("given.yaml", balanced).unwrap();
    let _agent = cluster.start_agent(SocketLb::Host, &[RANGE]).unwrap();
    let text = fs::read_to_string(cluster.nodes[0].state_directory().join("allocations.json")).unwrap();
    let remembered: Value = serde_json::from_str(&text).unwrap();
    let port = &remembered["state"]["services"]["default/given"]["healthCheckNodePort"];
    let port = u16::try_from(port.as_u64().unwrap()).unwrap();
    let [address, _] = cluster.nodes[0].host().addresses().both();
    wait_for("the health check", PATIENCE, || {
        let page = cluster.outside.get(address, port, "/").ok()?;
        (page.status == 200).then_some(())
    })
    .unwrap();
}
