//! Special links of a lab: overlays, links with a small MTU, links without Ethernet.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::time::Duration;

use etherparse::{Icmpv4Slice, IpSlice, PacketBuilder};
use lb_tests::lab::capture::{Protocol, Seen};
use lb_tests::lab::cluster::load_balancer_addresses;
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{
    Capture, CaptureReport, Cluster, Lab, LabOptions, Machine, Node, Process, require_privileges,
};

const HTTP: u16 = 8080;
const UDP: u16 = 5353;
const ECHO: u16 = 7;
const STREAM: u16 = 5001;

fn serve(pod: &Machine) -> Process {
    pod.serve().http(HTTP).udp(UDP).stream(STREAM).start().unwrap()
}

#[test]
fn pods_reach_each_other_through_the_overlay() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::with_options("overlay", &LabOptions { overlay: true }).unwrap();
    let nodes: [Node; 3] = ["node-1", "node-2", "node-3"].map(|name| lab.node(name).unwrap());
    let web = nodes[0].pod("web-1").unwrap();
    let other = nodes[2].pod("other-1").unwrap();
    let outside = lab.outside_client("outside").unwrap();
    let _server = serve(&web);
    let overlay = nodes[1].overlay_addresses().unwrap();
    let capture = Capture::start(nodes[0].host().namespace()).unwrap();
    for (to, from_host) in web.addresses().both().into_iter().zip(overlay.both()) {
        let http = other.http(to, HTTP).count(4).run().unwrap();
        assert_eq!(http.answers["web-1"], 4, "{to}: {http:?}");
        let http = nodes[1].host().http(to, HTTP).run().unwrap();
        assert_eq!(http.clients, [from_host].into(), "{to}: {http:?}");
        let stream = other.stream(to, STREAM).mebibytes(4).run().unwrap();
        assert_eq!(stream.bytes, 4 << 20);
        assert_eq!(other.udp(to, UDP).size(1300).run().unwrap().answered(), 1);
        // The client outside has no route to Pods.
        let http = outside.http(to, HTTP).run().unwrap();
        assert_eq!(http.answered(), 0, "{to}: {http:?}");
    }
    let report = capture.finish().unwrap();
    for address in web.addresses().both() {
        let mut packets = report.with_address(address);
        assert!(packets.any(|(seen, _)| seen.device == "vxlan0"), "{report}");
    }
    for node in &nodes {
        for to in node.host().addresses().both() {
            let http = outside.http(to, HTTP).run().unwrap();
            assert!(http.errors.contains_key("connect: ConnectionRefused"), "{http:?}");
        }
    }
}

#[test]
fn a_cluster_with_an_overlay_works() {
    if !require_privileges() {
        return;
    }
    let options = LabOptions { overlay: true };
    let cluster = Cluster::with_options("overlay-cluster", &options, &[2]).unwrap();
    let capture = Capture::start(cluster.nodes[2].host().namespace()).unwrap();
    for address in cluster.servers[0].pod.addresses().both() {
        assert_eq!(cluster.client.http(address, HTTP).run().unwrap().answered(), 1);
    }
    assert!(capture.finish().unwrap().count(Protocol::Tcp) > 0);
}

/// Whether this machine received ICMP errors about its packets, over both IP versions.
fn got_icmp_errors(report: &CaptureReport, machine: &Machine) -> bool {
    machine.addresses().both().into_iter().all(|address| {
        let mut packets = report.with_address(address);
        packets.any(|(seen, _)| {
            let is_error = matches!(seen.flow.protocol, Protocol::Icmp | Protocol::Icmpv6);
            is_error && seen.flow.destination.ip() == address
        })
    })
}

#[test]
fn a_router_reports_packets_that_are_too_big() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("narrow-router").unwrap();
    let web = lab.node("node-1").unwrap().pod("web-1").unwrap();
    let router = lab.router("router").unwrap();
    let client = lab.outside_client_behind(&router, "client-1").unwrap();
    let _server = serve(&web);
    let told = || {
        let capture = Capture::start(router.namespace()).unwrap();
        for to in web.addresses().both() {
            let stream = client.stream(to, STREAM).run().unwrap();
            assert_eq!(stream.bytes, 1 << 20);
        }
        let report = capture.finish().unwrap();
        [&web, &client].map(|end| got_icmp_errors(&report, end))
    };
    assert_eq!(told(), [false, false]);
    router.namespace().limit_mtu(1400).unwrap();
    assert_eq!(told(), [true, true]);
    router.namespace().limit_mtu(1300).unwrap();
    assert_eq!(told(), [true, true]);
}

#[test]
fn a_node_reports_packets_that_are_too_big_for_a_pod() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("narrow-pod").unwrap();
    let node = lab.node("node-1").unwrap();
    let web = node.pod("web-1").unwrap();
    let client = lab.outside_client("client-1").unwrap();
    let _server = serve(&web);
    node.limit_mtu_to_pod(&web, 1300).unwrap();
    let capture = Capture::start(client.namespace()).unwrap();
    for to in web.addresses().both() {
        let stream = client.stream(to, STREAM).run().unwrap();
        assert_eq!(stream.bytes, 1 << 20);
    }
    assert!(got_icmp_errors(&capture.finish().unwrap(), &client));
    assert!(node.host().namespace().limit_mtu_to("192.0.2.1", 1300).is_err());
}

