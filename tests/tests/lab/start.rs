//! In the lab, an agent that cannot install its manifests does not count as started: otherwise a
//! test would fail later for another reason.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;

use lb_tests::lab::cluster::{HTTP, options, service, vips};
use lb_tests::lab::{AgentOptions, Cluster, ServiceManifest, ServicePort, SocketLb, require_privileges};

use crate::sockets::agent_by;

/// A Service with this name in addition to the usual one.
fn other(name: &str, address: IpAddr, port: ServicePort) -> ServiceManifest {
    ServiceManifest::new(name, &[address], &[port.without_node_port()])
}

#[track_caller]
fn assert_does_not_start(cluster: &Cluster, options: &AgentOptions, names: &str) {
    let error = cluster.nodes[0].start_agent(options).unwrap_err();
    let message = format!("{error:#}");
    assert!(
        message.contains("did not install all Services") && message.contains(names),
        "{message}"
    );
    // The next agent creates maps of another size.
    cluster.nodes[0].agent_command("cleanup", &[]).unwrap();
}

#[test]
fn agents_that_cannot_install_all_services_fail_to_start() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("left-out", &[0]).unwrap();
    let [vip, _] = vips();
    let free = IpAddr::from([10, 96, 0, 66]);
    let closed = ServicePort { port: 0, ..HTTP };
    for (wrong, names) in [
        (other("taken", vip, HTTP).to_string(), "10.96.0.10:80/TCP"),
        (other("bad", free, closed).to_string(), "default/bad"),
        (
            service().to_string().replace("selector:", "selector: ]"),
            "wrong.yaml",
        ),
    ] {
        cluster.lab.apply("wrong.yaml", wrong).unwrap();
        assert_does_not_start(&cluster, &options(SocketLb::Off, &[]), names);
        cluster.lab.remove("wrong.yaml").unwrap();
    }
    let few_slots = AgentOptions {
        arguments: vec!["--max-slots=64".to_owned()],
        ..AgentOptions::default()
    };
    assert_does_not_start(&cluster, &few_slots, "default/web");
    cluster.start_agent(SocketLb::Off, &[]).unwrap();
}

/// The view of a container that is not in the host's cgroup namespace: the agent logs the remedy
/// and serves Pods all the same.
#[test]
fn an_agent_in_a_cgroup_namespace_logs_the_remedy() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("cgroup-namespace", &[0]).unwrap();
    let program = agent_by(&cluster, |agent| {
        // The script mounts the cgroup hierarchy again, and removes the option that names the lab's
        // cgroup.
        let inside = format!(
            "for point in $(awk '$3 == \"cgroup2\" {{print $2}}' /proc/self/mounts); do umount -l $point; done; \
             mkdir -p /run/lb-agent-cgroup; mount -t cgroup2 none /run/lb-agent-cgroup; exec {agent} \"$@\""
        );
        format!(
            "for argument; do shift; [ \"$skip\" ] && skip= && continue; \
             [ \"$argument\" = --cgroup ] && skip=1 && continue; set -- \"$@\" \"$argument\"; done\n\
             exec unshare --cgroup --mount sh -c '{}' agent \"$@\"",
            inside.replace('\'', "'\\''")
        )
    });
    let options = AgentOptions {
        program: Some(program.clone()),
        ..options(SocketLb::All, &[])
    };
    let mut agent = cluster.nodes[0].start_agent(&options).unwrap();
    agent
        .wait_until_logged("is a part of the hierarchy only: give the container the host's cgroup namespace")
        .unwrap();
    assert_eq!(
        cluster
            .client
            .http(vips()[0], HTTP.port)
            .run()
            .unwrap()
            .answered(),
        1
    );
}
