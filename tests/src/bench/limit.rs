//! Limits of figures, and whether the figures meet them.

use std::fmt;

use lb_agent::output::Table;
use serde::Serialize;

use super::statistics::Quartiles;

/// The distance from 1 that the ratio of two equal things may have.
const NOISE: f64 = 0.02;

/// A limit and its result.
#[derive(Debug, Serialize)]
pub struct Limit {
    /// What is compared.
    pub what: String,
    /// The number of Services.
    pub services: String,
    /// The measured value.
    pub value: Quartiles,
    /// The allowed range.
    pub bound: Bound,
    /// The result.
    pub verdict: Verdict,
}

/// The result of comparing a figure with its bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Within the bound.
    Met,
    /// The median is beyond the bound, but the nearer quartile is not. Noise alone can cause this,
    /// so it does not count as met.
    Unclear,
    /// Beyond the bound.
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

/// A bound of a figure.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The median is at most this value.
    AtMost(f64),
    /// The median is at least this value.
    AtLeast(f64),
    /// A ratio whose median is at most 1, except for noise.
    NoMore,
    /// A ratio whose median is at least 1, except for noise.
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
    fn verdict(self, value: Quartiles) -> Verdict {
        let [first, third] = value.quartiles;
        let (is_met, may_be_met) = match self {
            Self::AtMost(bound) => (value.median <= bound, false),
            Self::AtLeast(bound) => (value.median >= bound, false),
            Self::NoMore => (value.median <= 1.0 + NOISE, first <= 1.0 + NOISE),
            Self::NoLess => (value.median >= 1.0 - NOISE, third >= 1.0 - NOISE),
        };
        match (is_met, may_be_met) {
            (true, _) => Verdict::Met,
            (false, true) => Verdict::Unclear,
            (false, false) => Verdict::Missed,
        }
    }
}

impl Limit {
    pub(super) fn new(what: String, services: String, value: Quartiles, bound: Bound) -> Self {
        Self {
            what,
            services,
            value,
            bound,
            verdict: bound.verdict(value),
        }
    }

    /// Limits as a table.
    pub(super) fn table(limits: &[Self]) -> Table {
        let mut table = Table::new(&["limit", "Services", "is", "quartiles", "", ""]);
        for limit in limits {
            table.row([
                limit.what.clone(),
                limit.services.clone(),
                number(limit.value.median),
                range(limit.value.quartiles.map(number)),
                limit.bound.to_string(),
                limit.verdict.to_string(),
            ]);
        }
        table
    }
}

/// Formats a number with at least three digits, at most two of them behind the point.
pub(super) fn number(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Formats a range.
pub(super) fn range([from, to]: [String; 2]) -> String {
    format!("{from}..{to}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_bounds_and_quartiles() {
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
