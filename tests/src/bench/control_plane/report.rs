//! The result.

use std::io;
use std::time::Duration;

use lb_agent::output::{self, OutputFormat, Table};
use serde::Serialize;

use super::Times;
use super::agent::AgentFigure;
use crate::bench::Place;
use crate::bench::filter::Filter;
use crate::bench::objects::Shape;
use crate::bench::statistics::Sorted;

/// All figures of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where and when.
    #[serde(flatten)]
    pub place: Place,
    /// From objects to maps or rules.
    pub figures: Vec<Figure>,
    /// What the agent takes.
    pub agents: Vec<AgentFigure>,
}

/// What holds the Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// Our maps.
    Maps,
    /// A packet filter's rules.
    #[serde(untagged)]
    Rules(Filter),
}

/// How long it takes, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What is written.
    pub subject: Subject,
    /// How much of it.
    #[serde(flatten)]
    pub shape: Shape,
    /// From all objects: median.
    pub load: f64,
    /// The fastest and the slowest.
    pub load_range: [f64; 2],
    /// From one changed endpoint: median.
    pub change: f64,
    /// 99 of 100 take no longer.
    pub change_p99: f64,
}

impl Figure {
    pub(super) fn new(subject: Subject, shape: Shape, times: &Times) -> Self {
        let loads = Sorted::new(times.loads.iter().copied());
        let changes = Sorted::new(times.changes.iter().copied());
        Self {
            subject,
            shape,
            load: milliseconds(loads.median()),
            load_range: [loads.least(), loads.greatest()].map(milliseconds),
            change: milliseconds(changes.median()),
            change_p99: milliseconds(changes.percentile(99)),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Report {
    pub(super) fn new(figures: Vec<Figure>, agents: Vec<AgentFigure>) -> Self {
        Self {
            place: Place::here(),
            figures,
            agents,
        }
    }

    /// Prints the report; for people as two tables.
    pub fn print(&self, format: OutputFormat) -> io::Result<()> {
        if format == OutputFormat::Table {
            println!("{}", self.place);
            println!(
                "milliseconds from all objects, and from one changed endpoint, to complete maps or rules\n"
            );
        }
        output::print(format, self, Self::times)?;
        if format == OutputFormat::Table {
            println!("\nthe agent's memory, and its CPU time in percent of one CPU\n");
            output::print(format, &(), |()| self.agents())?;
        }
        Ok(())
    }

    fn times(&self) -> Table {
        let mut table = Table::new(&["Services", "in", "load", "min..max", "one change", "p99"]);
        for figure in &self.figures {
            let [least, greatest] = figure.load_range;
            table.row([
                figure.shape.to_string(),
                match figure.subject {
                    Subject::Maps => "our maps".to_owned(),
                    Subject::Rules(filter) => filter.to_string(),
                },
                format!("{:.1}", figure.load),
                format!("{least:.1}..{greatest:.1}"),
                format!("{:.3}", figure.change),
                format!("{:.3}", figure.change_p99),
            ]);
        }
        table
    }

    fn agents(&self) -> Table {
        let mut table = Table::new(&["Services", "MiB", "peak", "changes/s", "busy %", "idle %"]);
        for figure in &self.agents {
            table.row([
                figure.shape.to_string(),
                figure.resident_mib.to_string(),
                figure.peak_mib.to_string(),
                figure.changes_per_second.to_string(),
                format!("{:.1}", figure.busy_percent),
                format!("{:.2}", figure.idle_percent),
            ]);
        }
        table
    }
}
