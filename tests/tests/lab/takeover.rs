//! Connections of another service proxy continue when the agent starts, and when the rules of that
//! proxy are removed.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_agent::datapath::live::LiveMaps;
use lb_agent::datapath::pins::Pins;
use lb_tests::lab::cluster::{ECHO, HTTP, SERVICE_FILE, UDP, load_balancer_addresses, service, vips};
use lb_tests::lab::{Cluster, Machine, SocketLb, Talk, require_privileges, wait_for};

/// Connections of each kind: enough that the agent would not choose the same one of three Pods for
/// all of them by chance.
const CONNECTIONS: usize = 8;
/// How long it may take until the agent notices that connections have ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rules that a CNI leaves in place: without any rule that translates, the kernel tracks no
/// connections.
const BASE: &str = "add table inet cni
add chain inet cni postrouting { type nat hook postrouting priority 100 ; }
add rule inet cni postrouting ip daddr 192.0.2.250 masquerade
add table inet proxy
add chain inet proxy prerouting { type nat hook prerouting priority -100 ; }
";

/// Rules that lead TCP and UDP connections to these addresses and ports to one Pod, like those of
/// kube-proxy.
fn rules(frontends: impl IntoIterator<Item = (IpAddr, [u16; 2])>, pod: &Machine) -> String {
    let mut rules = BASE.to_owned();
    for (address, ports) in frontends {
        let (family, pod) = match address {
            IpAddr::V4(_) => ("ip", pod.addresses().ipv4.to_string()),
            IpAddr::V6(_) => ("ip6", format!("[{}]", pod.addresses().ipv6)),
        };
        for ((protocol, port), target) in ["tcp", "udp"].iter().zip(ports).zip([ECHO, UDP]) {
            rules += &format!(
                "add rule inet proxy prerouting {family} daddr {address} {protocol} dport {port} dnat {family} to {pod}:{}\n",
                target.target_port
            );
        }
    }
    rules
}

/// Adds rules to the packet filter of a machine.
pub(crate) fn filter(machine: &Machine, lines: &str) -> Result<()> {
    machine.namespace().run(|| {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        nft.stdin.take().unwrap().write_all(lines.as_bytes())?;
        let status = nft.wait()?;
        ensure!(status.success(), "nft: {status}: {lines}");
        Ok(())
    })
}

/// Opens connections from outside and from a Pod, by TCP and UDP, in both families.
fn connections(cluster: &Cluster) -> Vec<(Talk, String)> {
    let mut open = Vec::new();
    for (client, addresses) in [
        (&cluster.outside, load_balancer_addresses()),
        (&cluster.client, vips()),
    ] {
        for address in addresses {
            for _ in 0..CONNECTIONS {
                open.push(client.connect(address, ECHO.port).unwrap());
                open.push(client.connect_udp(address, UDP.port).unwrap());
            }
        }
    }
    open
}

fn passing(cluster: &Cluster) -> usize {
    let maps = LiveMaps::open(&Pins::new(cluster.nodes[0].pin_path()).maps()).unwrap();
    maps.ipv4().passing_flows().unwrap().len() + maps.ipv6().passing_flows().unwrap().len()
}

/// Asserts that this Pod still serves the connections.
#[track_caller]
fn expect(open: &mut [(Talk, String)], pod: &Machine, when: &str) {
    for (talk, server) in open {
        assert_eq!(server, pod.name(), "before");
        assert_eq!(talk.server().unwrap(), pod.name(), "{when}");
    }
}

#[test]
fn connections_of_another_proxy_continue() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("takeover", &[0, 0, 0]).unwrap();
    let manifest = service().ingress(&load_balancer_addresses(), None);
    cluster.lab.apply(SERVICE_FILE, manifest).unwrap();
    cluster.route_load_balancer(&[0]).unwrap();
    let node = cluster.nodes[0].host();
    let first = &cluster.servers[0].pod;
    let frontends = vips().into_iter().chain(load_balancer_addresses());
    let frontends = frontends.map(|address| (address, [ECHO.port, UDP.port]));
    filter(node, &rules(frontends, first)).unwrap();
    let mut open = connections(&cluster);

    let agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    expect(&mut open, first, "the agent was started");
    // Each connection has an entry where packets from outside enter, and one where packets of Pods
    // enter.
    assert_eq!(passing(&cluster), 2 * open.len());
    filter(node, "flush table inet proxy\n").unwrap();
    expect(&mut open, first, "the rules are removed");
    let agent = agent.restart().unwrap();
    expect(&mut open, first, "the agent was restarted");

    for (client, addresses) in [
        (&cluster.outside, load_balancer_addresses()),
        (&cluster.client, vips()),
    ] {
        for address in addresses {
            let report = client.http(address, HTTP.port).count(60).run().unwrap();
            assert_eq!(report.answered(), 60, "{address}: {report:?}");
            assert_eq!(report.answers.len(), 3, "{address}: {report:?}");
        }
    }
    // After a connection has ended, its port may reach another Pod.
    node.namespace()
        .sysctl(&[("netfilter/nf_conntrack_udp_timeout_stream", "1")])
        .unwrap();
    expect(&mut open, first, "the next datagram is the last");
    drop(open);
    wait_for("the flows to be removed", PATIENCE, || {
        (passing(&cluster) == 0).then_some(())
    })
    .unwrap();
    agent.stop().unwrap();
}

/// The node masquerades the client: the Pod of another node answers to the node.
#[test]
fn masqueraded_connections_of_another_proxy_continue() {
    if !require_privileges() {
        return;
    }
    let cluster = Cluster::new("takeover-port", &[1, 0, 0]).unwrap();
    let node = cluster.nodes[0].host();
    let first = &cluster.servers[0].pod;
    let ports = [ECHO, UDP].map(|port| port.node_port.unwrap());
    let addresses = node.addresses().both();
    filter(node, &rules(addresses.map(|address| (address, ports)), first)).unwrap();
    filter(node, "add rule inet cni postrouting ct status dnat masquerade\n").unwrap();
    let mut open = Vec::new();
    for address in addresses {
        for _ in 0..CONNECTIONS {
            open.push(cluster.outside.connect(address, ports[0]).unwrap());
            open.push(cluster.outside.connect_udp(address, ports[1]).unwrap());
        }
    }

    let agent = cluster.start_agent(SocketLb::Off, &[]).unwrap();
    expect(&mut open, first, "the agent was started");
    filter(node, "flush table inet proxy\n").unwrap();
    expect(&mut open, first, "the rules are removed");
    let agent = agent.restart().unwrap();
    expect(&mut open, first, "the agent was restarted");
    for address in addresses {
        let report = cluster.outside.http(address, HTTP.node_port.unwrap());
        let report = report.count(60).run().unwrap();
        assert_eq!(report.answered(), 60, "{address}: {report:?}");
        assert_eq!(report.answers.len(), 3, "{address}: {report:?}");
    }
    expect(&mut open, first, "there are new connections");
    agent.stop().unwrap();
}
