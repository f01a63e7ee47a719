//! Addresses of Service CIDRs that no Service has. Another machine, to which the node has a route,
//! owns these addresses too: it answers everything that the node does not drop.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;
use std::time::Duration;

use lb_agent::maps::BackendState;
use lb_tests::lab::cluster::{HTTP, UDP, options};
use lb_tests::lab::{
    Agent, AgentOptions, Cluster, Machine, Outcome, Process, Published, ServicePort, SocketLb, Xdp,
    require_privileges, wait_for,
};

use super::commands::json;

const PATIENCE: Duration = Duration::from_secs(10);
const OPTION: &str = "--service-cidr=10.96.0.0/16,fd00:10:96::/112";
const CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
const LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Added and deleted during a test.
const LATE: Published = Published::new("late", 71);
/// Served by another proxy.
const FOREIGN: Published = Published::new("foreign", 72);
/// Addresses that are never allocated.
const NOBODY: Published = Published::new("nobody", 73);

struct Fixture {
    _servers: Vec<Process>,
    cluster: Cluster,
}

fn ports() -> [ServicePort; 2] {
    [HTTP, UDP].map(ServicePort::without_node_port)
}

impl Fixture {
    /// One Pod on the first node, a Service of another proxy, and the second node, which owns all
    /// addresses that are routed to it.
    fn new(title: &str) -> Self {
        let cluster = Cluster::new(title, &[0]).unwrap();
        let manifest = FOREIGN.manifest(&ports()).label(LABEL, "theirs");
        cluster.lab.apply("foreign.yaml", manifest).unwrap();
        let addresses = [LATE, FOREIGN, NOBODY]
            .into_iter()
            .flat_map(|service| service.cluster_ips());
        let servers = addresses
            .map(|address| serve_elsewhere(&cluster, address))
            .collect();
        Self {
            _servers: servers,
            cluster,
        }
    }

    fn start_agent(&self, socket_lb: SocketLb, xdp: Xdp, arguments: &[&str]) -> Agent {
        let options = AgentOptions {
            xdp: Some(xdp),
            ..options(socket_lb, arguments)
        };
        self.cluster.nodes[0].start_agent(&options).unwrap()
    }

    /// A Pod, a process of the node and a client outside.
    fn clients(&self) -> [&Machine; 3] {
        let Cluster {
            client,
            outside,
            nodes: [node, ..],
            ..
        } = &self.cluster;
        [client, node.host(), outside]
    }

    #[track_caller]
    fn assert_all(&self, service: Published, expected: &Outcome) {
        for address in service.cluster_ips() {
            for from in self.clients() {
                from.expect_tcp((address, HTTP.port).into(), expected).unwrap();
                from.expect_udp((address, UDP.port).into(), expected).unwrap();
            }
        }
    }

    fn dropped(&self) -> u64 {
        self.cluster.nodes[0].reason_count("unallocated_address").unwrap()
    }

    fn wait_for_rows(&self, service: Published, are_there: bool) {
        wait_for("the rows of a Service", PATIENCE, || {
            let image = self.cluster.nodes[0].map_image().ok()?;
            let mut addresses = service.cluster_ips().into_iter();
            let has_row = |address: IpAddr| image.frontends.keys().any(|key| key.address() == address);
            // Until then a datagram from a reused port may follow the flow of the datagram before
            // it.
            let mut backends = image.backends4.values().chain(image.backends6.values());
            let is_over = backends.all(|backend| backend.state != BackendState::Absent);
            (addresses.all(|address| has_row(address) == are_there) && is_over).then_some(())
        })
        .unwrap();
    }

    fn publish(&self, service: Published) {
        let server = self.cluster.servers[0].place();
        self.cluster.publish(service, &ports(), &[server]).unwrap();
    }

    fn withdraw(&self, service: Published) {
        self.cluster
            .lab
            .remove(&format!("{}.yaml", service.name))
            .unwrap();
    }

