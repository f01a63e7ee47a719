//! The lab itself: what it creates works without any agent, is isolated from everything else, and
//! is removed afterwards.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use etherparse::PacketBuilder;
use lb_tests::lab::capture::Protocol;
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{Capture, Lab, Machine, Node, Process, require_privileges, wait_for};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

const HTTP: u16 = 8080;
const UDP: u16 = 5353;
const ECHO: u16 = 7;
const STREAM: u16 = 5001;

/// Two nodes with a Pod each, and a client. The first Pod is a server.
struct Small {
    server: Process,
    web: Machine,
    other: Machine,
    client: Machine,
    nodes: [Node; 2],
    // The last field: Rust drops fields in order, and the others use it.
    lab: Lab,
}

impl Small {
    fn new(title: &str) -> Self {
        let lab = Lab::new(title).unwrap();
        let nodes = ["node-1", "node-2"].map(|name| lab.node(name).unwrap());
        let web = nodes[0].pod("web-1").unwrap();
        let server = web
            .serve()
            .http(HTTP)
            .udp(UDP)
            .echo(ECHO)
            .stream(STREAM)
            .start()
            .unwrap();
        Self {
            server,
            other: nodes[1].pod("other-1").unwrap(),
            client: lab.outside_client("client-1").unwrap(),
            web,
            nodes,
            lab,
        }
    }
}

#[test]
fn a_dropped_lab_leaves_nothing_behind() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("gone");
    let name = small.lab.name().to_owned();
    let server = small.server.pid();
    assert!(small.nodes[0].cgroup().is_dir());
    fs::create_dir_all(small.nodes[0].pin_path()).unwrap();
    // Six namespaces, three control groups, a directory of pins and one of files.
    assert_eq!(traces(&name).len(), 11, "{:?}", traces(&name));
    drop(small);
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(!runs(&server.to_string()));
}

#[test]
fn leftovers_of_a_killed_process_are_removed() {
    if !require_privileges() {
        return;
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_held-lab"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let line = output
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("made lb-lab-"))
        .unwrap();
    let (name, server) = line.rsplit_once("made ").unwrap().1.split_once(' ').unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    // Another test may have removed them already.
    Lab::remove_leftovers().unwrap();
    wait_for("the removal of the leftovers", Duration::from_secs(10), || {
        traces(name).is_empty().then_some(())
    })
    .unwrap();
    assert!(!runs(server));
}

#[test]
fn all_machines_reach_a_pod() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("reach");
    let [node_1, node_2] = &small.nodes;
    for from in [
        &small.web,
        &small.other,
        node_1.host(),
        node_2.host(),
        &small.client,
    ] {
        for (to, own) in small
            .web
            .addresses()
            .both()
            .into_iter()
            .zip(from.addresses().both())
        {
            let http = from.http(to, HTTP).count(6).concurrency(2).run().unwrap();
            assert_eq!(http.answers["web-1"], 6, "{} to {to}: {http:?}", from.name());
            assert_eq!(http.clients, [own].into(), "{} to {to}", from.name());
            assert!(http.latency.max > 0);
            let udp = from.udp(to, UDP).count(3).run().unwrap();
            assert_eq!(udp.answers["web-1"], 3, "{} to {to}: {udp:?}", from.name());
            assert_eq!(udp.sources, [(to, UDP).into()].into(), "{} to {to}", from.name());
        }
    }
}

#[test]
fn the_first_packet_of_a_new_lab_arrives() {
    if !require_privileges() {
        return;
    }
    // The kernel repeats a neighbour solicitation after a second.
    let timeout = Duration::from_millis(900);
    for _ in 0..5 {
        let small = Small::new("first");
        for from in [&small.client, &small.other] {
            for to in small.web.addresses().both() {
                let udp = from.udp(to, UDP).timeout(timeout).run().unwrap();
                assert_eq!(udp.answered(), 1, "{} to {to}: {udp:?}", from.name());
            }
        }
    }
}

#[test]
fn pods_and_clients_reach_nodes() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("nodes");
    for node in &small.nodes {
        let _server = node.host().serve().http(HTTP).start().unwrap();
        for from in [&small.web, &small.other, &small.client] {
            for to in node.host().addresses().both() {
                let http = from.http(to, HTTP).run().unwrap();
                assert_eq!(http.answers[node.name()], 1, "{} to {to}: {http:?}", from.name());
            }
        }
    }
}

#[test]
fn the_lab_has_no_route_out() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("apart");
    let fabric = small.lab.fabric().name();
    for family in ["-4", "-6"] {
        assert_eq!(ip(&["-n", fabric, family, "route", "show", "default"]), "");
    }
    let expected = ["lo", "br0", "u1", "u2", "lxc-client-1"];
    let links = ip(&["-n", fabric, "-o", "link"]);
    let devices: Vec<&str> = links
        .lines()
        .filter_map(|line| line.split([' ', '@', ':']).nth(2))
        .collect();
    assert_eq!(devices, expected);
    for address in addresses_of_this_machine() {
        let report = small.client.http(address, 1).run().unwrap();
        let unreachable = report.errors.keys().all(|reason| reason.contains("Unreachable"));
        assert!(unreachable, "{address}: {report:?}");
    }
}

