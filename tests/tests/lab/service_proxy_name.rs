//! Services with the label `service.kubernetes.io/service-proxy-name` are handled only by the agent
//! with that name, which handles no others.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_agent::maps::{BackendState, FrontendKey};
use lb_tests::lab::cluster::{HTTP, UDP};
use lb_tests::lab::{
    Agent, Cluster, Outcome, Process, Published, ServicePort, SocketLb, require_privileges, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(10);
const LABEL: &str = "service.kubernetes.io/service-proxy-name";

const PLAIN: Published = Published::new("plain", 61);
const OURS: Published = Published::new("ours", 62);
const THEIRS: Published = Published::new("theirs", 63);
const ALL: [Published; 3] = [PLAIN, OURS, THEIRS];

/// Three Services with one Pod on the first node. The second node owns their addresses and answers
/// packets that the first node leaves alone.
struct Fixture {
    _servers: Vec<Process>,
    cluster: Cluster,
}

fn ports() -> [ServicePort; 2] {
    [HTTP, UDP].map(ServicePort::without_node_port)
}

fn addresses(service: Published) -> [IpAddr; 4] {
    let ([a, b], [c, d]) = (service.cluster_ips(), service.addresses());
    [a, b, c, d]
}

impl Fixture {
    fn new(title: &str) -> Self {
        let cluster = Cluster::new(title, &[0]).unwrap();
        for service in ALL {
            cluster
                .publish(service, &ports(), &[cluster.servers[0].place()])
                .unwrap();
        }
        let [first, second, _] = &cluster.nodes;
        let serve = |address: IpAddr| {
            let host = second.host();
            let [via4, via6] = host.addresses().both();
            // Without duplicate address detection, so that a server can listen on it immediately.
            let (via, how) = if address.is_ipv4() {
                (via4, "")
            } else {
                (via6, "nodad")
            };
            let line = format!("address add {address} dev lo {how}");
            host.namespace().ip(&[line]).unwrap();
            let line = format!("route add {address} via {via}");
            first.host().namespace().ip(&[line]).unwrap();
            host.serve()
                .at(address)
                .http(HTTP.port)
                .udp(UDP.port)
                .start()
                .unwrap()
        };
        let fixture = Self {
            _servers: ALL.into_iter().flat_map(addresses).map(serve).collect(),
            cluster,
        };
        fixture.label(OURS, Some("ours"));
        fixture.label(THEIRS, Some("theirs"));
        fixture
    }

    fn label(&self, service: Published, name: Option<&str>) {
        let manifest = service.manifest(&ports());
        let manifest = match name {
            Some(name) => manifest.label(LABEL, name),
            None => manifest,
        };
        let file = format!("{}.yaml", service.name);
        self.cluster.lab.apply(&file, manifest).unwrap();
    }

    fn start_agent(&self, name: Option<&str>) -> Agent {
        let option = name.map(|name| format!("--service-proxy-name={name}"));
        let arguments: Vec<&str> = option.iter().map(String::as_str).collect();
        self.cluster.start_agent(SocketLb::Host, &arguments).unwrap()
    }

    /// Waits until the maps contain these Services and no others.
    fn wait_for_services(&self, expected: &[Published]) {
        let expected: BTreeSet<IpAddr> = expected.iter().copied().flat_map(addresses).collect();
        let all: BTreeSet<IpAddr> = ALL.into_iter().flat_map(addresses).collect();
        wait_for(&format!("rows of {expected:?}"), PATIENCE, || {
            let image = self.cluster.nodes[0].map_image().ok()?;
            let rows: BTreeSet<IpAddr> = image.frontends.keys().map(FrontendKey::address).collect();
            // Until then a datagram from a reused port may follow the flow of the datagram before
            // it.
            let mut backends = image.backends4.values().chain(image.backends6.values());
            let is_over = backends.all(|backend| backend.state != BackendState::Absent);
            (&rows & &all == expected && is_over).then_some(())
        })
        .unwrap();
    }

    /// Asserts that the Pod answers for these Services and no others.
    #[track_caller]
    fn assert_served(&self, expected: &[Published]) {
        self.wait_for_services(expected);
        let host = self.cluster.nodes[0].host();
        for service in ALL {
            let name = if expected.contains(&service) {
                "web-1"
            } else {
                "node-2"
            };
            let outcome = Outcome::pods([name]);
            for address in addresses(service) {
                for from in [&self.cluster.client, &self.cluster.outside, host] {
                    // The outside network has no route to ClusterIPs.
                    if from.name() == "outside" && service.cluster_ips().contains(&address) {
                        continue;
                    }
                    from.expect_tcp((address, HTTP.port).into(), &outcome).unwrap();
                    from.expect_udp((address, UDP.port).into(), &outcome).unwrap();
                }
            }
        }
    }
}

#[test]
fn an_agent_serves_only_services_with_its_name() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("proxy-name");
    let agent = fixture.start_agent(None);
    fixture.assert_served(&[PLAIN]);
    // The agent with the name removes the Services of the other one.
    agent.kill();
    let agent = fixture.start_agent(Some("ours"));
    fixture.assert_served(&[OURS]);
    agent.kill();
    let _agent = fixture.start_agent(None);
    fixture.assert_served(&[PLAIN]);
}

#[test]
fn services_follow_changes_of_the_label() {
    if !require_privileges() {
        return;
    }
    let fixture = Fixture::new("proxy-label");
    let agent = fixture.start_agent(None);
    fixture.label(OURS, None);
    fixture.wait_for_services(&[PLAIN, OURS]);
    fixture.label(PLAIN, Some("theirs"));
    fixture.assert_served(&[OURS]);
    agent.kill();
    let _agent = fixture.start_agent(Some("theirs"));
    fixture.wait_for_services(&[PLAIN, THEIRS]);
    fixture.label(OURS, Some("theirs"));
    fixture.label(THEIRS, Some("ours"));
    fixture.assert_served(&[PLAIN, OURS]);
}
