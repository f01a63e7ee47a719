//! What load balancers, the kubelet and Prometheus request from an agent over HTTP.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use lb_tests::lab::cluster::{HTTP, SERVICE, SERVICE_FILE, UNKNOWN_PORT, options, service, vips};
use lb_tests::lab::report::PageReport;
use lb_tests::lab::{
    Agent, Cluster, Machine, Process, ServiceManifest, SocketLb, require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
const HEALTHZ: u16 = 10_256;
const METRICS: u16 = 10_249;
const CHECK: u16 = 32_100;
const OTHER_CHECK: u16 = 32_101;
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Files that the agent may open beyond those that it has open: fewer than a client may open
/// connections.
const SPARE_FILES: usize = 16;
/// Silent connections to each address and port.
const SILENT: usize = 400;

/// Turns a Service into a load-balanced one with this health check port.
fn balanced(manifest: ServiceManifest, port: u16) -> ServiceManifest {
    manifest
        .of_type("LoadBalancer")
        .external_traffic_policy("Local")
        .health_check_node_port(port)
}

fn apply_service(cluster: &Cluster, port: u16) {
    let manifest = balanced(service(), port);
    cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
}

fn node_addresses(cluster: &Cluster) -> [IpAddr; 2] {
    cluster.nodes[0].host().addresses().both()
}

/// Waits until a page has this status at all addresses. Returns the last page.
#[track_caller]
fn wait_for_status(from: &Machine, addresses: &[IpAddr], port: u16, path: &str, status: u16) -> PageReport {
    let mut last = None;
    for address in addresses {
        let what = format!("{status} from {address} port {port} {path}");
        let page = wait_for(&what, PATIENCE, || {
            from.get(*address, port, path)
                .ok()
                .filter(|page| page.status == status)
        });
        last = Some(page.unwrap());
    }
    last.unwrap()
}

#[track_caller]
fn wait_until_refused(from: &Machine, addresses: &[IpAddr], port: u16) {
    for address in addresses {
        wait_for(&format!("{address} port {port} to be closed"), PATIENCE, || {
            let error = from.get(*address, port, "/").err()?;
            format!("{error:#}").contains("ConnectionRefused").then_some(())
        })
        .unwrap();
    }
}

/// Asserts the content of a health check: the number of endpoints in header and body, and the whole
/// body.
#[track_caller]
fn assert_check(page: &PageReport, endpoints: usize) {
    assert_eq!(page.headers["content-type"], "application/json");
    assert_eq!(
        page.headers["x-load-balancing-endpoint-weight"],
        endpoints.to_string()
    );
    let expected = format!(
        "{{\"service\":{{\"namespace\":\"default\",\"name\":\"{SERVICE}\"}},\"localEndpoints\":{endpoints},\
         \"serviceProxyHealthy\":true}}"
    );
    assert_eq!(page.body, expected);
}

#[test]
fn a_health_check_port_follows_the_endpoints_of_the_node() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("health-check", &[0, 1]).unwrap();
    let addresses = node_addresses(&cluster);
    apply_service(&cluster, CHECK);
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let status = |status| wait_for_status(&cluster.outside, &addresses, CHECK, "/", status);
    let near = &cluster.servers[0];
    assert_check(&status(200), 1);

    cluster.remove_manifest(near).unwrap();
    assert_check(&status(503), 0);
    cluster.set_ready(near, true).unwrap();
    assert_check(&status(200), 1);
    cluster.set_ready(near, false).unwrap();
    assert_check(&status(503), 0);
    cluster.set_ready(near, true).unwrap();
    assert_check(&status(200), 1);

    // The Pod terminates; new connections still reach it.
    let manifest = near.manifest().terminating();
    cluster.lab.apply(&near.manifest_file(), manifest).unwrap();
    assert_check(&status(503), 0);
    for address in addresses {
        let report = cluster
            .outside
            .http(address, HTTP.node_port.unwrap())
            .count(5)
            .run();
        assert_eq!(report.unwrap().answers[near.pod.name()], 5);
    }

    cluster.lab.remove(SERVICE_FILE).unwrap();
    wait_until_refused(&cluster.outside, &addresses, CHECK);
    cluster.set_ready(near, true).unwrap();
    apply_service(&cluster, OTHER_CHECK);
    wait_for_status(&cluster.outside, &addresses, OTHER_CHECK, "/", 200);
    wait_until_refused(&cluster.outside, &addresses, CHECK);
}

