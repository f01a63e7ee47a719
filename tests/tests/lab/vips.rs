//! Properties of VIPs apart from Service ports: they answer pings, load balancer addresses can be
//! limited to source ranges, and other ports of an address may belong to a node.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::lab::cluster::{
    HTTP, SERVICE_FILE, Server, UDP, UNKNOWN_PORT, load_balancer_addresses, service,
};
use lb_tests::lab::{
    Agents, Cluster, Machine, Node, Process, Published, ServicePort, SocketLb, Xdp, require_privileges,
};

/// Timeout of requests that are expected to be lost.
const TIMEOUT: Duration = Duration::from_millis(150);

/// Allows the first outside client.
const OUTSIDE: Published = Published::new("outside", 51);
/// Allows Pods and processes of the first node.
const INSIDE: Published = Published::new("inside", 52);
/// Allows the first node's Pods for IPv4; for IPv6 it has no source ranges.
const ONLY_IPV4: Published = Published::new("only-ipv4", 53);
/// Allows all clients, but has no Pods.
const NOBODY: Published = Published::new("nobody", 54);

struct Fixture {
    _agents: Agents,
    /// A client outside that is in no source ranges.
    stranger: Machine,
    cluster: Cluster,
}

impl Fixture {
    fn new(title: &str, socket_lb: SocketLb, xdp: Option<Xdp>) -> Self {
        let cluster = Cluster::new(title, &[0, 1]).unwrap();
        let stranger = cluster.lab.outside_client("stranger").unwrap();
        let pods: Vec<_> = cluster.servers.iter().map(Server::place).collect();
        let [own4, own6] = cluster.outside.addresses().both();
        let (pods4, pods6) = cluster.nodes[0].pod_cidrs();
        let [node4, node6] = cluster.nodes[0].host().addresses().both();
        let outside = [format!(" {own4}/32"), format!("{own6}/128 ")];
        let inside = [pods4, pods6, format!("{node4}/32"), format!("{node6}/128")];
        let only_ipv4 = &inside[..1];
        let services = [
            (OUTSIDE, &outside[..], 30_151),
            (INSIDE, &inside[..], 30_152),
            (ONLY_IPV4, only_ipv4, 30_153),
        ];
        for (service, ranges, node_port) in services {
            let ports = ports(node_port);
            cluster.publish(service, &ports, &pods).unwrap();
            let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
            let manifest = service.manifest(&ports).source_ranges(&ranges);
            let manifest = manifest.external_ips(&external_ips(service));
            cluster
                .lab
                .apply(&format!("{}.yaml", service.name), manifest)
                .unwrap();
        }
        cluster.publish(NOBODY, &ports(30_154), &[]).unwrap();
        for service in [OUTSIDE, INSIDE, NOBODY] {
            for address in service.cluster_ips().into_iter().chain(external_ips(service)) {
                let node = &cluster.nodes[0];
                cluster.lab.route(&address.to_string(), &[node]).unwrap();
            }
        }
        Self {
            _agents: cluster.start_agents(socket_lb, xdp, &[]).unwrap(),
            stranger,
            cluster,
        }
    }

    fn host(&self) -> &Machine {
        self.cluster.nodes[0].host()
    }

    /// The number of packets dropped because of their source.
    fn dropped(&self) -> u64 {
        self.cluster.nodes[0].reason_count("source_range").unwrap()
    }

    fn source_ranges(&self) {
        let (outside, stranger) = (&self.cluster.outside, &self.stranger);
        for (service, allowed, excluded) in [
            (OUTSIDE, vec![outside], vec![stranger, &self.cluster.client]),
            (INSIDE, vec![&self.cluster.client], vec![outside, stranger]),
        ] {
            for vip in service.addresses() {
                allowed.iter().for_each(|from| assert_answered(from, vip));
                for from in &excluded {
                    let before = self.dropped();
                    assert_lost(from, vip);
                    assert!(self.dropped() >= before + 3, "{vip} from {}", from.name());
                }
            }
            // Source ranges apply only to the load balancer's addresses.
            for address in service.cluster_ips().into_iter().chain(external_ips(service)) {
                excluded.iter().for_each(|from| assert_answered(from, address));
            }
        }
        let [vip4, vip6] = ONLY_IPV4.addresses();
        assert_lost(stranger, vip4);
        assert_answered(stranger, vip6);
        for node in self.host().addresses().both() {
            let report = stranger.http(node, 30_151).count(5).run().unwrap();
            assert_eq!(report.answered(), 5, "{node}: {report:?}");
        }
    }

