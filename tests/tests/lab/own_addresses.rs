//! A node whose own addresses are added, replaced and deleted while the agent runs, as with DHCP
//! leases.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lb_agent::maps::FrontendKey;
use lb_tests::api_server::ApiServer;
use lb_tests::lab::cluster::{HTTP, SERVICE, SERVICE_FILE, SLICES_FILE, UDP, options, vips};
use lb_tests::lab::{
    AgentOptions, EndpointManifest, EndpointSliceManifest, Lab, Machine, Node, Process, ServiceManifest,
    SocketLb, require_privileges, wait_for,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// This includes the time to load the programs, which may take seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The gateways that [`Lab`] gives nodes.
const GATEWAYS: [&str; 2] = ["172.30.0.1", "fd00:30::1"];

/// An API server with the node's objects.
struct Api {
    server: ApiServer,
    kubeconfig: PathBuf,
    _directory: TempDir,
    _runtime: Runtime,
}

/// A node with a Pod that serves a Service with NodePorts, and a client outside.
struct Scene {
    client: Machine,
    node: Node,
    /// If `None`, the objects are in manifests.
    api: Option<Api>,
    _server: Process,
    lab: Lab,
}

impl Scene {
    fn new(with_api: bool) -> Self {
        let lab = Lab::new("own-addresses").unwrap();
        let node = lab.node("node-1").unwrap();
        let pod = node.pod("web-1").unwrap();
        let server = pod
            .serve()
            .http(HTTP.target_port)
            .udp(UDP.target_port)
            .start()
            .unwrap();
        let scene = Self {
            client: lab.outside_client("outside").unwrap(),
            api: with_api.then(|| Api::start(&node)),
            _server: server,
            node,
            lab,
        };
        let ports = [HTTP, UDP];
        let service = ServiceManifest::new(SERVICE, &vips(), &ports);
        scene.apply(SERVICE_FILE, service);
        let slices = EndpointSliceManifest::new("web-1", SERVICE, &ports);
        let endpoint = EndpointManifest::of(&pod).node(scene.node.name());
        scene.apply(SLICES_FILE, slices.endpoint(endpoint));
        scene
    }

    fn apply(&self, file: &str, manifest: impl Display) {
        let Some(api) = &self.api else {
            return self.lab.apply(file, manifest).unwrap();
        };
        let text = manifest.to_string();
        for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
            let object: Value = serde_norway::from_str(document).unwrap();
            api.server.apply(&object).unwrap();
        }
    }

    /// Applies a Node object with these addresses.
    fn tell_node(&self, addresses: &[IpAddr]) {
        self.apply("node.yaml", self.node.manifest().addresses(addresses));
    }

    fn agent_options(&self) -> AgentOptions {
        AgentOptions {
            kubeconfig: self.api.as_ref().map(|api| api.kubeconfig.clone()),
            ..options(SocketLb::Off, &["--nodeport-addresses=primary"])
        }
    }

    fn ip(&self, lines: &[String]) {
        self.node.host().namespace().ip(lines).unwrap();
    }

    fn remove_addresses(&self, addresses: [IpAddr; 2]) {
        self.ip(&addresses.map(|address| format!("address delete {} dev eth0", with_prefix(address))));
    }

    fn add_addresses(&self, addresses: [IpAddr; 2]) {
        self.ip(&addresses.map(|address| {
            let flags = if address.is_ipv6() { "nodad" } else { "" };
            format!("address replace {} dev eth0 {flags}", with_prefix(address))
        }));
        self.ip(&GATEWAYS.map(|gateway| {
            let all = if gateway.contains(':') {
                "::/0"
            } else {
                "0.0.0.0/0"
            };
            format!("route replace {all} via {gateway} dev eth0")
        }));
    }

    /// Waits until NodePorts exist at these addresses and no others, and uses them.
    #[track_caller]
    fn assert_node_ports_at(&self, expected: &[IpAddr]) {
        let expected: BTreeSet<IpAddr> = expected.iter().copied().collect();
        let start = Instant::now();
        wait_for(&format!("NodePorts at {expected:?}"), PATIENCE, || {
            let image = self.node.map_image().ok()?;
            let found = image.frontends.into_keys().filter_map(|key| match key {
                FrontendKey::Port(address, port, _) => (Some(port) == HTTP.node_port).then_some(address),
                FrontendKey::Wildcard(_) => None,
            });
            (found.collect::<BTreeSet<_>>() == expected).then_some(())
        })
        .unwrap();
        println!("NodePorts at {expected:?} after {:?}", start.elapsed());
        for address in expected {
            let report = self
                .client
                .http(address, HTTP.node_port.unwrap())
                .count(10)
                .run()
                .unwrap();
            assert_eq!(report.answered(), 10, "{address}: {report:?}");
            let port = UDP.node_port.unwrap();
            let report = self.client.udp(address, port).sockets(10).run().unwrap();
            assert_eq!(report.answered(), 10, "{address}: {report:?}");
            assert_eq!(report.sources, [SocketAddr::new(address, port)].into());
        }
    }
}

