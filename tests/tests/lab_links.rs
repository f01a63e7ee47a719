//! The links of a lab that are not plain ones: overlays, narrow links, links without Ethernet.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use lb_tests::lab::capture::Protocol;
use lb_tests::lab::{Capture, Cluster, Lab, LabOptions, Machine, Node, Process, require_privileges};

const HTTP: u16 = 8080;
const UDP: u16 = 5353;
const STREAM: u16 = 5001;

fn serve(pod: &Machine) -> Process {
    pod.serve().http(HTTP).udp(UDP).stream(STREAM).start().unwrap()
}

#[test]
fn pods_talk_through_the_overlay() {
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
        // Nobody outside knows the way.
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
fn a_cluster_can_have_an_overlay() {
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
