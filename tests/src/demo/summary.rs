//! The end of the demo: what all clients have had, and whether that is well.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Screen;
use super::cluster::{Cluster, NODES};
use super::load::{Load, Route, failed, requests};
use super::table::milliseconds;
use crate::lab::report::HttpReport;

/// How the demo went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Number of requests.
    pub requests: u64,
    /// Answers by Pod.
    pub answers: BTreeMap<String, u64>,
    /// Everything that was not as it should be.
    pub failures: Vec<String>,
}

/// Ends the clients, prints the summary and the verdict.
pub(super) fn summarize(
    cluster: &mut Cluster,
    load: Load,
    mut failures: Vec<String>,
    screen: &Screen,
) -> Result<Outcome> {
    screen.heading("7/7  Summary");
    let reports = load.stop()?;
    for (route, report) in &reports {
        screen.print(&summary_line(route, report));
        failures.extend(
            report
                .errors
                .iter()
                .map(|(reason, count)| format!("{} to {}: {count} × {reason}", route.from, route.to)),
        );
        failures.extend(wrong_source(route, report));
    }
    check_packets(cluster, screen, &mut failures)?;
    print_services(cluster, screen)?;
    let mut answers = BTreeMap::new();
    for (pod, count) in reports.iter().flat_map(|(_, report)| &report.answers) {
        *answers.entry(pod.clone()).or_default() += count;
    }
    let outcome = Outcome {
        requests: reports.iter().map(|(_, report)| requests(report)).sum(),
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

/// The Pods must see who asks.
fn wrong_source(route: &Route, report: &HttpReport) -> Option<String> {
    let source = route.source?;
    let other = report.clients.iter().find(|client| **client != source)?;
    Some(format!(
        "{} to {}: the Pods saw {other} instead of {source}",
        route.from, route.to
    ))
}

fn check_packets(cluster: &mut Cluster, screen: &Screen, failures: &mut Vec<String>) -> Result<()> {
    for (name, capture) in NODES.iter().zip(cluster.captures.drain(..)) {
        let report = capture.stop()?;
        let good: u64 = report.seen.values().sum();
        screen.print(&format!(
            "{name}: {} packets at its devices, {} with a wrong checksum",
            good + report.bad_count,
            report.bad_count
        ));
        if report.bad_count > 0 {
            failures.push(format!("{name}: {report}"));
        }
    }
    Ok(())
}

/// What the kernel of the first node holds, in the agent's words.
fn print_services(cluster: &Cluster, screen: &Screen) -> Result<()> {
    let services = cluster.nodes[0].agent_command("services", &[])?;
    if !services.trim().is_empty() {
        screen.print(&format!(
            "\nlb-agent services, on {}:\n{}",
            NODES[0],
            services.trim_end()
        ));
    }
    Ok(())
}

fn print_verdict(outcome: &Outcome, cluster: &Cluster, screen: &Screen) {
    if outcome.failures.is_empty() {
        screen.verdict(true, &format!("all {} requests succeeded", outcome.requests));
        return;
    }
    screen.print(&format!("\n{}", cluster.log_tails().trim_end()));
    screen.verdict(false, &format!("failed:\n{}", outcome.failures.join("\n")));
}
