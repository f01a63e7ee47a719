//! ClusterIPs with real sockets, translated by TC or at the sockets, from Pods and from processes
//! of the node.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_tests::kernel::needs;
use lb_tests::lab::capture::Protocol;
use lb_tests::lab::cluster::{ECHO, HTTP, SERVICE_FILE, STREAM, UDP, UNKNOWN_PORT, vips};
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{Capture, CaptureReport, Cluster, Machine, Outcome, SocketLb, require_privileges};

/// Captures at all machines that the traffic of a cluster passes.
struct Captures {
    client: Capture,
    host: Capture,
    servers: Vec<Capture>,
}

/// The results of the captures. Every checksum was correct.
struct Captured {
    client: CaptureReport,
    host: CaptureReport,
    servers: Vec<CaptureReport>,
}

impl Captures {
    fn start(cluster: &Cluster) -> Self {
        let start = |machine: &Machine| Capture::start(machine.namespace()).unwrap();
        Self {
            client: start(&cluster.client),
            host: start(cluster.nodes[0].host()),
            servers: cluster.servers.iter().map(|server| start(&server.pod)).collect(),
        }
    }

    fn finish(self) -> Captured {
        Captured {
            client: self.client.finish().unwrap(),
            host: self.host.finish().unwrap(),
            servers: self
                .servers
                .into_iter()
                .map(|capture| capture.finish().unwrap())
                .collect(),
        }
    }
}

/// The devices on which an address was seen.
fn devices_with(report: &CaptureReport, address: IpAddr) -> BTreeSet<&str> {
    report
        .with_address(address)
        .map(|(seen, _)| seen.device.as_str())
        .collect()
}

fn own_address(machine: &Machine, like: IpAddr) -> IpAddr {
    let [ipv4, ipv6] = machine.addresses().both();
    if like.is_ipv4() { ipv4 } else { ipv6 }
}

/// Uses every port of the Service from this machine by HTTP, UDP and TCP. Asserts that all Pods
/// answer.
#[track_caller]
fn use_service(cluster: &Cluster, from: &Machine) {
    let all: BTreeSet<_> = cluster
        .servers
        .iter()
        .map(|server| server.pod.name().to_owned())
        .collect();
    for vip in vips() {
        let own = own_address(from, vip);
        let report = from.http(vip, HTTP.port).count(80).concurrency(4).run().unwrap();
        assert_eq!(report.answered(), 80, "{vip}: {report:?}");
        assert_eq!(report.answers.into_keys().collect::<BTreeSet<_>>(), all, "{vip}");
        assert_eq!(report.clients, BTreeSet::from([own]), "{vip}");
        use_udp(from, vip, &all);

        let report = from.stream(vip, STREAM.port).mebibytes(4).run().unwrap();
        assert_eq!(report.bytes, 4 << 20);

        let mut talk = from.talk(vip, ECHO.port).unwrap();
        let (local, peer) = talk.connected().unwrap();
        assert_eq!((local.ip(), peer), (own, SocketAddr::new(vip, ECHO.port)));
        let TalkEvent::Line(line) = talk.exchange("hello").unwrap() else {
            panic!("{vip}: no echo");
        };
        assert!(line.ends_with(" hello"), "{line}");
    }
}

#[track_caller]
fn use_udp(from: &Machine, vip: IpAddr, all: &BTreeSet<String>) {
    for connected in [false, true] {
        let client = || match connected {
            true => from.udp(vip, UDP.port).connected(),
            false => from.udp(vip, UDP.port),
        };
        let report = client().sockets(60).run().unwrap();
        assert_eq!(report.answered(), 60, "{vip}: {report:?}");
        assert_eq!(report.answers.into_keys().collect::<BTreeSet<_>>(), *all, "{vip}");
        assert_eq!(
            report.sources,
            BTreeSet::from([SocketAddr::new(vip, UDP.port)]),
            "{vip}"
        );

        // All datagrams of one socket reach the same Pod. With the larger size, every other
        // datagram spans several segments.
        for size in [16, 1400] {
            let report = client().count(12).size(size).run().unwrap();
            assert_eq!(report.answered(), 12, "{vip}: {report:?}");
            assert_eq!(report.answers.len(), 1, "{vip}: {report:?}");
        }
    }
}