    fn unallocated_addresses_are_dropped_and_those_of_services_are_not(&self) {
        let elsewhere = Outcome::pods(["node-2"]);
        // The programs drop packets of every client, at the Pod's and the network's device of the
        // first node.
        let before = self.dropped();
        self.assert_all(NOBODY, &Outcome::Lost);
        assert!(self.dropped() >= before + 12, "{before} {}", self.dropped());
        self.assert_all(FOREIGN, &elsewhere);
        // An address that is allocated later is served immediately; a released one is unallocated
        // again.
        self.assert_all(LATE, &Outcome::Lost);
        self.publish(LATE);
        self.wait_for_rows(LATE, true);
        let [pod, _, outside] = self.clients();
        for address in LATE.cluster_ips() {
            for from in [pod, outside] {
                from.expect_tcp((address, HTTP.port).into(), &Outcome::pods(["web-1"]))
                    .unwrap();
                from.expect_udp((address, UDP.port).into(), &Outcome::pods(["web-1"]))
                    .unwrap();
            }
        }
        self.withdraw(LATE);
        self.wait_for_rows(LATE, false);
        self.assert_all(LATE, &Outcome::Lost);
    }
}

/// Adds an address to the second node. The first node routes packets to it that it does not handle
/// itself, and the outside network routes them to the first node.
fn serve_elsewhere(cluster: &Cluster, address: IpAddr) -> Process {
    let [first, second, _] = &cluster.nodes;
    let [via4, via6] = second.host().addresses().both();
    let via = if address.is_ipv4() { via4 } else { via6 };
    // Without duplicate address detection, so that a server can listen on it immediately.
    let how = if address.is_ipv4() { "" } else { "nodad" };
    let line = format!("address add {address} dev lo {how}");
    second.host().namespace().ip(&[line]).unwrap();
    let line = format!("route add {address} via {via}");
    first.host().namespace().ip(&[line]).unwrap();
    cluster.lab.route(&address.to_string(), &[first]).unwrap();
    let server = second.host().serve().at(address);
    server.http(HTTP.port).udp(UDP.port).start().unwrap()
}

fn check(title: &str, socket_lb: SocketLb, xdp: Xdp) {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new(title);
    // Without the option, a network with the same addresses stays reachable.
    let agent = fixture.start_agent(socket_lb, xdp, &[]);
    fixture.assert_all(NOBODY, &Outcome::pods(["node-2"]));
    agent.kill();
    let agent = fixture.start_agent(socket_lb, xdp, &[OPTION]);
    fixture.unallocated_addresses_are_dropped_and_those_of_services_are_not();
    agent.kill();
    // The programs of the killed agent continue to drop until the next agent starts.
    fixture.assert_all(NOBODY, &Outcome::Lost);
    let _agent = fixture.start_agent(socket_lb, xdp, &[]);
    fixture.assert_all(NOBODY, &Outcome::pods(["node-2"]));
}

#[test]
fn unallocated_addresses_are_dropped_through_tc() {
    check("cidr-tc", SocketLb::Off, Xdp::Off);
}

#[test]
fn unallocated_addresses_are_dropped_through_generic_xdp_and_sockets() {
    check("cidr-xdp", SocketLb::All, Xdp::Generic);
}

#[test]
fn commands_show_service_cidrs_and_what_they_drop() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("cidr-commands");
    let _agent = fixture.start_agent(SocketLb::All, Xdp::Off, &[OPTION]);
    let (_, status) = json(&fixture.cluster, "status");
    assert_eq!(status["serviceCidrs"], serde_json::json!(CIDRS));
    for (address, cidr) in NOBODY.cluster_ips().into_iter().zip(CIDRS) {
        let to = std::net::SocketAddr::new(address, HTTP.port).to_string();
        for from in fixture.clients() {
            let [v4, v6] = from.addresses().both();
            let source = if address.is_ipv4() { v4 } else { v6 }.to_string();
            for protocol in ["tcp", "udp"] {
                let (code, said) = json(&fixture.cluster, &format!("explain {protocol} {source} {to}"));
                assert_eq!((code, &said["verdict"]), (1, &"dropped".into()), "{said}");
                assert_eq!(said["reason"], "unallocated_address", "{said}");
                let steps = said["steps"].as_array().unwrap();
                let expected = format!("dropped: unallocated address of the Service CIDR {cidr}");
                assert_eq!(steps.last().unwrap()["finding"], expected, "{said}");
            }
        }
    }
}
