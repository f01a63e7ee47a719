//! VLAN devices: clients, Pods and foreign machines in VLANs. Not every kernel supports such
//! devices; those of the virtual machines do.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::lab::cluster::{HTTP, SERVICE_FILE, STREAM, UDP, load_balancer_addresses, options, service};
use lb_tests::lab::{AgentOptions, Cluster, Namespace, SocketLb, Xdp, require_privileges};

/// Timeout of an answer: processors may be emulated.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tags of a frame, the outer one first: protocol and VLAN.
type Tags = &'static [(&'static str, u16)];

const UNTAGGED: Tags = &[];
const ONE: Tags = &[("802.1Q", 20)];
const TWO: Tags = &[("802.1ad", 30), ("802.1Q", 31)];

/// A network of VLAN devices, with its address prefixes for both families.
struct Network {
    tags: Tags,
    ipv4: &'static str,
    ipv6: &'static str,
}

impl Network {
    /// Returns `ip` commands that add a device to this network: they create a VLAN device for each
    /// tag, and add addresses to the innermost one. Also returns the name of that one.
    fn join(&self, device: &str, host: u8) -> (Vec<String>, String) {
        let mut lines = Vec::new();
        let mut lower = device.to_owned();
        for (protocol, vlan) in self.tags {
            let upper = format!("v{vlan}{device}");
            lines.push(format!(
                "link add link {lower} name {upper} type vlan protocol {protocol} id {vlan}"
            ));
            lines.push(format!("link set {upper} up"));
            lower = upper;
        }
        lines.push(format!("address add {}.{host}/24 dev {lower}", self.ipv4));
        lines.push(format!("address add {}::{host}/64 dev {lower} nodad", self.ipv6));
        (lines, lower)
    }

    fn addresses(&self, host: u8) -> [String; 2] {
        [format!("{}.{host}", self.ipv4), format!("{}::{host}", self.ipv6)]
    }
}

fn ip(namespace: &Namespace, lines: &[String]) {
    namespace.ip(lines).unwrap();
}

/// Routes these destinations through a host of a network of VLAN devices.
fn route(namespace: &Namespace, networks: [String; 2], network: &Network, host: u8) {
    let gateways = network.addresses(host);
    let lines: Vec<String> = networks
        .iter()
        .zip(gateways)
        .map(|(to, gateway)| format!("route replace {to} via {gateway}"))
        .collect();
    ip(namespace, &lines);
}

fn agent(xdp: Xdp) -> AgentOptions {
    let devices = ["--network-device=eth0", "--network-device=v*"];
    AgentOptions {
        xdp: Some(xdp),
        ..options(SocketLb::Off, &devices)
    }
}

/// The client, the Pod, or both are in a VLAN.
#[test]
fn clients_and_pods_in_vlans_are_served() {
    if !require_privileges() {
        return;
    }
    // XDP leaves frames with any tag to TC.
    let both: &[Xdp] = &[Xdp::Off, Xdp::Generic];
    for (to_client, to_pod, hooks) in [
        (ONE, UNTAGGED, both),
        (UNTAGGED, ONE, both),
        (ONE, TWO, &[Xdp::Off]),
        (TWO, UNTAGGED, &[Xdp::Off]),
        (TWO, ONE, &[Xdp::Generic]),
    ] {
        for &xdp in hooks {
            let cluster = Cluster::new("vlan", &[0, 1]).unwrap();
            let manifest = service().ingress(&load_balancer_addresses(), None);
            cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
            cluster.route_load_balancer(&[0]).unwrap();
            let [node, other, _] = &cluster.nodes;
            let fabric = cluster.lab.fabric();
            // A veth device keeps the tag outside the frame, where XDP cannot see it (README,
            // "Limits"). This puts the tag into the frame, like `ethtool -K DEVICE rxvlan off` for
            // a network card.
            for (namespace, device) in [
                (fabric, node.host().far_device()),
                (fabric, other.host().far_device()),
                (node.host().namespace(), "eth0"),
                (other.host().namespace(), "eth0"),
            ] {
                // Two tags in a frame would exceed the MTU of the devices.
                namespace.offload(device, &["tx-vlan-hw-insert", "off"]).unwrap();
            }
            let clients = Network {
                tags: to_client,
                ipv4: "172.31.1",
                ipv6: "fd00:31:1",
            };
            if !clients.tags.is_empty() {
                ip(fabric, &clients.join(node.host().far_device(), 1).0);
                ip(node.host().namespace(), &clients.join("eth0", 2).0);
                let vips = load_balancer_addresses().map(|vip| vip.to_string());
                route(fabric, vips, &clients, 2);
                let own = cluster.outside.addresses().both().map(|own| own.to_string());
                route(node.host().namespace(), own, &clients, 1);
            }
            let pods = Network {
                tags: to_pod,
                ipv4: "172.31.2",
                ipv6: "fd00:31:2",
            };
            if !pods.tags.is_empty() {
                ip(node.host().namespace(), &pods.join("eth0", 2).0);
                ip(other.host().namespace(), &pods.join("eth0", 3).0);
                let (cidr4, cidr6) = other.pod_cidrs();
                route(node.host().namespace(), [cidr4, cidr6], &pods, 3);
            }
            let _agent = node.start_agent(&agent(xdp)).unwrap();
            for vip in load_balancer_addresses() {
                let case = format!("{to_client:?} {to_pod:?} {xdp} {vip}");
                let report = cluster
                    .outside
                    .http(vip, HTTP.port)
                    .count(20)
                    .timeout(PATIENCE)
                    .run()
                    .unwrap();
                assert_eq!(report.answered(), 20, "{case}: {report:?}");
                assert_eq!(report.answers.len(), 2, "{case}: {report:?}");
                let report = cluster
                    .outside
                    .udp(vip, UDP.port)
                    .sockets(20)
                    .timeout(PATIENCE)
                    .run()
                    .unwrap();
                assert_eq!(report.answered(), 20, "{case}: {report:?}");
                for _ in 0..4 {
                    let report = cluster.outside.stream(vip, STREAM.port).run().unwrap();
                    assert_eq!(report.bytes, 1 << 20, "{case}");
                }
                // The node answers packets to unknown ports through the device on which they
                // arrived.
                let report = cluster.outside.http(vip, 9).timeout(PATIENCE).run().unwrap();
                let is_refused = report.errors.contains_key("connect: ConnectionRefused");
                assert!(is_refused, "{case}: {report:?}");
            }
        }
    }
}

