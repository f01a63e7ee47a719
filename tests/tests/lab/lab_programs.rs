//! Programs that run in the machines of a lab, and the manifests that agents read there.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod as PodObject, Service};
use lb_tests::lab::{AgentOptions, Lab, ServiceManifest, ServicePort, SocketLb, Xdp, require_privileges};

/// The port on which a Pod listens.
const HTTP: u16 = 8080;

#[test]
fn a_program_outlives_the_thread_that_started_it() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("thread").unwrap();
    let pod = lab.node("node-1").unwrap().pod("web-1").unwrap();
    let mut server = std::thread::scope(|scope| {
        scope
            .spawn(|| pod.serve().http(HTTP).start().unwrap())
            .join()
            .unwrap()
    });
    assert_eq!(
        pod.http(pod.addresses().ipv4, HTTP)
            .count(2)
            .run()
            .unwrap()
            .answered(),
        2
    );
    assert!(!server.has_ended());
}

#[test]
fn an_agent_gets_its_directories_and_is_awaited() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("agent").unwrap();
    let node = lab.node("node-1").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("agent");
    fs::write(
        &program,
        "#!/bin/sh\necho \"$@\"\necho 'INFO in sync' >&2\nexec sleep 60\n",
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let options = AgentOptions {
        program: Some(program.clone()),
        socket_lb: Some(SocketLb::Host),
        xdp: Some(Xdp::Off),
        ..AgentOptions::default()
    };
    let agent = node.start_agent(&options).unwrap();
    let expected = format!(
        "run --node-name node-1 --pin-path {} --state-directory {} --cgroup {} --socket-lb=host --xdp=off --manifests {}\n",
        node.pin_path().display(),
        node.state_directory().display(),
        node.cgroup().display(),
        lab.manifests().display(),
    );
    assert!(agent.log().starts_with(&expected), "{}", agent.log());
    let agent = agent.restart().unwrap();
    assert!(!agent.stop().unwrap().success());

    fs::write(&program, "#!/bin/sh\necho 'ERROR no luck' >&2\n").unwrap();
    let error = node.start_agent(&options).unwrap_err().to_string();
    assert!(error.contains("no luck"), "{error}");
}

#[test]
fn manifests_parse_as_kubernetes_objects() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("manifests").unwrap();
    let node = lab.node("node-1").unwrap();
    let pod = node.pod("web-1").unwrap();
    lab.apply_nodes_and_pods().unwrap();
    let read = |file: &str| fs::read_to_string(lab.manifests().join(file)).unwrap();

    let object: NodeObject = serde_norway::from_str(&read("node-node-1.yaml")).unwrap();
    assert_eq!(object.metadata.name.unwrap(), "node-1");
    assert_eq!(
        object.spec.unwrap().pod_cidrs.unwrap(),
        ["10.244.1.0/24", "fd00:244:1::/64"]
    );
    assert_eq!(object.status.unwrap().addresses.unwrap()[1].address, "fd00:30::b");

    let object: PodObject = serde_norway::from_str(&read("pod-web-1.yaml")).unwrap();
    assert_eq!(object.metadata.labels.unwrap()["app"], "web");
    assert_eq!(
        object.status.unwrap().pod_ips.unwrap()[0].ip,
        pod.addresses().ipv4.to_string()
    );

    let addresses = ["10.96.0.10", "fd00:96::10"].map(|address| address.parse().unwrap());
    let port = ServicePort {
        name: "http",
        protocol: "TCP",
        port: 80,
        target_port: HTTP,
        node_port: None,
    };
    lab.apply("web.yaml", ServiceManifest::new("web", &addresses, &[port]))
        .unwrap();
    let object: Service = serde_norway::from_str(&read("web.yaml")).unwrap();
    let spec = object.spec.unwrap();
    assert_eq!(spec.cluster_ips.unwrap(), ["10.96.0.10", "fd00:96::10"]);
    assert_eq!(spec.ports.unwrap()[0].port, 80);
    lab.remove("web.yaml").unwrap();
    assert!(lab.remove("web.yaml").is_err());
}