#[test]
fn a_client_can_have_many_addresses() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("addresses").unwrap();
    let web = lab.node("node-1").unwrap().pod("web-1").unwrap();
    let router = lab.router("router").unwrap();
    let clients = [
        lab.outside_client("near").unwrap(),
        lab.outside_client_behind(&router, "far").unwrap(),
    ];
    for client in &clients {
        let _server = client.serve().http(HTTP).start().unwrap();
        let more = client.more_addresses(20).unwrap();
        assert_eq!(more, client.more_addresses(20).unwrap());
        for to in [client.addresses(), more[0], more[19]].map(|addresses| addresses.both()) {
            for to in to {
                assert_eq!(web.http(to, HTTP).run().unwrap().answered(), 1, "{to}");
            }
        }
        let timeout = Duration::from_millis(100);
        for to in client.phantom().unwrap().both() {
            let report = web.http(to, HTTP).timeout(timeout).run().unwrap();
            assert_eq!(report.errors["timeout"], 1, "{to}: {report:?}");
        }
    }
    assert!(web.more_addresses(1).is_err());
}

#[test]
fn routes_spread_flows_over_nodes_and_move_them() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("moves").unwrap();
    let nodes = ["node-1", "node-2", "node-3"].map(|name| lab.node(name).unwrap());
    let client = lab.outside_client("client-1").unwrap();
    let vips = load_balancer_addresses();
    let _servers = nodes.each_ref().map(|node| {
        let lines = vips.map(|vip| format!("address add {vip} dev lo"));
        node.host().namespace().ip(&lines).unwrap();
        node.host().serve().http(HTTP).echo(ECHO).start().unwrap()
    });
    let all = nodes.each_ref();
    for vip in vips {
        lab.route(&vip.to_string(), &all).unwrap();
        let report = client.http(vip, HTTP).count(60).run().unwrap();
        assert_eq!(report.answers.len(), 3, "{report:?}");

        lab.route(&vip.to_string(), &all[..1]).unwrap();
        let mut talk = client.talk(vip, ECHO).unwrap();
        talk.connected().unwrap();
        assert_eq!(
            talk.exchange("one").unwrap(),
            TalkEvent::Line("node-1 one".to_owned())
        );
        // The node that gets the flow now does not know it.
        lab.route(&vip.to_string(), &all[1..2]).unwrap();
        assert_eq!(
            talk.exchange("two").unwrap(),
            TalkEvent::Error("read: ConnectionReset".to_owned())
        );
        let report = client.http(vip, HTTP).count(20).run().unwrap();
        assert_eq!(report.answers["node-2"], 20, "{report:?}");
    }
}

#[test]
fn a_client_behind_a_device_without_ethernet_reaches_pods() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("layer3-client").unwrap();
    let node = lab.node("node-1").unwrap();
    let web = node.pod("web-1").unwrap();
    let _server = serve(&web);
    let vpn = lab.layer3_client(&node, "vpn-1").unwrap();
    let client = &vpn.machine;
    let device = client.far_device();
    let shown = node.host().exec("ip", &["-o", "link", "show", device]).unwrap();
    assert!(shown.contains("link/none"), "{shown}");

    let more = client.more_addresses(2).unwrap();
    let wire = client.wire().unwrap();
    let captures = [client, node.host()].map(|machine| Capture::start(machine.namespace()).unwrap());
    for (index, to) in web.addresses().both().into_iter().enumerate() {
        let own = more[1].both()[index];
        let http = client.http(to, HTTP).source_addresses([own]).run().unwrap();
        assert_eq!(http.clients, [own].into(), "{http:?}");
        let stream = client.stream(to, STREAM).mebibytes(4).run().unwrap();
        assert_eq!(stream.bytes, 4 << 20);
        assert_eq!(client.ping(to).count(2).run().unwrap().answered(), 2);
    }
    let [at_client, at_node] = captures.map(|capture| capture.finish().unwrap());
    for (report, device) in [(at_client, "eth0"), (at_node, device)] {
        let is_tcp = |seen: &Seen| seen.device == device && seen.flow.protocol == Protocol::Tcp;
        assert!(report.seen.keys().any(is_tcp), "{device}: {report}");
    }
    // Packets that the test builds have no Ethernet header there either.
    let mut packet = Vec::new();
    PacketBuilder::ipv4(
        client.addresses().ipv4.octets(),
        web.addresses().ipv4.octets(),
        64,
    )
    .icmpv4_echo_request(7, 1)
    .write(&mut packet, b"hello")
    .unwrap();
    let answer = wire
        .exchange(&packet, "an answer", |packet| {
            let ip = IpSlice::from_slice(packet).ok()?;
            let answer = Icmpv4Slice::from_slice(ip.payload().payload).ok()?;
            (answer.payload() == b"hello").then(|| answer.type_u8())
        })
        .unwrap();
    assert_eq!(answer, 0);
    drop(vpn.link);
    let links = node.host().exec("ip", &["-o", "link"]).unwrap();
    assert!(!links.contains("tun-"), "{links}");
}

#[test]
fn pods_reach_each_other_over_a_link_without_ethernet() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("layer3-nodes").unwrap();
    let nodes = ["node-1", "node-2"].map(|name| lab.node(name).unwrap());
    let web = nodes[0].pod("web-1").unwrap();
    let other = nodes[1].pod("other-1").unwrap();
    let _server = serve(&web);
    let _link = lab.layer3_link(nodes.each_ref()).unwrap();
    let capture = Capture::start(nodes[0].host().namespace()).unwrap();
    for to in web.addresses().both() {
        let http = other.http(to, HTTP).count(3).run().unwrap();
        assert_eq!(http.answered(), 3, "{to}: {http:?}");
        let stream = other.stream(to, STREAM).run().unwrap();
        assert_eq!(stream.bytes, 1 << 20);
    }
    let report = capture.finish().unwrap();
    for to in web.addresses().both() {
        let mut packets = report.with_address(to);
        let mut way = packets.by_ref().map(|(seen, _)| seen.device.as_str());
        assert!(
            way.all(|device| ["tun-node-2", "lxc-web-1"].contains(&device)),
            "{report}"
        );
    }
}
