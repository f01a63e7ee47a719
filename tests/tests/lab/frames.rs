//! Frames that are not for the node pass untouched: frames for other machines, and frames of VLANs
//! that no device serves. Frames for a bridge belong to the node. And routes that are missing for a
//! while.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::{IpAddr, SocketAddr};

use etherparse::{SlicedPacket, TransportSlice};
use lb_tests::lab::cluster::{HTTP, STREAM, UDP, options, vips};
use lb_tests::lab::{AgentOptions, Cluster, Published, ServicePort, SocketLb, Wire, Xdp, require_privileges};
use lb_tests::packet::build::{Build, Link, syn, udp};

/// A Service without Pods. A program that handles a packet to it answers the packet.
const NOBODY: Published = Published::new("nobody", 54);
const REFUSED_TCP: ServicePort = ServicePort {
    name: "tcp",
    node_port: Some(30_154),
    ..HTTP
};
const REFUSED_UDP: ServicePort = ServicePort {
    name: "udp",
    node_port: Some(30_155),
    ..UDP
};
const SENDER: [u8; 6] = [2, 0, 0, 0, 9, 8];
/// The client ports of requests for other machines and of requests for the node.
const FOREIGN: u16 = 20_000;
const OWN: u16 = 20_001;

/// A position on the link to a node, like that of a flooding switch: it sees everything that the
/// node sends.
struct Place {
    wire: Wire,
    client: IpAddr,
    node: IpAddr,
    node_link: [u8; 6],
}

impl Place {
    /// Requests from this port, which the node refuses.
    fn requests(&self, port: u16) -> [Build; 2] {
        let client = SocketAddr::new(self.client, port);
        let to = |port: Option<u16>| SocketAddr::new(self.node, port.unwrap());
        [
            syn(client, to(REFUSED_TCP.node_port)),
            udp(client, to(REFUSED_UDP.node_port)),
        ]
    }

    fn send(&self, request: &Build, destination: [u8; 6]) {
        let link = Link {
            destination,
            source: SENDER,
        };
        self.wire.send_frame(&request.clone().link(link).bytes()).unwrap();
    }

    /// Sends requests for the node. Asserts that they are answered, and that no earlier requests
    /// were.
    #[track_caller]
    fn assert_only_own_are_answered(&self, own: impl Fn(Build) -> Build) {
        for request in self.requests(OWN) {
            self.send(&own(request), self.node_link);
            let answered = self
                .wire
                .receive_frame("an answer", |frame| self.answered(frame))
                .unwrap();
            assert_eq!(answered, OWN);
        }
    }

    /// Returns the client port if the frame is a refusal.
    fn answered(&self, frame: &[u8]) -> Option<u16> {
        const ETHERNET: usize = 14;
        const ICMP: usize = 8;
        let header = if self.client.is_ipv4() { 20 } else { 40 };
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        match sliced.transport? {
            TransportSlice::Tcp(segment) => segment.rst().then(|| segment.destination_port()),
            TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) => {
                let quoted = ETHERNET + header + ICMP + header;
                let ports = frame.get(quoted..quoted + 4)?;
                let port = u16::from_be_bytes([ports[2], ports[3]]);
                (Some(port) == REFUSED_UDP.node_port).then(|| u16::from_be_bytes([ports[0], ports[1]]))
            }
            _ => None,
        }
    }
}

/// Runs a check for both families and all XDP modes, on a promiscuous device.
fn on_the_link(title: &str, check: impl Fn(&Place)) {
    if !require_privileges() {
        return;
    }
    for xdp in [Xdp::Off, Xdp::Generic, Xdp::Native] {
        let cluster = Cluster::new(title, &[0]).unwrap();
        cluster.publish(NOBODY, &[REFUSED_TCP, REFUSED_UDP], &[]).unwrap();
        let [node, ..] = &cluster.nodes;
        let node_link = [2, 0, 0, 0, 9, 1];
        let lines = ["link set eth0 address 02:00:00:00:09:01 promisc on"];
        node.host().namespace().ip(&lines).unwrap();
        let _peer = (xdp == Xdp::Native).then(|| cluster.lab.prepare_for_xdp(node).unwrap());
        let agent = AgentOptions {
            xdp: Some(xdp),
            ..options(SocketLb::Off, &[])
        };
        let _agent = node.start_agent(&agent).unwrap();
        let clients = cluster.outside.phantom().unwrap().both();
        for (client, node_address) in clients.into_iter().zip(node.host().addresses().both()) {
            let place = Place {
                wire: Wire::open(cluster.lab.fabric(), node.host().far_device()).unwrap(),
                client,
                node: node_address,
                node_link,
            };
            place.assert_only_own_are_answered(|request| request);
            check(&place);
        }
    }
}