#[test]
fn a_pod_reaches_services_through_tc() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("through-tc", &[0, 0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    let captures = Captures::start(&cluster);
    use_service(&cluster, &cluster.client);
    let captured = captures.finish();
    for vip in vips() {
        assert_eq!(devices_with(&captured.client, vip), BTreeSet::from(["eth0"]));
        // The stack of the node sees real addresses only: the VIP appears on the client's device
        // and nowhere else.
        assert_eq!(
            devices_with(&captured.host, vip),
            BTreeSet::from([cluster.client.far_device()])
        );
        for server in &captured.servers {
            assert_eq!(devices_with(server, vip), BTreeSet::new());
        }
    }
}

/// The number of packets between two machines that a node's stack has forwarded.
fn sent_on(host: &CaptureReport, one: &Machine, other: &Machine, like: IpAddr) -> u64 {
    let ends = [one, other].map(|machine| own_address(machine, like));
    host.with_address(ends[0])
        .filter(|(seen, _)| seen.outgoing && seen.flow.protocol != Protocol::Housekeeping)
        .filter(|(seen, _)| {
            [seen.flow.source, seen.flow.destination]
                .map(|end| end.ip())
                .contains(&ends[1])
        })
        .map(|(_, count)| count)
        .sum()
}

#[test]
fn local_redirect_bypasses_the_stack_of_the_node() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("past-the-stack", &[0, 0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &["--local-redirect"]).unwrap();
    // The node must learn the Pods' link-layer addresses first: until then its stack forwards the
    // packets.
    for server in &cluster.servers {
        for address in server.pod.addresses().both() {
            let report = cluster.client.http(address, HTTP.target_port).run().unwrap();
            assert_eq!(report.answered(), 1, "{report:?}");
        }
    }
    let captures = Captures::start(&cluster);
    use_service(&cluster, &cluster.client);
    let captured = captures.finish();
    for vip in vips() {
        assert_eq!(devices_with(&captured.client, vip), BTreeSet::from(["eth0"]));
        for (server, report) in cluster.servers.iter().zip(&captured.servers) {
            assert_eq!(devices_with(report, vip), BTreeSet::new());
            let is_of_this_node = server.node.name() == cluster.nodes[0].name();
            let sent_on = sent_on(&captured.host, &cluster.client, &server.pod, vip);
            assert_eq!(sent_on == 0, is_of_this_node, "{}: {sent_on}", server.pod.name());
        }
    }
}

#[test]
fn connections_survive_switching_local_redirect() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("past-and-back", &[0]).unwrap();
    let server = &cluster.servers[0].pod;
    let start = |arguments: &[&str]| cluster.start_agent(SocketLb::Off, arguments).unwrap();
    let connect = || {
        vips().map(|vip| {
            let mut talk = cluster.client.talk(vip, ECHO.port).unwrap();
            talk.connected().unwrap();
            talk
        })
    };
    let mut agent = start(&[]);
    let mut talks: Vec<_> = connect().into();
    for arguments in [&[][..], &["--local-redirect"], &[]] {
        drop(agent);
        agent = start(arguments);
        let host = Capture::start(cluster.nodes[0].host().namespace()).unwrap();
        talks.extend(connect());
        for talk in &mut talks {
            let event = talk.exchange("hello").unwrap();
            assert!(matches!(event, TalkEvent::Line(_)), "{arguments:?}: {event:?}");
        }
        let report = host.finish().unwrap();
        for vip in vips() {
            // Connections that were opened before bypass the stack too.
            let sent_on = sent_on(&report, &cluster.client, server, vip);
            assert_eq!(sent_on == 0, !arguments.is_empty(), "{vip}: {sent_on}");
        }
    }
}

/// Pods use TCP only: their datagrams are not translated at the sockets.
#[test]
fn pods_and_the_node_reach_services_through_sockets() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("sockets", &[0, 0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::All, &[]).unwrap();
    let captures = Captures::start(&cluster);
    for vip in vips() {
        let report = cluster.client.http(vip, HTTP.port).count(20).run().unwrap();
        assert_eq!(report.answered(), 20, "{vip}: {report:?}");
    }
    // Without the cookie, the programs treat datagrams of the node's processes as a Pod's.
    if needs(
        "5.14",
        "SO_NETNS_COOKIE: the lab's nodes are not the initial namespace",
    ) {
        use_service(&cluster, cluster.nodes[0].host());
    }
    let captured = captures.finish();
    for report in [captured.client, captured.host].iter().chain(&captured.servers) {
        for vip in vips() {
            assert_eq!(devices_with(report, vip), BTreeSet::new());
        }
    }
}

