//! The result.

use std::io;

use lb_agent::output::{self, OutputFormat, Table};
use serde::Serialize;

use super::limit::{self, Limit};
use super::metric::{Metric, Operation};
use super::way::Subject;
use super::{Cell, Effort};
use crate::bench::Place;
use crate::bench::statistics::Sorted;

/// All figures of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where and when.
    #[serde(flatten)]
    pub place: Place,
    /// Gave the order of the measurements.
    pub seed: u64,
    /// Turns of each measurement.
    pub rounds: u32,
    /// How long one took.
    pub milliseconds: u32,
    /// Operations that succeeded and those that did not, in all measurements.
    pub operations: [u64; 2],
    /// The figures.
    pub figures: Vec<Figure>,
    /// What they are to be.
    pub limits: Vec<Limit>,
}

/// A figure of all rounds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Whose.
    #[serde(flatten)]
    pub subject: Subject,
    /// What was done.
    pub operation: Operation,
    /// What was counted.
    pub metric: Metric,
    /// To the Service.
    pub value: Quartiles,
    /// To the bare Pods where nothing is translated.
    pub bare: Quartiles,
    /// The first in relation to the second.
    pub of_bare: Quartiles,
    /// To the bare Pods in the namespaces of the Service, in relation to the second.
    pub pods_of_bare: Quartiles,
}

/// The median of all rounds, and between what half of them are.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quartiles {
    /// The median.
    pub median: f64,
    /// The first quartile and the third.
    pub quartiles: [f64; 2],
}

impl Quartiles {
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let sorted = Sorted::new(values);
        Self {
            median: sorted.median(),
            quartiles: [25, 75].map(|percent| sorted.percentile(percent)),
        }
    }
}

impl Figure {
    fn new(cell: &Cell, metric: Metric) -> Self {
        let of = |sample| metric.of(cell.operation, sample);
        let turns = || cell.turns.iter();
        Self {
            subject: cell.subject,
            operation: cell.operation,
            metric,
            value: Quartiles::of(turns().map(|turn| of(&turn.service))),
            bare: Quartiles::of(turns().map(|turn| of(&turn.bare))),
            of_bare: Quartiles::of(turns().map(|turn| of(&turn.service) / of(&turn.bare))),
            pods_of_bare: Quartiles::of(turns().map(|turn| of(&turn.pods) / of(&turn.bare))),
        }
    }
}

impl Report {
    pub(super) fn new(effort: &Effort, seed: u64, cells: &[Cell]) -> Self {
        let figures = cells.iter().flat_map(|cell| {
            let (shown, others) = cell.operation.metrics();
            let metrics = shown.iter().chain(others);
            metrics.map(|&metric| Figure::new(cell, metric))
        });
        let turns = cells.iter().flat_map(|cell| &cell.turns);
        let samples = turns.flat_map(|turn| [&turn.service, &turn.pods, &turn.bare]);
        let operations = samples.fold([0, 0], |[done, failed], sample| {
            [done + sample.operations, failed + sample.failures]
        });
        Self {
            place: Place::here(),
            seed,
            rounds: effort.rounds,
            milliseconds: effort.milliseconds,
            operations,
            figures: figures.collect(),
            limits: limit::limits(cells),
        }
    }

    /// Prints the report; for people as a table for each kind of figure, and one of limits.
    pub fn print(&self, format: OutputFormat) -> io::Result<()> {
        if format == OutputFormat::Json {
            return output::print(format, self, |_| unreachable!("JSON needs no table"));
        }
        let Self {
            place,
            rounds,
            milliseconds,
            seed,
            operations: [done, failed],
            ..
        } = self;
        output::say(&format!(
            "{place}\nmedians of {rounds} rounds with quartiles, each {milliseconds} ms; in an order by seed {seed}\n\
             of bare: in relation to the bare Pods where nothing is translated; Pods: to the bare Pods beside the Service\n\
             {done} operations succeeded, {failed} failed"
        ))?;
        for operation in Operation::ALL {
            for metric in operation.metrics().0 {
                output::say(&format!("\n{}\n", operation.title(*metric)))?;
                output::print(format, self, |_| self.table(operation, *metric))?;
            }
        }
        output::say("\nlimits, each a ratio in this run\n")?;
        output::print(format, self, Self::limits)
    }

    fn table(&self, operation: Operation, metric: Metric) -> Table {
        let mut table = Table::new(&[
            "way",
            "Services",
            "median",
            "quartiles",
            "bare",
            "of bare",
            "quartiles",
            "Pods",
        ]);
        let figures = self.figures.iter();
        for figure in figures.filter(|figure| figure.operation == operation && figure.metric == metric) {
            table.row([
                figure.subject.to_string(),
                figure.subject.services.to_string(),
                number(figure.value.median),
                range(figure.value.quartiles.map(number)),
                number(figure.bare.median),
                ratio(figure.of_bare.median),
                range(figure.of_bare.quartiles.map(ratio)),
                ratio(figure.pods_of_bare.median),
            ]);
        }
        table
    }

    fn limits(&self) -> Table {
        let mut table = Table::new(&["limit", "Services", "ratio", "quartiles", "", ""]);
        for limit in &self.limits {
            table.row([
                limit.what.clone(),
                limit.services.clone(),
                ratio(limit.ratio.median),
                range(limit.ratio.quartiles.map(ratio)),
                limit.bound.to_string(),
                limit.verdict.to_string(),
            ]);
        }
        table
    }
}

/// Three digits or all before the point.
fn number(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

fn range([from, to]: [String; 2]) -> String {
    format!("{from}..{to}")
}
