//! `lb-agent connections`, `affinity` and `explain` on a node with traffic.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::lab::cluster::{ECHO, HTTP, SERVICE_FILE, UNKNOWN_PORT, service, vips};
use lb_tests::lab::{Cluster, Machine, SocketLb, require_privileges, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a command on the first node with CAP_BPF only. Returns its exit code and its output.
fn run(cluster: &Cluster, line: &str) -> (i32, String) {
    let running = std::env::current_exe().unwrap();
    let program = running.ancestors().nth(2).unwrap().join("lb-agent");
    let node = &cluster.nodes[0];
    let pins = node.pin_path().to_str().unwrap();
    let only = ["--bounding-set=-all,+bpf", program.to_str().unwrap()];
    let line_and_pins = line.split(' ').chain(["--pin-path", pins]);
    let arguments: Vec<&str> = only.into_iter().chain(line_and_pins).collect();
    let mut process = node.host().start("setpriv", &arguments).unwrap();
    let status = process.wait(PATIENCE).unwrap();
    let said = process.output_so_far() + &process.log();
    println!("# lb-agent {line}\n{said}");
    (status.code().unwrap(), said)
}

/// Runs a command that prints JSON. Returns its exit code and the parsed output.
#[track_caller]
pub(super) fn json(cluster: &Cluster, line: &str) -> (i32, Value) {
    let (code, said) = run(cluster, &format!("{line} -o json"));
    (
        code,
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{line}: {error}: {said}")),
    )
}

/// Runs a command that prints a list as JSON, and returns the rows.
#[track_caller]
fn rows(cluster: &Cluster, line: &str) -> Vec<Value> {
    let (code, value) = json(cluster, line);
    assert_eq!(code, 0, "{line}: {value}");
    value.as_array().unwrap().clone()
}

/// `ADDRESS:PORT`
fn at(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// The addresses of a machine, in the order of [`vips`].
fn addresses(machine: &Machine) -> [IpAddr; 2] {
    machine.addresses().both()
}

/// A Service with affinity whose Pods are on the first and second node.
fn cluster(title: &str) -> Cluster {
    let cluster = Cluster::new(title, &[0, 1]).unwrap();
    cluster
        .lab
        .apply(SERVICE_FILE, service().client_ip_affinity(Some(600)))
        .unwrap();
    cluster
}

#[test]
fn commands_list_connections_and_affinities_of_pods() {
    if !require_privileges() {
        return;
    }
    let cluster = cluster("commands");
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    for (family, vip) in vips().into_iter().enumerate() {
        let client = addresses(&cluster.client)[family];
        for server in &cluster.servers {
            let pod = addresses(&server.pod)[family];
            let (code, said) = run(&cluster, &format!("affinity pin default/web:80 {client} {pod}"));
            assert_eq!(code, 0, "{said}");
            let report = cluster.client.http(vip, HTTP.port).count(10).run().unwrap();
            assert_eq!(report.answers[server.pod.name()], 10);

            let listed = rows(&cluster, &format!("affinity list --client {client}"));
            assert_eq!(listed.len(), 1, "{listed:?}");
            assert_eq!(listed[0]["service"], "default/web:http");
            assert_eq!(listed[0]["backend"], at(pod, HTTP.target_port));
            assert_eq!(listed[0]["usable"], true);

            let shown = rows(
                &cluster,
                &format!("connections --service default/web:http --pod {pod}"),
            );
            assert!(shown.len() >= 10, "{shown:?}");
            assert!(
                shown.iter().all(|row| row["frontend"] == at(vip, HTTP.port)),
                "{shown:?}"
            );
        }
        let (code, said) = run(
            &cluster,
            &format!("affinity pin default/web:80 {client} 10.9.9.9"),
        );
        assert_eq!(code, 1, "{said}");
        let (code, said) = run(&cluster, &format!("affinity clear --client {client}"));
        assert_eq!((code, said.trim()), (0, "rows removed: 1"));
        let listed = rows(&cluster, &format!("affinity list --client {client}"));
        assert_eq!(listed, Vec::<Value>::new());

        let _talk = cluster.client.connect(vip, ECHO.port).unwrap();
        let line = format!("connections --service default/web:echo --pod {client} --state established");
        let open = rows(&cluster, &line);
        assert_eq!(open.len(), 1, "{open:?}");
        assert_eq!(open[0]["frontend"], at(vip, ECHO.port));
        assert_eq!(open[0]["backendState"], "active");
        assert_eq!(open[0]["kind"], "flow");
    }
    run(&cluster, "connections");
    run(&cluster, "affinity list");
    let (code, said) = run(&cluster, "connections --service default/nothing");
    assert_eq!(code, 1, "{said}");
    let (code, said) = run(&cluster, "affinity clear");
    assert_eq!(code, 2, "{said}");
}

#[test]
fn explain_predicts_what_happens() {
    if !require_privileges() {
        return;
    }
    let cluster = cluster("explain");
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    for (family, vip) in vips().into_iter().enumerate() {
        let pod = addresses(&cluster.client)[family];
        let outside = addresses(&cluster.outside)[family];
        let node = addresses(cluster.nodes[0].host())[family];
        for (from, source, to, machine) in [
            ("pod", pod, (vip, HTTP.port), &cluster.client),
            (
                "outside",
                outside,
                (node, HTTP.node_port.unwrap()),
                &cluster.outside,
            ),
        ] {
            let line = format!("explain tcp {source} {}", at(to.0, to.1));
            run(&cluster, &line);
            let (code, said) = json(&cluster, &line);
            assert_eq!((code, &said["from"]), (0, &Value::from(from)), "{said}");
            let report = machine.http(to.0, to.1).count(3).run().unwrap();
            let answered: Vec<&String> = report.answers.keys().collect();
            let expected = cluster.servers.iter().find(|server| {
                said["newDestination"] == at(addresses(&server.pod)[family], HTTP.target_port)
            });
            assert_eq!(answered, [expected.unwrap().pod.name()], "{said}");
        }

        let line = format!("explain tcp {pod} {}", at(vip, UNKNOWN_PORT));
        run(&cluster, &line);
        let (code, said) = json(&cluster, &line);
        assert_eq!((code, &said["verdict"]), (1, &Value::from("rejected")), "{said}");
        assert_eq!(said["reason"], "unknown_port");
        assert!(
            cluster
                .client
                .http(vip, UNKNOWN_PORT)
                .run()
                .unwrap()
                .answers
                .is_empty()
        );

        let (code, said) = json(&cluster, &format!("explain tcp {node} {}", at(vip, HTTP.port)));
        assert_eq!(
            (code, &said["verdict"], &said["from"]),
            (0, &"passed".into(), &"node".into()),
            "{said}"
        );
        let (code, said) = json(&cluster, &format!("explain icmp {pod} {vip}"));
        assert_eq!((code, &said["verdict"]), (0, &"answered".into()), "{said}");
        let (code, said) = run(&cluster, &format!("explain tcp {pod} {vip}"));
        assert_eq!(code, 2, "{said}");
    }
}

#[test]
fn commands_list_translated_sockets() {
    if !require_privileges() {
        return;
    }
    let cluster = cluster("command-sockets");
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let host = cluster.nodes[0].host();
    for (family, vip) in vips().into_iter().enumerate() {
        let node = addresses(host)[family];
        let talks = [(); 3].map(|()| host.connect(vip, ECHO.port).unwrap());
        let shown = rows(&cluster, "connections --service default/web:echo");
        assert_eq!(shown.len(), 3, "{shown:?}");
        for row in &shown {
            assert_eq!(
                (&row["kind"], &row["frontend"]),
                (&"socket".into(), &at(vip, ECHO.port).into())
            );
        }

        let line = format!("explain tcp {node} {}", at(vip, ECHO.port));
        run(&cluster, &line);
        let (code, said) = json(&cluster, &line);
        assert_eq!((code, &said["verdict"]), (0, &"translated".into()), "{said}");
        // The client stays with its backend.
        assert_eq!(said["byChance"], false, "{said}");
        let line = format!(
            "connections --pod {}",
            said["newDestination"]
                .as_str()
                .unwrap()
                .rsplit_once(':')
                .unwrap()
                .0
        );
        assert_eq!(rows(&cluster, &line.replace(['[', ']'], "")).len(), 3);
        drop(talks);
        wait_for("the rows of closed sockets to be removed", PATIENCE, || {
            rows(&cluster, "connections").is_empty().then_some(())
        })
        .unwrap();
    }
    let listed = rows(&cluster, "affinity list");
    assert!(
        listed
            .iter()
            .all(|row| row["client"].as_str().unwrap().starts_with("network namespace ")),
        "{listed:?}"
    );
    run(&cluster, "connections");
}
