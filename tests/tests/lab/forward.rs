//! Outside clients reach Pods of other nodes: the address that the Pods see, large streams, many
//! connections, and flows that arrive at another node than before.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::lab::cluster::{
    ECHO, HTTP, PORTS, SERVICE_FILE, STREAM, UDP, load_balancer_addresses, service,
};
use lb_tests::lab::report::TalkEvent;
use lb_tests::lab::{
    Addresses, Agents, Capture, Cluster, LabOptions, Machine, Published, ServicePort, SocketLb, Xdp,
    require_privileges, wait_for,
};

/// All traffic is captured: a stream must not be larger than the capture can follow.
const MEBIBYTES: u32 = 8;
const CONNECTIONS: u32 = 600;
/// How long it may take until a change is noticed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first client port of flows that are compared later, outside the ephemeral port range.
const PORTS_OF_FLOWS: u16 = 20_000;
const FLOWS: u32 = 40;

/// A Service whose only Pod is on the first node.
const NEAR: Published = Published::new("near", 30);

/// A Service whose only Pod is on the second node.
const FAR: Published = Published::new("far", 20);

/// One Pod of the usual Service on each node, and an agent on each node.
struct Fixture {
    _agents: Agents,
    cluster: Cluster,
}

impl Fixture {
    fn new(title: &str, options: &LabOptions, xdp: Option<Xdp>) -> Self {
        let cluster = Cluster::with_options(title, options, &[0, 1, 2]).unwrap();
        let manifest = service().ingress(&load_balancer_addresses(), None);
        cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
        let ports = PORTS.map(ServicePort::without_node_port);
        for (service, server) in [(NEAR, &cluster.servers[0]), (FAR, &cluster.servers[1])] {
            cluster.publish(service, &ports, &[server.place()]).unwrap();
        }
        cluster.route_load_balancer(&[0]).unwrap();
        Self {
            _agents: cluster.start_agents(SocketLb::Off, xdp, &[]).unwrap(),
            cluster,
        }
    }

    fn received_datagrams(&self) -> u64 {
        let pods = self.cluster.servers.iter().map(|server| &server.pod);
        pods.map(|pod| pod.received_datagrams().unwrap()).sum()
    }

    fn outside(&self) -> &Machine {
        &self.cluster.outside
    }

    /// The client address that Pods of other nodes see: the address from which the first node
    /// itself reaches them.
    fn source(&self) -> Addresses {
        let node = &self.cluster.nodes[0];
        node.overlay_addresses()
            .unwrap_or_else(|| node.host().addresses())
    }

    /// The Pod on this node sees the client; Pods of other nodes see the forwarding node.
    fn pods_see_the_client_or_the_node(&self) {
        let own = self.outside().addresses().both();
        let instead = self.source().both();
        for (vips, sources) in [(NEAR.addresses(), own), (FAR.addresses(), instead)] {
            for (vip, source) in vips.into_iter().zip(sources) {
                let report = self.outside().http(vip, HTTP.port).count(20).run().unwrap();
                assert_eq!(report.answered(), 20, "{vip}: {report:?}");
                assert_eq!(report.clients, [source].into(), "{vip}");
                let report = self.outside().udp(vip, UDP.port).sockets(20).run().unwrap();
                assert_eq!(report.answered(), 20, "{vip}: {report:?}");
                let clients: BTreeSet<IpAddr> = report.clients.iter().map(SocketAddr::ip).collect();
                assert_eq!(clients, [source].into(), "{vip}");
                assert_eq!(report.sources, [SocketAddr::new(vip, UDP.port)].into());
            }
        }
    }

    fn streams_and_many_connections(&self) {
        for vip in FAR.addresses() {
            let stream = self.outside().stream(vip, STREAM.port).mebibytes(MEBIBYTES);
            assert_eq!(stream.run().unwrap().bytes, u64::from(MEBIBYTES) << 20);
            let http = self.outside().http(vip, HTTP.port).concurrency(8);
            let report = http.count(CONNECTIONS).run().unwrap();
            assert_eq!(report.answered(), u64::from(CONNECTIONS), "{vip}: {report:?}");
            let udp = self.outside().udp(vip, UDP.port).sockets(20).count(10).size(1200);
            let report = udp.run().unwrap();
            assert_eq!(report.answered(), 200, "{vip}: {report:?}");
            // No two sockets share a source port of the node.
            assert_eq!(report.clients.len(), 20, "{vip}: {report:?}");
        }
    }

    /// A Pod is a client of its own Service (hairpin).
    fn a_pod_reaches_itself(&self) {
        let pod = &self.cluster.servers[0].pod;
        let node = self.cluster.nodes[0].host().addresses().both();
        for (vip, node) in NEAR.addresses().into_iter().zip(node) {
            let report = pod.http(vip, HTTP.port).count(20).run().unwrap();
            assert_eq!(report.answers["web-1"], 20, "{vip}: {report:?}");
            assert_eq!(report.clients, [node].into(), "{vip}");
            let stream = pod.stream(vip, STREAM.port).run().unwrap();
            assert_eq!(stream.bytes, 1 << 20);
        }
    }