/// A process that listens on a port of all addresses.
fn holder(machine: &Machine, port: u16) -> Process {
    machine.serve().http(port).start().unwrap()
}

fn warnings(agent: &Agent, about: &str) -> usize {
    let log = agent.log();
    let lines = log.lines();
    lines
        .filter(|line| line.contains("WARN") && line.contains(about))
        .count()
}

#[test]
fn occupied_ports_are_served_once_they_are_free() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("health-taken", &[0]).unwrap();
    let addresses = node_addresses(&cluster);
    let host = cluster.nodes[0].host();
    let [healthz, metrics, check] = [HEALTHZ, METRICS, CHECK].map(|port| holder(host, port));
    apply_service(&cluster, CHECK);
    let port = HTTP.without_node_port();
    let other = ServiceManifest::new(
        "other",
        &["10.96.0.11", "fd00:10:96::11"].map(|vip| vip.parse().unwrap()),
        &[port],
    );
    let other = balanced(other, OTHER_CHECK);
    cluster.lab.apply("other.yaml", other).unwrap();
    let mut agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();

    // Everything else works.
    wait_for_status(&cluster.outside, &addresses, OTHER_CHECK, "/", 503);
    let report = cluster.client.http(vips()[0], HTTP.port).count(5).run();
    assert_eq!(report.unwrap().answered(), 5);
    for (about, count) in [
        ("/healthz and /livez at 0.0.0.0:10256", 1),
        ("/metrics at 127.0.0.1:10249", 1),
        // At the node's addresses and at 127.0.0.1 and ::1, like NodePorts.
        ("the health check of Service default/web at", 4),
    ] {
        wait_for(about, PATIENCE, || {
            (warnings(&agent, about) == count).then_some(())
        })
        .unwrap();
    }

    for holder in [healthz, metrics, check] {
        holder.stop().unwrap();
    }
    wait_for_status(&cluster.outside, &addresses, HEALTHZ, "/healthz", 200);
    wait_for_status(&cluster.outside, &addresses, CHECK, "/", 200);
    wait_for_status(host, &[LOCALHOST.into()], METRICS, "/metrics", 200);
    assert_eq!(warnings(&agent, "cannot serve"), 6, "{}", agent.log());
    agent.wait_until_logged("/metrics is served at").unwrap();
}

#[test]
fn healthz_depends_on_the_node_object_and_livez_does_not() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("healthz", &[]).unwrap();
    let addresses = node_addresses(&cluster);
    let agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let status = |path: &str, status| wait_for_status(&cluster.outside, &addresses, HEALTHZ, path, status);
    let page = status("/healthz", 200);
    assert_eq!(page.headers["content-type"], "application/json");
    assert!(page.body.contains("\"nodeEligible\":true"), "{}", page.body);
    status("/livez", 200);
    status("/other", 404);

    let sound = cluster.nodes[0].manifest();
    let file = format!("node-{}.yaml", cluster.nodes[0].name());
    let leaving = sound.clone().taint("ToBeDeletedByClusterAutoscaler");
    cluster.lab.apply(&file, leaving).unwrap();
    let page = status("/healthz", 503);
    assert!(page.body.contains("\"nodeEligible\":false"), "{}", page.body);
    let page = status("/livez", 200);
    assert!(!page.body.contains("nodeEligible"), "{}", page.body);
    cluster.lab.apply(&file, sound).unwrap();
    status("/healthz", 200);

    agent.kill();
    let nowhere = ["--healthz-bind-address=", "--metrics-bind-address="];
    let _agent = cluster.start_agent(SocketLb::Off, &nowhere).unwrap();
    wait_until_refused(&cluster.outside, &addresses, HEALTHZ);
    wait_until_refused(cluster.nodes[0].host(), &[LOCALHOST.into()], METRICS);
}