#[test]
fn node_processes_use_sockets_and_pods_use_tc() {
    if !require_privileges()
        || !needs(
            "5.14",
            "SO_NETNS_COOKIE: the lab's nodes are not the initial namespace",
        )
    {
        return;
    }
    let cluster = Cluster::new("host-sockets", &[0, 1]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Host, &[]).unwrap();
    let captures = Captures::start(&cluster);
    use_service(&cluster, cluster.nodes[0].host());
    use_service(&cluster, &cluster.client);
    let captured = captures.finish();
    for vip in vips() {
        assert_eq!(
            devices_with(&captured.host, vip),
            BTreeSet::from([cluster.client.far_device()])
        );
    }
}

/// With the default sizes of the maps and the agent's default for everything else.
#[test]
fn an_agent_without_options_serves_cluster_ips() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("defaults", &[0, 1]).unwrap();
    let _agent = cluster.nodes[0].start_agent(&Default::default()).unwrap();
    use_service(&cluster, &cluster.client);
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        let cluster = Cluster::new("hairpin", &[0]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let captures = Captures::start(&cluster);
        let pod = &cluster.servers[0].pod;
        for vip in vips() {
            let report = pod.http(vip, HTTP.port).count(10).run().unwrap();
            assert_eq!(report.answered(), 10, "{socket_lb} {vip}: {report:?}");
            for connected in [false, true] {
                let client = pod.udp(vip, UDP.port).sockets(3).count(3);
                let client = if connected { client.connected() } else { client };
                let report = client.run().unwrap();
                assert_eq!(report.answered(), 9, "{socket_lb} {vip}: {report:?}");
                assert_eq!(report.sources, BTreeSet::from([SocketAddr::new(vip, UDP.port)]));
            }
            let report = pod.stream(vip, STREAM.port).mebibytes(4).run().unwrap();
            assert_eq!(report.bytes, 4 << 20);
        }
        let Captures { servers, client, .. } = captures;
        drop(client);
        for capture in servers {
            capture.finish().unwrap();
        }
    }
}

/// Asserts that TCP and UDP are both refused immediately.
#[track_caller]
fn assert_refused(from: &Machine, to: IpAddr, port: u16, udp_port: u16) {
    from.expect_tcp((to, port).into(), &Outcome::Refused).unwrap();
    from.expect_udp((to, udp_port).into(), &Outcome::Refused).unwrap();
}

#[test]
fn a_service_without_endpoints_refuses_connections() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::All] {
        if socket_lb == SocketLb::All && !needs("5.18", "bpf_set_retval: connect is refused") {
            return;
        }
        let mut cluster = Cluster::new("nobody", &[]).unwrap();
        let _agent = cluster.start_agent(socket_lb, &[]).unwrap();
        let host = cluster.nodes[0].host();
        // The second time, the kernel computes the checksums of the answers, as for devices without
        // checksum offload.
        for transmit_checksums in ["on", "off"] {
            host.namespace()
                .offload(cluster.client.far_device(), &["tx", transmit_checksums])
                .unwrap();
            let captures =
                [&cluster.client, host].map(|machine| Capture::start(machine.namespace()).unwrap());
            for vip in vips() {
                assert_refused(&cluster.client, vip, HTTP.port, UDP.port);
                assert_refused(&cluster.client, vip, UNKNOWN_PORT, UNKNOWN_PORT);
                // A port of the other protocol is an unknown port too.
                assert_refused(&cluster.client, vip, UDP.port, HTTP.port);
                if socket_lb == SocketLb::All {
                    assert_refused(host, vip, HTTP.port, UDP.port);
                    assert_refused(host, vip, UNKNOWN_PORT, UNKNOWN_PORT);
                }
            }
            for report in captures.map(|capture| capture.stop().unwrap()) {
                assert_eq!(report.bad_count, 0, "{:?}", report.bad);
            }
        }

        cluster.add_server(0).unwrap();
        cluster.wait_for_active(&[&cluster.servers[0]]).unwrap();
        use_service(&cluster, &cluster.client);
        for vip in vips() {
            assert_refused(&cluster.client, vip, UNKNOWN_PORT, UNKNOWN_PORT);
        }
        cluster.lab.remove(SERVICE_FILE).unwrap();
        cluster.wait_for_active(&[]).unwrap();
        // The wildcard rows of the VIPs are removed too.
        assert!(cluster.nodes[0].map_image().unwrap().frontends.is_empty());
    }
}
