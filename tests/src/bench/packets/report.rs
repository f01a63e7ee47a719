//! The result of the packet benchmark: figures, with the place and time of the measurement.

use lb_agent::network::Family;
use lb_agent::output::Table;
use serde::Serialize;

use super::Turn;
use super::case::{Case, Flows};
use crate::bench::statistics::Sorted;
use crate::bench::{Place, Results};

/// All figures of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Place and time.
    #[serde(flatten)]
    pub place: Place,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// The cost of one kind of packet, in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The kernel program.
    pub program: &'static str,
    /// The kind of packet.
    pub packet: String,
    /// Its IP version.
    pub family: Family,
    /// The number of flows of the packets.
    pub flows: u32,
    /// The empty program, with the packet generator: median.
    pub empty: u32,
    /// Over the empty program: median.
    pub over_empty: i64,
    /// Over the empty program: the best round.
    pub min: i64,
    /// Over the empty program: the worst round.
    pub max: i64,
    /// The limit of `over_empty`.
    pub limit: Option<u32>,
}

impl Figure {
    /// Computes a figure from all turns of a case.
    pub(super) fn new(case: &Case, flows: Flows, turns: &[Turn]) -> Self {
        let over = turns
            .iter()
            .map(|turn| i64::from(turn.program) - i64::from(turn.empty));
        let over = Sorted::new(over);
        let empty = Sorted::new(turns.iter().map(|turn| turn.empty));
        Self {
            program: case.hook.program(),
            packet: case.to_string(),
            family: case.family,
            flows: flows.count(),
            empty: empty.median(),
            over_empty: over.median(),
            min: over.least(),
            max: over.greatest(),
            limit: case.limit(flows),
        }
    }

    /// The excess of the figure over its limit, if any.
    fn missed_by(&self) -> Option<i64> {
        let missed = self.over_empty - i64::from(self.limit?);
        (missed > 0).then_some(missed)
    }
}

impl Report {
    /// A report of figures that were taken just now.
    pub(super) fn new(figures: Vec<Figure>) -> Self {
        Self {
            place: Place::here(),
            figures,
        }
    }

    /// The figures as rows.
    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "program",
            "packet",
            "family",
            "flows",
            "empty",
            "over empty",
            "min..max",
            "limit",
            "",
        ]);
        for figure in &self.figures {
            let verdict = match (figure.limit, figure.missed_by()) {
                (None, _) => String::new(),
                (Some(_), None) => "ok".to_owned(),
                (Some(_), Some(by)) => format!("missed by {by}"),
            };
            table.row([
                figure.program.to_owned(),
                figure.packet.clone(),
                match figure.family {
                    Family::V4 => "IPv4",
                    Family::V6 => "IPv6",
                }
                .to_owned(),
                figure.flows.to_string(),
                figure.empty.to_string(),
                figure.over_empty.to_string(),
                format!("{}..{}", figure.min, figure.max),
                figure.limit.map_or_else(String::new, |limit| limit.to_string()),
                verdict,
            ]);
        }
        table
    }
}

impl Results for Report {
    const NAME: &str = "packets";

    fn summary(&self) -> String {
        format!(
            "{}\nnanoseconds per packet, medians of the rounds; the packet generator is part of the empty program\n\n{}",
            self.place,
            self.table()
        )
    }
}
