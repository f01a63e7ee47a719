//! The clients that send requests continuously, and their reports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cluster::{Cluster, NODE_PORT, NODES, PORT, VIPS};
use super::table::{Row, table};
use crate::lab::report::HttpReport;
use crate::lab::{Client, Machine};

/// The interval at which clients report.
const PROGRESS: Duration = Duration::from_millis(200);

/// A client that is never stopped ends after this many requests.
const REQUESTS_MAX: u32 = 20_000;

/// A client and the address to which it sends requests.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The client's label in the table.
    pub(super) from: &'static str,
    /// The client's machine.
    machine: Machine,
    /// The destination.
    pub(super) to: SocketAddr,
    /// Index of the node whose agent handles the connections.
    pub(super) agent: usize,
    /// Whether the destination is the NodePort of that node.
    is_node_port: bool,
    /// The source address that the Pods should see. `None` for a process of the host, which has
    /// several.
    pub(super) source: Option<IpAddr>,
}

/// One running client.
#[derive(Debug)]
struct Asker {
    route: Route,
    to: String,
    client: Client<HttpReport>,
    /// The report so far.
    total: HttpReport,
    /// The report at the start of the current phase.
    before: HttpReport,
    /// The difference: the report of the current phase.
    phase: HttpReport,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Load {
    askers: Vec<Asker>,
}

impl Load {
    /// Starts a client for each route.
    pub(super) fn start(cluster: &Cluster, interval: Duration) -> Result<Self> {
        let start = |route: Route| {
            let client = route
                .machine
                .http(route.to.ip(), route.to.port())
                .count(REQUESTS_MAX)
                .interval(interval)
                .progress(PROGRESS)
                .start()?;
            Ok(Asker {
                to: route.to.to_string(),
                route,
                client,
                total: HttpReport::default(),
                before: HttpReport::default(),
                phase: HttpReport::default(),
            })
        };
        let askers = routes(cluster)?.into_iter().map(start);
        Ok(Self {
            askers: askers.collect::<Result<_>>()?,
        })
    }

    /// Reads the reports of the clients.
    pub(super) fn update(&mut self) -> Result<()> {
        for asker in &mut self.askers {
            if let Some(report) = asker.client.so_far()? {
                asker.phase = difference(&report, &asker.before);
                asker.total = report;
            }
        }
        Ok(())
    }

    /// Resets the table's counters.
    pub(super) fn start_phase(&mut self) -> Result<()> {
        self.update()?;
        for asker in &mut self.askers {
            asker.before = asker.total.clone();
            asker.phase = HttpReport::default();
        }
        Ok(())
    }

    /// The report of each client in the current phase.
    pub(super) fn phase(&self) -> impl Iterator<Item = (&Route, &HttpReport)> {
        self.askers.iter().map(|asker| (&asker.route, &asker.phase))
    }

    /// The current phase as a table.
    pub(super) fn table(&self, cluster: &Cluster) -> String {
        let pods: Vec<String> = cluster.pods.keys().cloned().collect();
        let rows: Vec<_> = self.askers.iter().map(|asker| asker.row(&asker.phase)).collect();
        table(&pods, &rows)
    }

    /// Stops the clients and returns their complete reports.
    pub(super) fn stop(self) -> Result<Vec<(Route, HttpReport)>> {
        let stop = |asker: Asker| {
            let Asker { route, client, .. } = asker;
            let report = client
                .stop()
                .with_context(|| format!("{} to {}", route.from, route.to))?;
            Ok((route, report))
        };
        self.askers.into_iter().map(stop).collect()
    }
}

impl Asker {
    fn row<'a>(&'a self, report: &'a HttpReport) -> Row<'a> {
        Row {
            from: self.route.from,
            to: &self.to,
            report,
        }
    }
}

impl Route {
    /// The Pods that should answer.
    pub(super) fn pods<'a>(&self, cluster: &'a Cluster) -> impl Iterator<Item = &'a str> {
        cluster.ready_pods(self.is_node_port.then_some(self.agent))
    }

    /// Whether a Pod of this node can answer at all.
    pub(super) fn reaches(&self, node: usize) -> bool {
        !self.is_node_port || self.agent == node
    }
}

/// Number of requests, including failed ones.
pub(super) fn requests(report: &HttpReport) -> u64 {
    report.answered() + failed(report)
}

/// Number of failed requests.
pub(super) fn failed(report: &HttpReport) -> u64 {
    report.errors.values().sum()
}

fn routes(cluster: &Cluster) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    let vips = VIPS
        .iter()
        .map(|vip| vip.parse().context("parse"))
        .collect::<Result<Vec<IpAddr>>>()?;
    for &vip in &vips {
        routes.push(Route {
            from: "Pod of node-1",
            machine: cluster.client.clone(),
            to: SocketAddr::new(vip, PORT),
            agent: 0,
            is_node_port: false,
            source: Some(own_address(&cluster.client, vip)),
        });
    }
    for vip in vips {
        routes.push(Route {
            from: "host of node-2",
            machine: cluster.nodes[1].host().clone(),
            to: SocketAddr::new(vip, PORT),
            agent: 1,
            is_node_port: false,
            source: None,
        });
    }
    for agent in 0..NODES.len() {
        for address in cluster.nodes[agent].host().addresses().both() {
            routes.push(Route {
                from: "outside client",
                machine: cluster.outside.clone(),
                to: SocketAddr::new(address, NODE_PORT),
                agent,
                is_node_port: true,
                source: Some(own_address(&cluster.outside, address)),
            });
        }
    }
    Ok(routes)
}

/// The source address of a machine with a single link towards `to`.
fn own_address(machine: &Machine, to: IpAddr) -> IpAddr {
    let [ipv4, ipv6] = machine.addresses().both();
    if to.is_ipv4() { ipv4 } else { ipv6 }
}

/// The counters that were added to a report. The latency is that of the whole report.
fn difference(now: &HttpReport, before: &HttpReport) -> HttpReport {
    HttpReport {
        answers: subtract(&now.answers, &before.answers),
        errors: subtract(&now.errors, &before.errors),
        ..now.clone()
    }
}

fn subtract(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    now.iter()
        .map(|(key, count)| (key.clone(), count - before.get(key).unwrap_or(&0)))
        .filter(|(_, count)| *count > 0)
        .collect()
}