#[test]
fn captures_find_correct_checksums_at_every_hop() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("capture");
    let fabric = small.lab.fabric().clone();
    let [node_1, _] = &small.nodes;
    let places = [
        small.web.namespace(),
        node_1.host().namespace(),
        &fabric,
        small.client.namespace(),
    ];
    let captures = places.map(|namespace| Capture::start(namespace).unwrap());
    for to in small.web.addresses().both() {
        let stream = small.client.stream(to, STREAM).mebibytes(4).run().unwrap();
        assert_eq!((stream.server.as_str(), stream.bytes), ("web-1", 4 << 20));
        assert_eq!(small.client.udp(to, UDP).count(3).run().unwrap().answered(), 3);
        // More than fits into a packet.
        assert_eq!(small.client.udp(to, UDP).size(4000).run().unwrap().answered(), 1);
        // A closed port: the kernel answers with ICMP.
        let refused = small.client.udp(to, 9).connected().run().unwrap();
        assert_eq!(refused.errors["receive: ConnectionRefused"], 1, "{refused:?}");
    }
    for capture in captures {
        let report = capture.finish().unwrap();
        let kinds = [
            Protocol::Tcp,
            Protocol::Udp,
            Protocol::Icmp,
            Protocol::Icmpv6,
            Protocol::Fragment,
        ];
        for protocol in kinds {
            assert!(report.count(protocol) > 0, "no {protocol:?} in {report}");
        }
        assert!(report.with_address(small.client.addresses().ipv4.into()).count() > 0);
    }
}

#[test]
fn captures_check_packets_without_checksum_offload() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("offload");
    for end in [&small.web, &small.client] {
        end.namespace().offload("eth0", &["tx", "off"]).unwrap();
    }
    let capture = Capture::start(small.nodes[0].host().namespace()).unwrap();
    for to in small.web.addresses().both() {
        small.client.stream(to, STREAM).run().unwrap();
    }
    assert!(capture.finish().unwrap().count(Protocol::Tcp) > 0);
}

#[test]
fn a_capture_reports_a_corrupted_packet() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("corrupt");
    let capture = Capture::start(small.nodes[0].host().namespace()).unwrap();
    send_corrupted(&small.client, small.web.addresses().ipv4);
    small.client.udp(small.web.addresses().ipv4, UDP).run().unwrap();
    let report = capture.stop().unwrap();
    // Received at eth0, sent to the Pod.
    assert_eq!(report.bad_count, 2, "{report}");
    assert_eq!(
        (report.bad[0].device.as_str(), report.bad[0].outgoing),
        ("eth0", false)
    );
    assert_eq!(
        (report.bad[1].device.as_str(), report.bad[1].outgoing),
        ("lxc-web-1", true)
    );
    assert!(report.bad[0].fault.contains("wrong Udp checksum"), "{report}");
    assert!(report.count(Protocol::Udp) > 0);

    let capture = Capture::start(small.nodes[0].host().namespace()).unwrap();
    send_corrupted(&small.client, small.web.addresses().ipv4);
    small.client.udp(small.web.addresses().ipv4, UDP).run().unwrap();
    let error = capture.finish().unwrap_err().to_string();
    assert!(
        error.contains("wrong Udp checksum") && error.contains("0000  "),
        "{error}"
    );
}

#[test]
fn a_capture_without_packets_is_an_error() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("silent").unwrap();
    assert!(Capture::start(lab.fabric()).unwrap().finish().is_err());
}

#[test]
fn a_test_controls_each_step_of_a_connection() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("talk");
    let to = small.web.addresses().ipv6;
    let mut talk = small.client.talk(to, ECHO).unwrap();
    let TalkEvent::Connected { local, peer } = talk.next_event().unwrap() else {
        panic!("not connected");
    };
    assert_eq!(local.ip(), IpAddr::from(small.client.addresses().ipv6));
    assert_eq!(peer, (to, ECHO).into());
    for line in ["one", "two"] {
        assert_eq!(
            talk.exchange(line).unwrap(),
            TalkEvent::Line(format!("web-1 {line}"))
        );
    }
    small.server.kill();
    assert_eq!(talk.next_event().unwrap(), TalkEvent::End);
    let mut talk = small.client.talk(to, ECHO).unwrap();
    assert_eq!(
        talk.next_event().unwrap(),
        TalkEvent::Error("connect: ConnectionRefused".to_owned())
    );
}