#[test]
fn frames_for_other_machines_are_not_answered() {
    const OTHERS: [[u8; 6]; 4] = [
        [2, 0, 0, 0, 9, 2],
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
    ];
    on_the_link("other-machines", |place| {
        for other in OTHERS {
            for request in place.requests(FOREIGN) {
                place.send(&request, other);
            }
            place.assert_only_own_are_answered(|request| request);
        }
    });
}

/// The kernel may remove the tag from the frame or leave it there. Tag 0 means no VLAN.
#[test]
fn frames_of_unserved_vlans_are_not_answered() {
    on_the_link("vlans", |place| {
        for tags in [&[20][..], &[20, 30], &[0, 20], &[20, 0]] {
            for request in place.requests(FOREIGN) {
                place.send(&request.vlans(tags), place.node_link);
            }
            place.assert_only_own_are_answered(|request| request);
        }
        place.assert_only_own_are_answered(|request| request.vlans(&[0]));
    });
}

/// Frames of a Pod behind a bridge are addressed to the bridge, not to the device that receives
/// them.
#[test]
fn a_pod_behind_a_bridge_reaches_services() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("bridge", &[0, 1]).unwrap();
    let [node, ..] = &cluster.nodes;
    node.add_bridge("cni0", &[&cluster.client]).unwrap();
    let _agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    for vip in vips() {
        let report = cluster.client.http(vip, HTTP.port).count(20).run().unwrap();
        assert_eq!(report.answered(), 20, "{vip}: {report:?}");
        let report = cluster.client.udp(vip, UDP.port).sockets(20).run().unwrap();
        assert_eq!(report.answered(), 20, "{vip}: {report:?}");
        let report = cluster.client.stream(vip, STREAM.port).run().unwrap();
        assert_eq!(report.bytes, 1 << 20, "{vip}");
    }
}

/// A connection that could not be forwarded is forgotten. The next one is forwarded as usual, with
/// the node's address.
#[test]
fn connections_work_again_after_a_route_comes_back() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("route", &[1]).unwrap();
    let [node, other, _] = &cluster.nodes;
    let agent = AgentOptions {
        xdp: Some(Xdp::Off),
        ..options(SocketLb::Off, &[])
    };
    let _agent = node.start_agent(&agent).unwrap();
    let (cidr4, cidr6) = other.pod_cidrs();
    let [gateway4, gateway6] = other.host().addresses().both();
    let namespace = node.host().namespace();
    // The default route is removed too, so that it does not replace the route.
    let away = [
        format!("route del {cidr4}"),
        format!("route del {cidr6}"),
        "route del default".to_owned(),
        "route del ::/0".to_owned(),
        "route add 203.0.113.0/24 via 172.30.0.1".to_owned(),
        "route add 2001:db8:c::/48 via fd00:30::1".to_owned(),
    ];
    let back = [
        format!("route add {cidr4} via {gateway4}"),
        format!("route add {cidr6} via {gateway6}"),
    ];
    let port = HTTP.node_port.unwrap();
    for address in node.host().addresses().both() {
        let ask = || {
            cluster
                .outside
                .http(address, port)
                .source_port(FOREIGN)
                .run()
                .unwrap()
        };
        assert_eq!(ask().clients, [address].into());
    }
    namespace.ip(&away).unwrap();
    for address in node.host().addresses().both() {
        let client = cluster.outside.http(address, port).source_port(OWN);
        let report = client
            .timeout(std::time::Duration::from_millis(200))
            .run()
            .unwrap();
        assert_eq!(report.answered(), 0, "{address}: {report:?}");
    }
    namespace.ip(&back).unwrap();
    for address in node.host().addresses().both() {
        let report = cluster
            .outside
            .http(address, port)
            .source_port(OWN)
            .run()
            .unwrap();
        assert_eq!(report.answered(), 1, "{address}: {report:?}");
        // The Pod sees the node's address: an answer to the client's address would not come back
        // through the node.
        assert_eq!(report.clients, [address].into(), "{report:?}");
    }
}
