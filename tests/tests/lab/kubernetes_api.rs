//! A real agent with the Kubernetes API as its source: a stand-in API server runs in the node's
//! network namespace.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::api_server::ApiServer;
use lb_tests::lab::{AgentOptions, Lab, Machine, SocketLb, require_privileges, wait_for};
use serde_json::{Value, json};

const VIP: &str = "10.96.0.10";
const TIMEOUT: Duration = Duration::from_secs(30);

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": VIP, "clusterIPs": [VIP], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    })
}

fn slice(pods: &[&Machine]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod.addresses().ipv4], "nodeName": "node-1",
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-abc", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

fn node(lab_node: &lb_tests::lab::Node) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": lab_node.host().addresses().ipv4}]},
    })
}

#[test]
fn services_follow_the_kubernetes_api() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("kube").unwrap();
    let lab_node = lab.node("node-1").unwrap();
    let client = lab_node.pod("client").unwrap();
    let pods = [lab_node.pod("web-1").unwrap(), lab_node.pod("web-2").unwrap()];
    let _servers: Vec<_> = pods
        .iter()
        .map(|pod| pod.serve().http(8080).start().unwrap())
        .collect();

    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let start = || runtime.block_on(ApiServer::start("secret"));
    let mut server = lab_node.host().namespace().run(start).unwrap();
    let kubeconfig = server.write_kubeconfig(directory.path(), "secret").unwrap();
    server.apply(&node(&lab_node)).unwrap();
    server.apply(&service()).unwrap();
    server.apply(&slice(&[&pods[0]])).unwrap();

    let options = AgentOptions {
        kubeconfig: Some(kubeconfig),
        socket_lb: Some(SocketLb::Off),
        ..AgentOptions::default()
    };
    let agent = lab_node.start_agent(&options).unwrap();
    let vip: IpAddr = VIP.parse().unwrap();
    let answers = || client.http(vip, 80).count(20).run().unwrap();
    let report = answers();
    assert_eq!(report.answers.get("web-1"), Some(&20), "{report:?}");

    // A change, seen by the watch.
    server.apply(&slice(&[&pods[1]])).unwrap();
    wait_for("the other Pod to answer", TIMEOUT, || {
        let report = answers();
        (report.answers.get("web-2") == Some(&20)).then_some(())
    })
    .unwrap();

    // While the API server is down, traffic continues. Changes arrive when it is back.
    runtime.block_on(server.stop());
    assert_eq!(answers().answers.get("web-2"), Some(&20));
    server.apply(&slice(&[&pods[0], &pods[1]])).unwrap();
    server.expire_versions();
    let restart = || runtime.block_on(server.restart());
    lab_node.host().namespace().run(restart).unwrap();
    wait_for("both Pods to answer", TIMEOUT, || {
        (answers().answers.len() == 2).then_some(())
    })
    .unwrap();

    // The agent has all objects that it needs, and no others.
    let services: Value =
        serde_json::from_str(&lab_node.agent_command("services", &["-o", "json"]).unwrap()).unwrap();
    assert_eq!(services[0]["name"], "web");
    assert_eq!(services[0]["backends"].as_array().unwrap().len(), 2, "{services}");
    drop(agent);
}