#[test]
fn a_stopped_server_finishes_open_connections() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("stop");
    let to = small.web.addresses().ipv4;
    let mut talk = small.client.talk(to, ECHO).unwrap();
    talk.next_event().unwrap();
    let mut server = small.server;
    server.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    wait_for("the end of new connections", Duration::from_secs(5), || {
        let report = small.client.http(to, HTTP).run().unwrap();
        report
            .errors
            .contains_key("connect: ConnectionRefused")
            .then_some(())
    })
    .unwrap();
    assert_eq!(
        talk.exchange("still").unwrap(),
        TalkEvent::Line("web-1 still".to_owned())
    );
    drop(talk);
    assert!(server.wait(Duration::from_secs(5)).unwrap().success());
}

#[test]
fn clients_run_until_they_are_stopped() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("clients");
    let to = small.web.addresses().ipv4;
    let interval = Duration::from_millis(1);
    let http = small
        .client
        .http(to, HTTP)
        .count(1_000_000)
        .interval(interval)
        .start()
        .unwrap();
    let udp = small
        .client
        .udp(to, UDP)
        .count(1_000_000)
        .interval(interval)
        .start()
        .unwrap();
    let mut talk = small.other.talk(to, ECHO).unwrap();
    talk.next_event().unwrap();
    talk.exchange("meanwhile").unwrap();
    let (http, udp) = (http.stop().unwrap(), udp.stop().unwrap());
    assert!(http.errors.is_empty() && http.answered() > 0, "{http:?}");
    assert!(udp.errors.is_empty() && udp.answered() > 0, "{udp:?}");
}

#[test]
fn the_router_sends_an_address_to_one_or_more_nodes() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("route");
    let vip = Ipv4Addr::new(198, 51, 100, 1);
    let _servers = small.nodes.each_ref().map(|node| {
        node.host()
            .namespace()
            .ip(&[format!("address add {vip}/32 dev lo")])
            .unwrap();
        node.host().serve().at(vip).http(HTTP).start().unwrap()
    });
    let [node_1, node_2] = &small.nodes;
    for node in &small.nodes {
        small.lab.route("198.51.100.0/24", &[node]).unwrap();
        let report = small.client.http(vip, HTTP).count(3).run().unwrap();
        assert_eq!(report.answers[node.name()], 3, "{report:?}");
    }
    small.lab.route("198.51.100.0/24", &[node_1, node_2]).unwrap();
    small.lab.route("2001:db8:1b::/64", &[node_1, node_2]).unwrap();
    assert_eq!(small.client.http(vip, HTTP).count(3).run().unwrap().answered(), 3);
}

#[test]
fn programs_run_in_the_namespace_and_cgroup_of_their_machine() {
    if !require_privileges() {
        return;
    }
    let small = Small::new("exec");
    let addresses = small
        .web
        .exec("ip", &["-o", "-4", "address", "show", "dev", "eth0"])
        .unwrap();
    assert!(
        addresses.contains(&format!(" {}/32 ", small.web.addresses().ipv4)),
        "{addresses}"
    );
    let groups = small.web.exec("cat", &["/proc/self/cgroup"]).unwrap();
    assert!(
        groups.contains(&format!("0::/{}-node-1/web-1\n", small.lab.name())),
        "{groups}"
    );
    let error = small
        .web
        .exec("ls", &["/does/not/exist"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("No such file"), "{error}");
    let error = small.web.exec("does-not-exist", &["-x"]).unwrap_err().to_string();
    assert!(error.contains("execute does-not-exist"), "{error}");
}

/// Names of everything that a lab creates outside its namespaces.
fn traces(lab: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let cgroups = mounts
        .lines()
        .find(|line| line.contains(" cgroup2 "))
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap();
    let temporary = std::env::temp_dir();
    [
        Path::new("/run/netns"),
        Path::new(cgroups),
        Path::new("/sys/fs/bpf"),
        &temporary,
    ]
    .iter()
    .flat_map(|directory| fs::read_dir(directory).unwrap().flatten())
    .filter_map(|entry| entry.file_name().into_string().ok())
    .filter(|name| name.starts_with(&format!("{lab}-")))
    .collect()
}

/// Whether a process runs. A zombie has an empty command line.
fn runs(pid: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
}

/// Sends a datagram with a wrong UDP checksum.
fn send_corrupted(from: &Machine, to: Ipv4Addr) {
    let source = from.addresses().ipv4.octets();
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, to.octets(), 64)
        .udp(4000, UDP)
        .write(&mut packet, b"corrupted")
        .unwrap();
    *packet.last_mut().unwrap() ^= 1;
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    let send = || {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::Raw,
        )?;
        Ok(sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?)
    };
    assert_eq!(from.namespace().run(send).unwrap(), packet.len());
}

/// Runs `ip` in the network namespace of the test. Returns the output.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn addresses_of_this_machine() -> Vec<IpAddr> {
    ip(&["-o", "address", "show", "scope", "global"])
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .collect()
}
