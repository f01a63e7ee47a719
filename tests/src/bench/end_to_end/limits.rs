//! Limits of the figures: ratios within one run, because machines differ.

use super::Cell;
use super::contender::{ClientLocation, Means, Subject};
use super::metric::{Metric, Operation};
use crate::bench::filter::Filter;
use crate::bench::limit::{Bound, Limit};
use crate::bench::statistics::Quartiles;

/// The number of Services at which the connection rate is compared with kube-proxy's rules.
const MANY_SERVICES: u32 = 10_000;

/// The limits of the measured figures.
pub(super) fn limits(cells: &[Cell]) -> Vec<Limit> {
    let ours = || cells.iter().filter(|cell| cell.subject.way.is_ours());
    let beside_bare = ours().filter_map(beside_bare);
    let beside_rules = ours().flat_map(|cell| beside_rules(cell, cells));
    let growth = ours().filter_map(|cell| growth(cell, cells));
    beside_bare.chain(beside_rules).chain(growth).collect()
}

/// The ratios of a cell's figures to those of bare Pods.
fn of_bare(cell: &Cell, metric: Metric) -> Vec<f64> {
    let of = |sample| metric.of(cell.operation, sample);
    let turns = cell.turns.iter();
    turns.map(|turn| of(&turn.service) / of(&turn.bare)).collect()
}

/// Limits from Pods: a connection, a datagram and a stream compared with bare Pods.
fn beside_bare(cell: &Cell) -> Option<Limit> {
    let Subject { way, view, services } = cell.subject;
    if view != ClientLocation::Pod {
        return None;
    }
    let (what, metric, bound) = match cell.operation {
        Operation::Connect => {
            let bound = Bound::AtMost(f64::from(way.connect_limit?) / 100.0);
            ("opening a connection", Metric::P50, bound)
        }
        Operation::Datagrams => ("CPU per UDP packet of one flow", Metric::Cpu, Bound::AtMost(1.08)),
        Operation::Stream => ("a stream", Metric::Rate, Bound::NoLess),
        _ => return None,
    };
    Some(Limit::new(
        format!("{}: {what}, of bare", cell.subject),
        services.to_string(),
        Quartiles::of(of_bare(cell, metric)),
        bound,
    ))
}

/// Limits from Pods: connections compared with those through rules.
fn beside_rules(cell: &Cell, cells: &[Cell]) -> Vec<Limit> {
    let Subject { services, view, .. } = cell.subject;
    if cell.operation != Operation::Connections || services != MANY_SERVICES {
        return Vec::new();
    }
    let peers = cells.iter().filter(|peer| {
        peer.operation == cell.operation && peer.subject.view == view && peer.subject.services == services
    });
    let limits = peers.filter_map(|peer| {
        let bound = match peer.subject.way.means {
            Means::Rules(Filter::Nftables) => 1.25,
            Means::Rules(Filter::Iptables) => 2.5,
            Means::Agent { .. } => return None,
        };
        let what = format!("{}: connections per second, of {}", cell.subject, peer.subject);
        let ratios = quotients(of_bare(cell, Metric::Rate), of_bare(peer, Metric::Rate));
        Some(Limit::new(
            what,
            services.to_string(),
            Quartiles::of(ratios),
            Bound::AtLeast(bound),
        ))
    });
    limits.collect()
}

/// Limit: the cost must not grow from the fewest to the most Services. `cell` has the most.
fn growth(cell: &Cell, cells: &[Cell]) -> Option<Limit> {
    let (what, metric) = match cell.operation {
        Operation::Connect => ("opening a connection", Metric::P50),
        Operation::Connections => ("CPU per connection", Metric::Cpu),
        Operation::Requests => ("CPU per request", Metric::Cpu),
        Operation::Datagrams => ("CPU per UDP packet of one flow", Metric::Cpu),
        Operation::NewFlows => ("CPU per UDP packet of new flows", Metric::Cpu),
        // Not checked: a stream is one flow, and `Datagrams` covers one flow.
        Operation::Stream => return None,
    };
    let same = || {
        cells.iter().filter(|other| {
            let (one, other, same) = (cell.subject, other.subject, other.operation == cell.operation);
            same && one.way == other.way && one.view == other.view
        })
    };
    let fewest = same().min_by_key(|other| other.subject.services)?;
    let most = same().map(|other| other.subject.services).max();
    if most != Some(cell.subject.services) || fewest.subject == cell.subject {
        return None;
    }
    Some(Limit::new(
        format!("{}: {what} grows", cell.subject),
        format!("{} / {}", cell.subject.services, fewest.subject.services),
        Quartiles::of(quotients(of_bare(cell, metric), of_bare(fewest, metric))),
        Bound::NoMore,
    ))
}

fn quotients(ones: Vec<f64>, others: Vec<f64>) -> Vec<f64> {
    ones.into_iter()
        .zip(others)
        .map(|(one, other)| one / other)
        .collect()
}
