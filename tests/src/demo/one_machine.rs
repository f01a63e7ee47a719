//! A machine without a cluster. Its own process serves the Service, and forwarding is off.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::cluster::{Cluster, POD_PORT};
use super::load::{failed, requests};
use super::{REFRESH, Screen};
use crate::lab::report::HttpReport;
use crate::lab::{Agent, AgentOptions, Machine, Node};
use crate::stop::Stop;

const NAME: &str = "alone";
const NODE_PORT: u16 = 30081;
const VIPS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 20)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x20)),
];
/// The number of requests that each client sends to an address.
const REQUESTS: u32 = 20;
/// The time limit for the agent to get in sync.
const PATIENCE: Duration = Duration::from_secs(60);

/// The results of its clients: answers by server, and all failures.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub(super) requests: u64,
    pub(super) answers: BTreeMap<String, u64>,
    pub(super) failures: Vec<String>,
}

/// Starts a server and an agent on such a machine. Sends requests to it from outside and from
/// itself.
pub(super) fn play(cluster: &Cluster, screen: &Screen, stop: &Stop) -> Result<Served> {
    screen.heading("7/8  One machine without a cluster: its own process is the Service's endpoint");
    screen.print(
        "Look at the endpoint's address, which is the machine's own: no Pod, no node's name, and\n\
         forwarding is off.",
    );
    let node = cluster.lab.node(NAME)?;
    let host = node.host();
    host.namespace()
        .sysctl(&[("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")])?;
    let _server = host.serve().http(POD_PORT).start()?;
    let manifests = manifests(host);
    for line in manifests.lines() {
        screen.print(&format!("    {line}"));
    }
    cluster.lab.apply("alone.yaml", manifests)?;
    let _agent = start_agent(&node, screen, stop)?;
    let outside = host
        .addresses()
        .both()
        .map(|own| (&cluster.outside, own, NODE_PORT));
    let itself = VIPS.map(|vip| (host, vip, super::cluster::PORT));
    let mut served = Served::default();
    for (from, address, port) in outside.into_iter().chain(itself) {
        let report = from.http(address, port).count(REQUESTS).run()?;
        served.add(screen, from.name(), SocketAddr::new(address, port), &report);
    }
    Ok(served)
}

fn start_agent(node: &Node, screen: &Screen, stop: &Stop) -> Result<Agent> {
    let start = Instant::now();
    let mut agent = node.start_agent_unready(&AgentOptions::default())?;
    while !agent.is_in_sync() {
        if start.elapsed() > PATIENCE || agent.process().has_ended() {
            bail!("the agent of {NAME} is not in sync\n{}", agent.log());
        }
        screen.show("the verifier checks the programs ...".to_owned());
        stop.pause(REFRESH)?;
    }
    screen.keep("");
    Ok(agent)
}

fn manifests(host: &Machine) -> String {
    let [vip4, vip6] = VIPS;
    let [own4, own6] = host.addresses().both();
    let slice = |family: &str, own: IpAddr| {
        let suffix = family.to_lowercase();
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {NAME}-{suffix}
  labels: {{kubernetes.io/service-name: {NAME}}}
addressType: {family}
endpoints:
- addresses: ['{own}']
ports:
- {{port: {POD_PORT}}}
"
        )
    };
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {NAME}
spec:
  type: NodePort
  clusterIPs: [{vip4}, '{vip6}']
  ipFamilies: [IPv4, IPv6]
  ports:
  - {{port: {}, targetPort: {POD_PORT}, nodePort: {NODE_PORT}}}
{}{}",
        super::cluster::PORT,
        slice("IPv4", own4),
        slice("IPv6", own6),
    )
}

impl Served {
    fn add(&mut self, screen: &Screen, from: &str, to: SocketAddr, report: &HttpReport) {
        let (asked, unanswered) = (requests(report), failed(report));
        screen.print(&format!(
            "{from:14} {:19} {asked:>5} requests, {unanswered} failed",
            to.to_string()
        ));
        self.requests += asked;
        for (server, count) in &report.answers {
            *self.answers.entry(server.clone()).or_default() += count;
        }
        let errors = report.errors.iter();
        self.failures
            .extend(errors.map(|(reason, count)| format!("{from} to {to}: {count} × {reason}")));
    }
}
