//! The end of the demo: the results of all clients, and the verdict.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Screen;
use super::cluster::{Cluster, NODES};
use super::load::{Route, failed, requests};
use super::one_machine::Served;
use super::table::milliseconds;
use crate::lab::Node;
use crate::lab::report::HttpReport;

/// The result of the demo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Number of requests.
    pub requests: u64,
    /// Answers by Pod.
    pub answers: BTreeMap<String, u64>,
    /// Everything that failed.
    pub failures: Vec<String>,
}

/// Prints the summary and the verdict.
pub(super) fn summarize(
    cluster: &mut Cluster,
    reports: &[(Route, HttpReport)],
    alone: Served,
    mut failures: Vec<String>,
    screen: &Screen,
) -> Result<Outcome> {
    screen.heading("8/8  Summary");
    for (route, report) in reports {
        screen.print(&summary_line(route, report));
        failures.extend(
            report
                .errors
                .iter()
                .map(|(reason, count)| format!("{} to {}: {count} × {reason}", route.from, route.to)),
        );
        failures.extend(wrong_source(route, report));
    }
    check_nodes(cluster, reports, screen, &mut failures)?;
    failures.extend(alone.failures);
    let mut answers = alone.answers;
    for (pod, count) in reports.iter().flat_map(|(_, report)| &report.answers) {
        *answers.entry(pod.clone()).or_default() += count;
    }
    let outcome = Outcome {
        requests: alone.requests + reports.iter().map(|(_, report)| requests(report)).sum::<u64>(),
        answers,
        failures,
    };
    print_verdict(&outcome, cluster, screen);
    Ok(outcome)
}

fn summary_line(route: &Route, report: &HttpReport) -> String {
    format!(
        "{:14} {:19} {:>5} requests, {} failed; 99 % within {}",
        route.from,
        route.to.to_string(),
        requests(report),
        failed(report),
        milliseconds(report.latency.p99),
    )
}

/// An error if the Pods saw another source address than the client's.
fn wrong_source(route: &Route, report: &HttpReport) -> Option<String> {
    let source = route.source?;
    let other = report.clients.iter().find(|client| **client != source)?;
    Some(format!(
        "{} to {}: the Pods saw {other} instead of {source}",
        route.from, route.to
    ))
}

/// Checks each node's kernel: the captured packets, and the connections that the programs counted.
fn check_nodes(
    cluster: &mut Cluster,
    reports: &[(Route, HttpReport)],
    screen: &Screen,
    failures: &mut Vec<String>,
) -> Result<()> {
    let captures: Vec<_> = cluster.captures.drain(..).collect();
    for (index, capture) in captures.into_iter().enumerate() {
        let name = NODES[index];
        let captured = capture.stop()?;
        let packets = captured.seen.values().sum::<u64>() + captured.bad_count;
        let translated = translated_connections(&cluster.nodes[index])?;
        let through_it = reports.iter().filter(|(route, _)| route.agent == index);
        let sent: u64 = through_it.map(|(_, report)| requests(report)).sum();
        screen.print(&format!(
            "{name}: {translated} connections translated in the kernel for {sent} requests\n\
             {name}: {packets} packets at its devices, {} with a wrong checksum",
            captured.bad_count
        ));
        if translated < sent {
            failures.push(format!(
                "{name}: only {translated} of {sent} connections went through the programs"
            ));
        }
        if captured.bad_count > 0 {
            failures.push(format!("{name}: {captured}"));
        }
    }
    Ok(())
}

/// The number of connections that the programs of a node have sent to Pods, from
/// `lb-agent services`.
fn translated_connections(node: &Node) -> Result<u64> {
    let services = node.agent_command("services", &["-o", "json"])?;
    let services: Value = serde_json::from_str(&services).context("parse the output of lb-agent services")?;
    let services = services.as_array().context("lb-agent services prints no array")?;
    Ok(services
        .iter()
        .filter_map(|service| service["connections"].as_u64())
        .sum())
}

fn print_verdict(outcome: &Outcome, cluster: &Cluster, screen: &Screen) {
    if outcome.failures.is_empty() {
        screen.verdict(true, &format!("all {} requests succeeded", outcome.requests));
        return;
    }
    screen.print(&format!("\n{}", cluster.log_tails().trim_end()));
    screen.verdict(false, &format!("failed:\n{}", outcome.failures.join("\n")));
}