/// A virtual machine behind a bridge in a VLAN has the node's addresses: the VLAN is a foreign
/// network.
#[test]
fn a_machine_in_a_vlan_with_the_nodes_address_is_left_alone() {
    if !require_privileges() {
        return;
    }
    for xdp in [Xdp::Off, Xdp::Generic] {
        let cluster = Cluster::new("vlan-machine", &[0]).unwrap();
        let [machine, client] = ["machine", "stranger"].map(|name| cluster.lab.outside_client(name).unwrap());
        let [node, ..] = &cluster.nodes;
        let [node4, node6] = node.host().addresses().both();
        let port = node.host().far_device();
        ip(
            node.host().namespace(),
            &[
                "link add link eth0 name v20 type vlan id 20".to_owned(),
                "link add machines type bridge forward_delay 0 mcast_snooping 0".to_owned(),
                "link set machines up".to_owned(),
                "link set v20 master machines up".to_owned(),
                format!(
                    "link add tap0 type veth peer name eth1 netns {}",
                    machine.namespace().name()
                ),
                "link set tap0 master machines up".to_owned(),
            ],
        );
        ip(
            machine.namespace(),
            &[
                "link set eth1 up".to_owned(),
                format!("address add {node4}/24 dev eth1"),
                format!("address add {node6}/64 dev eth1 nodad"),
            ],
        );
        ip(
            cluster.lab.fabric(),
            &[
                format!("link add link {port} name eth1 type vlan id 20"),
                format!("link set eth1 netns {}", client.namespace().name()),
            ],
        );
        ip(
            client.namespace(),
            &[
                "link set eth1 up".to_owned(),
                "address add 172.30.0.99/24 dev eth1".to_owned(),
                "address add fd00:30::99/64 dev eth1 nodad".to_owned(),
            ],
        );
        let [http, udp] = [HTTP, UDP].map(|port| port.node_port.unwrap());
        let _server = machine.serve().http(http).udp(udp).start().unwrap();
        let _agent = node.start_agent(&agent(xdp)).unwrap();
        for address in [node4, node6] {
            assert_answers(&client, address, "machine");
            assert_answers(&cluster.outside, address, "web-1");
        }
    }
}

#[track_caller]
fn assert_answers(client: &lb_tests::lab::Machine, address: IpAddr, name: &str) {
    let [http, udp] = [HTTP, UDP].map(|port| port.node_port.unwrap());
    let report = client
        .http(address, http)
        .count(20)
        .timeout(PATIENCE)
        .run()
        .unwrap();
    assert_eq!(report.answers.get(name), Some(&20), "{address}: {report:?}");
    let report = client
        .udp(address, udp)
        .sockets(20)
        .timeout(PATIENCE)
        .run()
        .unwrap();
    assert_eq!(report.answers.get(name), Some(&20), "{address}: {report:?}");
}
