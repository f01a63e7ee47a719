//! The result of the end-to-end benchmark.

use lb_agent::output::Table;
use serde::Serialize;

use super::contender::{ClientLocation, Subject};
use super::limits::limits;
use super::metric::{Metric, Operation};
use super::{Cell, Effort};
use crate::bench::chart::{Chart, Scale, Series};
use crate::bench::limit::{Limit, number, range};
use crate::bench::statistics::Quartiles;
use crate::bench::{Place, Results};

/// All figures of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Place and time.
    #[serde(flatten)]
    pub place: Place,
    /// Seed of the order of the measurements.
    pub seed: u64,
    /// Number of rounds.
    pub rounds: u32,
    /// Duration of one measurement.
    pub milliseconds: u32,
    /// Operations that succeeded and those that did not, in all measurements.
    pub operations: [u64; 2],
    /// The figures.
    pub figures: Vec<Figure>,
    /// The limits of the figures.
    pub limits: Vec<Limit>,
}

/// A figure of all rounds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// The contender.
    #[serde(flatten)]
    pub subject: Subject,
    /// The operation.
    pub operation: Operation,
    /// The metric.
    pub metric: Metric,
    /// To the Service.
    pub value: Quartiles,
    /// To the bare Pods where nothing is translated.
    pub bare: Quartiles,
    /// The ratio of the first to the second.
    pub of_bare: Quartiles,
    /// The ratio of the bare Pods in the Service's namespaces to the second.
    pub pods_of_bare: Quartiles,
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
            limits: limits(cells),
        }
    }

    /// The place and method of the measurement.
    fn heading(&self) -> String {
        let Self {
            place,
            rounds,
            milliseconds,
            seed,
            operations: [done, failed],
            ..
        } = self;
        format!(
            "{place}\nmedians of {rounds} rounds with quartiles, each {milliseconds} ms; in an order by seed {seed}\n\
             of bare: in relation to the bare Pods where nothing is translated; Pods: to the bare Pods beside the Service\n\
             {done} operations succeeded, {failed} failed\n"
        )
    }

    /// A figure from Pods as a ratio to bare Pods: a line for each contender.
    fn chart(&self, operation: Operation, metric: Metric, counted: &str) -> Chart {
        let figures = self.figures.iter();
        let figures = figures.filter(|figure| {
            (figure.operation, figure.metric, figure.subject.view) == (operation, metric, ClientLocation::Pod)
        });
        let mut series: Vec<Series> = Vec::new();
        for figure in figures {
            let name = figure.subject.to_string();
            let point = (f64::from(figure.subject.services), figure.of_bare);
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    name,
                    points: vec![point],
                }),
            }
        }
        Chart {
            title: operation.what().to_owned(),
            x: "Services",
            y: format!("{counted}, of bare Pods"),
            scale: Scale::Linear,
            series,
        }
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
}

impl Results for Report {
    const NAME: &str = "end-to-end";

    fn summary(&self) -> String {
        let limits = Limit::table(&self.limits);
        format!("{}\nlimits, each a ratio in this run\n\n{limits}", self.heading())
    }

    fn details(&self) -> Option<String> {
        let mut text = String::new();
        for operation in Operation::ALL {
            for metric in operation.metrics().0 {
                text += &format!(
                    "{}\n\n{}\n",
                    operation.title(*metric),
                    self.table(operation, *metric)
                );
            }
        }
        Some(text)
    }

    fn charts(&self) -> Vec<Chart> {
        let shown = [
            (Operation::Connect, Metric::P50, "median latency"),
            (Operation::Connections, Metric::Rate, "connections per second"),
            (Operation::Datagrams, Metric::Cpu, "CPU time of a packet"),
        ];
        shown
            .map(|(operation, metric, counted)| self.chart(operation, metric, counted))
            .into()
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}