/// Freezes the agent's loop, which runs on its first thread. Its other threads continue.
fn freeze_loop(cluster: &Cluster, agent: &mut Agent) {
    let group = cluster.nodes[0].host().cgroup().join("frozen");
    let write = |file: &str, value: &str| fs::write(group.join(file), value).unwrap();
    fs::create_dir(&group).unwrap();
    write("cgroup.type", "threaded");
    write("cgroup.threads", &agent.process().pid().to_string());
    write("cgroup.freeze", "1");
    wait_for("the loop to stop", PATIENCE, || {
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap();
        events.contains("frozen 1").then_some(())
    })
    .unwrap();
}

#[test]
fn http_requests_are_answered_while_the_loop_hangs() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("health-hangs", &[0]).unwrap();
    let addresses = node_addresses(&cluster);
    apply_service(&cluster, CHECK);
    let mut agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    wait_for_status(&cluster.outside, &addresses, CHECK, "/", 200);
    freeze_loop(&cluster, &mut agent);
    // Not overdue yet.
    for path in ["/healthz", "/livez"] {
        wait_for_status(&cluster.outside, &addresses, HEALTHZ, path, 200);
    }
    wait_for_status(&cluster.outside, &addresses, CHECK, "/", 200);
    scrape(&cluster);
}

/// Opens silent connections to a server, some of them with a part of a request, and requests the
/// path again and again meanwhile. Returns the connections and the longest time until an answer.
fn ask_beside_silent(
    from: &Machine,
    server: SocketAddr,
    path: &str,
) -> anyhow::Result<(Vec<TcpStream>, Duration)> {
    let ask = || -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        anyhow::ensure!(
            answer.starts_with("HTTP/1.1 200 OK\r\n"),
            "{server}{path}: {answer}"
        );
        Ok(start.elapsed())
    };
    from.namespace().run(|| {
        let mut silent = Vec::new();
        let mut longest = Duration::ZERO;
        for number in 0..SILENT {
            let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
            if number % 2 == 0 {
                stream.write_all(b"GET /h")?;
            }
            silent.push(stream);
            if number % 20 == 19 {
                longest = longest.max(ask()?);
            }
        }
        Ok((silent, longest))
    })
}

#[test]
fn http_requests_are_answered_beside_silent_connections() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("health-silent", &[0]).unwrap();
    let addresses = node_addresses(&cluster);
    apply_service(&cluster, CHECK);
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    wait_for_status(&cluster.outside, &addresses, CHECK, "/", 200);
    let host = cluster.nodes[0].host();
    let outside = &cluster.outside;
    let [v4, v6] = addresses;
    let mut open = Vec::new();
    for (from, address, port, path) in [
        (outside, v4, HEALTHZ, "/healthz"),
        (outside, v6, HEALTHZ, "/livez"),
        (outside, v4, CHECK, "/"),
        (outside, v6, CHECK, "/"),
        (host, LOCALHOST.into(), METRICS, "/metrics"),
    ] {
        let server = SocketAddr::new(address, port);
        let (silent, longest) = ask_beside_silent(from, server, path).unwrap();
        open.push(silent);
        println!("{server}{path}: the slowest answer beside {SILENT} silent connections took {longest:?}");
    }
}

#[test]
fn an_agent_without_free_files_closes_silent_connections() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("health-files", &[]).unwrap();
    let addresses = node_addresses(&cluster);
    let mut agent = cluster.nodes[0]
        .start_agent(&options(SocketLb::Off, &[]))
        .unwrap();
    wait_for_status(&cluster.outside, &addresses, HEALTHZ, "/healthz", 200);
    let process = agent.process().pid();
    let before = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let limit = before + SPARE_FILES;
    let limited = Command::new("prlimit")
        .args([format!("--pid={process}"), format!("--nofile={limit}")])
        .status();
    assert!(limited.unwrap().success());
    let server = SocketAddr::new(addresses[0], HEALTHZ);
    let (_silent, longest) = ask_beside_silent(&cluster.outside, server, "/livez").unwrap();
    println!("the slowest answer of an agent with {before} of {limit} files open took {longest:?}");
}

