//! What the figures are to be: ratios in one run, since no two machines are alike.

use std::fmt;

use serde::Serialize;

use super::Cell;
use super::metric::{Metric, Operation};
use super::report::Quartiles;
use super::way::{Means, Subject, View};
use crate::bench::filter::Filter;

/// With how many Services connections are to be faster than through rules.
const MANY_SERVICES: u32 = 10_000;
/// How far from 1 the ratio of two equal things may be.
const NOISE: f64 = 0.02;

/// A limit and how it was kept.
#[derive(Debug, Serialize)]
pub struct Limit {
    /// What is compared.
    pub what: String,
    /// With how many Services.
    pub services: String,
    /// The ratio.
    pub ratio: Quartiles,
    /// What it may be.
    pub bound: Bound,
    /// Whether it is.
    pub verdict: Verdict,
}

/// What a ratio is, held against its bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Within the bound.
    Met,
    /// The median is beyond it, the nearer quartile is not: these rounds do not tell. Noise alone gets here, so it is not
    /// counted as met.
    Unclear,
    /// Beyond it.
    Missed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Met => "ok",
            Self::Unclear => "unclear",
            Self::Missed => "missed",
        })
    }
}

/// What a ratio may be.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The median is no greater.
    AtMost(f64),
    /// The median is no less.
    AtLeast(f64),
    /// The median is no greater than 1, or hardly.
    NoMore,
    /// The same from the other side.
    NoLess,
}

impl fmt::Display for Bound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(formatter, "at most {bound:.2}"),
            Self::AtLeast(bound) => write!(formatter, "at least {bound:.2}"),
            Self::NoMore => write!(formatter, "no more"),
            Self::NoLess => write!(formatter, "no less"),
        }
    }
}

impl Bound {
    fn verdict(self, ratio: Quartiles) -> Verdict {
        let [first, third] = ratio.quartiles;
        let (is_met, may_be_met) = match self {
            Self::AtMost(bound) => (ratio.median <= bound, false),
            Self::AtLeast(bound) => (ratio.median >= bound, false),
            Self::NoMore => (ratio.median <= 1.0 + NOISE, first <= 1.0 + NOISE),
            Self::NoLess => (ratio.median >= 1.0 - NOISE, third >= 1.0 - NOISE),
        };
        match (is_met, may_be_met) {
            (true, _) => Verdict::Met,
            (false, true) => Verdict::Unclear,
            (false, false) => Verdict::Missed,
        }
    }
}

impl Limit {
    fn new(what: String, services: String, bound: Bound, ratios: Vec<f64>) -> Self {
        let ratio = Quartiles::of(ratios);
        Self {
            what,
            services,
            ratio,
            bound,
            verdict: bound.verdict(ratio),
        }
    }
}

/// All limits of what was measured.
pub(super) fn limits(cells: &[Cell]) -> Vec<Limit> {
    let ours = || cells.iter().filter(|cell| cell.subject.way.is_ours());
    let beside_bare = ours().filter_map(beside_bare);
    let beside_rules = ours().flat_map(|cell| beside_rules(cell, cells));
    let growth = ours().filter_map(|cell| growth(cell, cells));
    beside_bare.chain(beside_rules).chain(growth).collect()
}

/// A cell's figures in relation to those of bare Pods.
fn of_bare(cell: &Cell, metric: Metric) -> Vec<f64> {
    let of = |sample| metric.of(cell.operation, sample);
    let turns = cell.turns.iter();
    turns.map(|turn| of(&turn.service) / of(&turn.bare)).collect()
}

/// From Pods: what a connection, a datagram and a stream may cost.
fn beside_bare(cell: &Cell) -> Option<Limit> {
    let Subject { way, view, services } = cell.subject;
    if view != View::Pod {
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
        bound,
        of_bare(cell, metric),
    ))
}

/// From Pods: connections beside those through rules.
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
            Bound::AtLeast(bound),
            ratios,
        ))
    });
    limits.collect()
}

/// That nothing grows from the fewest to the most Services; `cell` is that with the most.
fn growth(cell: &Cell, cells: &[Cell]) -> Option<Limit> {
    let (what, metric) = match cell.operation {
        Operation::Connect => ("opening a connection", Metric::P50),
        Operation::Connections => ("CPU per connection", Metric::Cpu),
        Operation::Requests => ("CPU per request", Metric::Cpu),
        Operation::Datagrams => ("CPU per UDP packet of one flow", Metric::Cpu),
        Operation::NewFlows => ("CPU per UDP packet of new flows", Metric::Cpu),
        // A stream is one flow, as that of datagrams.
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
        Bound::NoMore,
        quotients(of_bare(cell, metric), of_bare(fewest, metric)),
    ))
}

fn quotients(ones: Vec<f64>, others: Vec<f64>) -> Vec<f64> {
    ones.into_iter()
        .zip(others)
        .map(|(one, other)| one / other)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let ratio = |first, median, third| Quartiles {
            median,
            quartiles: [first, third],
        };
        for (bound, ratio, expected) in [
            (Bound::AtMost(1.1), ratio(1.0, 1.1, 1.5), Verdict::Met),
            (Bound::AtMost(1.1), ratio(0.5, 1.11, 1.5), Verdict::Missed),
            (Bound::AtLeast(2.5), ratio(1.0, 2.5, 2.6), Verdict::Met),
            (Bound::AtLeast(2.5), ratio(1.0, 2.4, 2.6), Verdict::Missed),
            (Bound::NoMore, ratio(0.9, 1.02, 1.1), Verdict::Met),
            (Bound::NoMore, ratio(1.02, 1.05, 1.1), Verdict::Unclear),
            (Bound::NoMore, ratio(1.03, 1.05, 1.1), Verdict::Missed),
            (Bound::NoLess, ratio(0.9, 0.98, 1.1), Verdict::Met),
            (Bound::NoLess, ratio(0.9, 0.95, 0.98), Verdict::Unclear),
            (Bound::NoLess, ratio(0.9, 0.95, 0.97), Verdict::Missed),
        ] {
            assert_eq!(bound.verdict(ratio), expected, "{bound}: {ratio:?}");
        }
    }
}