impl Api {
    fn start(node: &Node) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let start = || runtime.block_on(ApiServer::start("secret"));
        let server = node.host().namespace().run(start).unwrap();
        Self {
            kubeconfig: server.write_kubeconfig(directory.path(), "secret").unwrap(),
            server,
            _directory: directory,
            _runtime: runtime,
        }
    }
}

fn with_prefix(address: IpAddr) -> String {
    let length = if address.is_ipv6() { 64 } else { 24 };
    format!("{address}/{length}")
}

/// The addresses that replace those of the node.
fn others() -> [IpAddr; 2] {
    ["172.30.0.77", "fd00:30::77"].map(|text| text.parse().unwrap())
}

#[test]
fn node_ports_follow_addresses_without_a_node_object() {
    if !require_privileges() {
        return;
    }
    for with_api in [false, true] {
        let scene = Scene::new(with_api);
        let own = scene.node.host().addresses().both();
        // The agent starts before the node has any address.
        scene.remove_addresses(own);
        let _agent = scene.node.start_agent(&scene.agent_options()).unwrap();
        scene.assert_node_ports_at(&[]);
        scene.add_addresses(own);
        scene.assert_node_ports_at(&own);
        scene.remove_addresses(own);
        scene.add_addresses(others());
        scene.assert_node_ports_at(&others());
        // A second address changes nothing while the first one exists. With IPv4, the kernel
        // deletes it together with the first.
        scene.add_addresses(own);
        scene.assert_node_ports_at(&others());
        scene.remove_addresses(others());
        scene.add_addresses(own);
        scene.assert_node_ports_at(&own);
        scene.remove_addresses(own);
        scene.assert_node_ports_at(&[]);
    }
}

#[test]
fn node_ports_follow_the_node_object() {
    if !require_privileges() {
        return;
    }
    for with_api in [false, true] {
        let scene = Scene::new(with_api);
        let own = scene.node.host().addresses().both();
        scene.remove_addresses(own);
        scene.tell_node(&[]);
        let _agent = scene.node.start_agent(&scene.agent_options()).unwrap();
        scene.assert_node_ports_at(&[]);
        // Until the Node object contains addresses, those of the devices are used.
        scene.add_addresses(own);
        scene.assert_node_ports_at(&own);
        scene.tell_node(&own);
        scene.assert_node_ports_at(&own);
        // From then on, those of the Node object are used.
        scene.add_addresses(others());
        scene.tell_node(&others());
        scene.assert_node_ports_at(&others());
        scene.remove_addresses(own);
        scene.add_addresses(others_again());
        scene.assert_node_ports_at(&others());
    }
}

/// Further addresses, added only to create the routes again.
fn others_again() -> [IpAddr; 2] {
    ["172.30.0.78", "fd00:30::78"].map(|text| text.parse().unwrap())
}