    /// VIPs answer pings if they have Pods.
    fn pings(&self, from: &[&Machine]) {
        for from in from {
            for vip in OUTSIDE.cluster_ips() {
                let report = from.ping(vip).count(3).run().unwrap();
                assert_eq!(report.answers, [(vip, 3)].into(), "{}: {report:?}", from.name());
                let report = from.ping(vip).size(1400).run().unwrap();
                assert_eq!(report.answered(), 1, "{vip}: {report:?}");
            }
            for vip in NOBODY.cluster_ips() {
                let report = from.ping(vip).timeout(TIMEOUT).run().unwrap();
                assert_eq!(report.answered(), 0, "{vip}: {report:?}");
            }
        }
    }
}

fn external_ips(service: Published) -> [IpAddr; 2] {
    [
        IpAddr::from([192, 0, 2, service.number]),
        IpAddr::from([0x2001, 0xdb8, 0xe, 0, 0, 0, 0, u16::from(service.number)]),
    ]
}

fn ports(node_port: u16) -> [ServicePort; 2] {
    let http = ServicePort {
        node_port: Some(node_port),
        ..HTTP
    };
    [http, UDP.without_node_port()]
}

#[track_caller]
fn assert_answered(from: &Machine, vip: IpAddr) {
    let report = from.http(vip, HTTP.port).count(5).run().unwrap();
    assert_eq!(report.answered(), 5, "{vip} from {}: {report:?}", from.name());
    let report = from.udp(vip, UDP.port).sockets(5).run().unwrap();
    assert_eq!(report.answered(), 5, "{vip} from {}: {report:?}", from.name());
    let report = from.ping(vip).run().unwrap();
    assert_eq!(report.answered(), 1, "{vip} from {}: {report:?}", from.name());
}

#[track_caller]
fn assert_lost(from: &Machine, vip: IpAddr) {
    let report = from.http(vip, HTTP.port).timeout(TIMEOUT).run().unwrap();
    assert_eq!(report.errors, [("timeout".to_owned(), 1)].into(), "{vip}");
    let report = from.udp(vip, UDP.port).timeout(TIMEOUT).run().unwrap();
    assert_eq!(
        report.errors,
        [("receive: TimedOut".to_owned(), 1)].into(),
        "{vip}"
    );
    let report = from.ping(vip).timeout(TIMEOUT).run().unwrap();
    assert_eq!((report.answered(), report.lost), (0, 1), "{vip}");
}

#[test]
fn source_ranges_and_pings_work_through_tc() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("vips-tc", SocketLb::Off, None);
    fixture.source_ranges();
    fixture.pings(&[&fixture.cluster.outside, &fixture.cluster.client, fixture.host()]);
}

#[test]
fn source_ranges_and_pings_work_through_generic_xdp() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("vips-generic", SocketLb::Off, Some(Xdp::Generic));
    fixture.source_ranges();
    fixture.pings(&[&fixture.cluster.outside, fixture.host()]);
}

#[test]
fn source_ranges_and_pings_work_through_native_xdp_and_sockets() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("vips-native", SocketLb::All, Some(Xdp::Native));
    fixture.source_ranges();
    fixture.pings(&[&fixture.cluster.outside, &fixture.cluster.client, fixture.host()]);
    for (inside, outside) in INSIDE.addresses().into_iter().zip(OUTSIDE.addresses()) {
        let report = fixture.host().http(inside, HTTP.port).count(5).run().unwrap();
        assert_eq!(report.answered(), 5, "{inside}: {report:?}");
        let report = fixture.host().http(outside, HTTP.port).run().unwrap();
        assert!(
            report.errors.contains_key("connect: HostUnreachable"),
            "{report:?}"
        );
    }
}

/// UDP ports of a node that no Service uses: that of an overlay, and another one.
const NODE_UDP: [u16; 2] = [8472, 10_000];