    /// The Pod that answers each of the client's ports, for TCP and for UDP.
    fn choices(&self, vip: IpAddr) -> [BTreeMap<SocketAddr, String>; 2] {
        let http = self.outside().http(vip, HTTP.port).count(FLOWS);
        let http = http.source_port(PORTS_OF_FLOWS).run().unwrap();
        assert_eq!(http.answered(), u64::from(FLOWS), "{vip}: {http:?}");
        let udp = self.outside().udp(vip, UDP.port).sockets(FLOWS);
        let udp = udp.source_port(PORTS_OF_FLOWS).run().unwrap();
        assert_eq!(udp.answered(), u64::from(FLOWS), "{vip}: {udp:?}");
        [http.servers, udp.servers]
    }

    /// All nodes choose the same Pods for the same flows.
    fn nodes_agree(&self) {
        for vip in load_balancer_addresses() {
            self.cluster.route_load_balancer(&[0]).unwrap();
            let first = self.choices(vip);
            for choices in &first {
                let pods: BTreeSet<&String> = choices.values().collect();
                assert_eq!(pods.len(), 3, "{vip}: {choices:?}");
            }
            for nodes in [&[1][..], &[2], &[0, 1, 2]] {
                self.cluster.route_load_balancer(nodes).unwrap();
                assert_eq!(self.choices(vip), first, "{vip} at {nodes:?}");
            }
        }
    }

    /// Datagrams of one socket reach the same Pod, whichever node they arrive at.
    fn a_socket_moves(&self) {
        for vip in load_balancer_addresses() {
            self.cluster.route_load_balancer(&[0]).unwrap();
            let udp = self.outside().udp(vip, UDP.port).connected();
            let client = udp
                .count(100_000)
                .interval(Duration::from_millis(1))
                .start()
                .unwrap();
            for node in [1, 2, 0] {
                self.cluster.route_load_balancer(&[node]).unwrap();
                let before = self.received_datagrams();
                wait_for("datagrams through the new node", PATIENCE, || {
                    (self.received_datagrams() > before + 20).then_some(())
                })
                .unwrap();
            }
            let report = client.stop().unwrap();
            assert!(report.errors.is_empty(), "{vip}: {report:?}");
            assert_eq!(report.answers.len(), 1, "{vip}: {report:?}");
        }
    }

    /// Another node does not know a connection, and its Pod does not know that node: the client
    /// gets an RST.
    fn a_connection_does_not_move(&self) {
        for vip in load_balancer_addresses() {
            self.cluster.route_load_balancer(&[0]).unwrap();
            let (mut talk, _) = self.outside().connect(vip, ECHO.port).unwrap();
            self.cluster.route_load_balancer(&[1]).unwrap();
            let reset = TalkEvent::Error("read: ConnectionReset".to_owned());
            assert_eq!(talk.exchange("two").unwrap(), reset, "{vip}");
        }
    }
}

/// All checks share one lab, which is expensive to start.
fn forward(title: &str, options: LabOptions, xdp: Option<Xdp>) {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new(title, &options, xdp);
    let cluster = &fixture.cluster;
    let machines = [&cluster.outside, cluster.nodes[0].host(), &cluster.servers[1].pod];
    let captures = machines.map(|machine| Capture::start(machine.namespace()).unwrap());
    fixture.pods_see_the_client_or_the_node();
    fixture.streams_and_many_connections();
    let [_, node, _] = captures.map(|capture| capture.finish().unwrap());
    for vip in FAR.addresses() {
        // XDP forwards before a capture can see the packet, but it does not forward into a tunnel.
        let mut seen = node.with_address(vip);
        assert_eq!(
            seen.next().is_none(),
            xdp.is_some() && !options.overlay,
            "{vip}: {node}"
        );
    }
    fixture.a_pod_reaches_itself();
    fixture.nodes_agree();
    fixture.a_socket_moves();
    fixture.a_connection_does_not_move();
}

const DIRECT: LabOptions = LabOptions { overlay: false };
const OVERLAY: LabOptions = LabOptions { overlay: true };

#[test]
fn clients_reach_pods_of_other_nodes_through_tc() {
    forward("forward-tc", DIRECT, None);
}

#[test]
fn clients_reach_pods_of_other_nodes_through_generic_xdp() {
    forward("forward-generic", DIRECT, Some(Xdp::Generic));
}

#[test]
fn clients_reach_pods_of_other_nodes_through_native_xdp() {
    forward("forward-native", DIRECT, Some(Xdp::Native));
}

#[test]
fn clients_reach_pods_of_other_nodes_through_tc_and_overlay() {
    forward("forward-overlay", OVERLAY, None);
}

#[test]
fn clients_reach_pods_of_other_nodes_through_native_xdp_and_overlay() {
    forward("forward-overlay-native", OVERLAY, Some(Xdp::Native));
}