fn scrape(cluster: &Cluster) -> PageReport {
    let host = cluster.nodes[0].host();
    wait_for_status(host, &[LOCALHOST.into()], METRICS, "/metrics", 200)
}

/// The value of a metric with its labels.
#[track_caller]
fn value(page: &PageReport, metric: &str) -> f64 {
    let line = page.body.lines().find_map(|line| line.strip_prefix(metric));
    let value = line.unwrap_or_else(|| panic!("no {metric} in\n{}", page.body));
    value.trim().parse().unwrap()
}

#[test]
fn metrics_count_traffic_and_changes() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("metrics", &[0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let connections =
        "lb_service_connections_total{namespace=\"default\",service=\"web\",port=\"http\",protocol=\"TCP\"}";
    let rejected = connections.replace("connections", "rejected");
    let unknown = "lb_packets_total{reason=\"unknown_port\"}";
    let flows = "lb_map_entries{map=\"flows IPv4\"}";
    let before = scrape(&cluster);
    assert!(
        before.headers["content-type"].starts_with("text/plain; version=0.0.4"),
        "{:?}",
        before.headers
    );
    assert_eq!(value(&before, connections), 0.0);

    let report = cluster.client.http(vips()[0], HTTP.port).count(12).run().unwrap();
    assert_eq!(report.answered(), 12);
    let report = cluster
        .client
        .http(vips()[1], UNKNOWN_PORT)
        .count(3)
        .run()
        .unwrap();
    assert_eq!(report.answered(), 0);
    let after = scrape(&cluster);
    assert_eq!(value(&after, connections), 12.0);
    assert_eq!(value(&after, &rejected), 0.0);
    assert_eq!(value(&after, unknown) - value(&before, unknown), 3.0);
    // A connection has an entry for each direction. The agent does not count entries at every
    // scrape.
    wait_for("entries of the connections", PATIENCE, || {
        (value(&scrape(&cluster), flows) >= value(&before, flows) + 24.0).then_some(())
    })
    .unwrap();
    assert_eq!(value(&after, "lb_map_capacity{map=\"flows IPv4\"}"), 16_384.0);

    for server in &cluster.servers {
        cluster.remove_manifest(server).unwrap();
    }
    cluster.wait_for_active(&[]).unwrap();
    let report = cluster.client.http(vips()[0], HTTP.port).count(5).run().unwrap();
    assert_eq!(report.answered(), 0);
    let last = scrape(&cluster);
    assert_eq!(value(&last, &rejected), 5.0);
    let changes = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    assert_eq!(value(&last, changes) - value(&after, changes), 2.0);
    assert_eq!(
        value(&last, "kubeproxy_sync_proxy_rules_endpoint_changes_pending"),
        0.0
    );
    let passes = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    assert!(value(&last, passes) > value(&after, passes));
    let synced = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"}";
    assert!(value(&last, synced) > value(&before, synced));
}

#[test]
fn metrics_show_the_latency_of_changes_and_the_use_of_maps() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("metrics-changes", &[]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let latency = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    assert_eq!(value(&scrape(&cluster), latency), 0.0);
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {SERVICE}-1
  namespace: default
  labels: {{kubernetes.io/service-name: {SERVICE}}}
  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{}'}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}, {{name: unused, port: 70000}}]
endpoints: [{{addresses: [10.1.1.1]}}, {{addresses: [10.1.1.2]}}]
",
        Timestamp::now()
    );
    cluster.lab.apply("slice.yaml", &slice).unwrap();
    let sum = latency.replace("count", "sum");
    let page = wait_for("the latency of the change", PATIENCE, || {
        let page = scrape(&cluster);
        let is_told = value(&page, "lb_map_entries{map=\"backends IPv4\"}") == 2.0;
        (is_told && value(&page, latency) == 1.0).then_some(page)
    })
    .unwrap();
    let seconds = value(&page, &sum);
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&seconds), "{seconds}");
    assert_eq!(value(&page, "lb_map_capacity{map=\"backends IPv4\"}"), 1024.0);
    // The port that is out of range.
    assert_eq!(value(&page, "lb_problems"), 1.0);
    let build = format!("lb_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(value(&page, &build), 1.0);
}