/// Other nodes' addresses are external IPs or load balancer addresses: the Service's ports belong
/// to the Service, all others to the node.
#[test]
fn other_ports_of_another_nodes_address_reach_that_node() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("vips-other", &[0]).unwrap();
    let [near, external, balancer] = cluster.nodes.each_ref().map(Node::host);
    let manifest = service().external_ips(&external.addresses().both());
    let manifest = manifest.ingress(&balancer.addresses().both(), None);
    cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
    let serve = |host: &Machine| {
        let udp = NODE_UDP.map(|port| host.serve().udp(port).start().unwrap());
        (serve_unknown_port(host), udp)
    };
    let _servers = [external, balancer].map(serve);
    for socket_lb in [SocketLb::Off, SocketLb::Host, SocketLb::All] {
        let agent = cluster.start_agent(socket_lb, &[]).unwrap();
        for other in [external, balancer] {
            for address in other.addresses().both() {
                let translated = (socket_lb != SocketLb::Off).then_some(near);
                for from in [&cluster.client].into_iter().chain(translated) {
                    let report = from.http(address, HTTP.port).count(5).run().unwrap();
                    assert_eq!(report.answers.get("web-1"), Some(&5), "{address}: {report:?}");
                    let report = from.udp(address, UDP.port).sockets(5).run().unwrap();
                    assert_eq!(report.answers.get("web-1"), Some(&5), "{address}: {report:?}");
                }
                for from in [&cluster.client, near] {
                    assert_nodes_own(from, address, other.name());
                }
            }
        }
        agent.kill();
    }
}

/// Asserts that the node's own sockets answer, and that the node answers pings.
#[track_caller]
fn assert_nodes_own(from: &Machine, address: IpAddr, node: &str) {
    let report = from.http(address, UNKNOWN_PORT).count(5).run().unwrap();
    assert_eq!(report.answers.get(node), Some(&5), "{address}: {report:?}");
    for port in NODE_UDP {
        for connected in [false, true] {
            let client = from.udp(address, port).sockets(5);
            let client = if connected { client.connected() } else { client };
            let report = client.run().unwrap();
            assert_eq!(report.answers.get(node), Some(&5), "{address}: {report:?}");
        }
    }
    let report = from.ping(address).count(2).run().unwrap();
    assert_eq!(report.answers, [(address, 2)].into(), "{address}: {report:?}");
}

fn serve_unknown_port(host: &Machine) -> Process {
    host.serve().http(UNKNOWN_PORT).start().unwrap()
}

#[track_caller]
fn assert_shared(from: &Machine, address: IpAddr) {
    let report = from.http(address, HTTP.port).count(5).run().unwrap();
    assert_eq!(report.answers.get("web-1"), Some(&5), "{address}: {report:?}");
    let report = from.http(address, UNKNOWN_PORT).count(5).run().unwrap();
    assert_eq!(report.answers.get("node-1"), Some(&5), "{address}: {report:?}");
}

/// Starts agents in several modes, and uses addresses of a Service that the first node owns too.
fn share(cluster: &Cluster, addresses: [IpAddr; 2], arguments: &[&str]) {
    let host = cluster.nodes[0].host();
    let _server = serve_unknown_port(host);
    for (socket_lb, xdp) in [
        (SocketLb::Off, None),
        (SocketLb::Host, Some(Xdp::Generic)),
        (SocketLb::All, Some(Xdp::Native)),
    ] {
        let agents = cluster.start_agents(socket_lb, xdp, arguments).unwrap();
        let translated = (socket_lb != SocketLb::Off).then_some(host);
        for address in addresses {
            for from in [&cluster.outside, &cluster.client].into_iter().chain(translated) {
                assert_shared(from, address);
            }
        }
        drop(agents);
    }
}

/// An external IP that is the node's own address: packets to other ports are for the node.
#[test]
fn other_ports_of_the_nodes_own_address_reach_the_node() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("vips-own", &[0]).unwrap();
    let own = cluster.nodes[0].host().addresses().both();
    cluster
        .lab
        .apply(SERVICE_FILE, service().external_ips(&own))
        .unwrap();
    share(&cluster, own, &[]);
}

/// The same with a load balancer's address, if unknown ports are left alone.
#[test]
fn unknown_port_pass_leaves_other_ports_to_the_node() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("vips-pass", &[0]).unwrap();
    let balancers = load_balancer_addresses();
    cluster
        .lab
        .apply(SERVICE_FILE, service().ingress(&balancers, None))
        .unwrap();
    cluster.route_load_balancer(&[0]).unwrap();
    let lines = balancers.map(|address| format!("address add {address} dev lo"));
    cluster.nodes[0].host().namespace().ip(&lines).unwrap();
    share(&cluster, balancers, &["--unknown-port=pass"]);
}
