//! The result of the control plane benchmark.

use std::time::Duration;

use lb_agent::output::Table;
use serde::Serialize;

use super::Times;
use super::agent::AgentFigure;
use super::limits::limits;
use crate::bench::chart::{Chart, Scale, Series};
use crate::bench::filter::Filter;
use crate::bench::limit::Limit;
use crate::bench::objects::Shape;
use crate::bench::statistics::{Quartiles, Sorted};
use crate::bench::{Place, Results};

/// All figures of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Place and time.
    #[serde(flatten)]
    pub place: Place,
    /// From objects to maps or rules.
    pub figures: Vec<Figure>,
    /// The resources that the agent uses.
    pub agents: Vec<AgentFigure>,
    /// The limits of the figures.
    pub limits: Vec<Limit>,
}

/// Where the Services are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The agent's maps.
    Maps,
    /// A packet filter's rules.
    #[serde(untagged)]
    Rules(Filter),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Maps => formatter.write_str("our maps"),
            Self::Rules(filter) => write!(formatter, "{filter}"),
        }
    }
}

/// The times of one shape, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Where the Services are stored.
    pub subject: Subject,
    /// The number of Services and endpoints.
    #[serde(flatten)]
    pub shape: Shape,
    /// From all objects: median.
    pub load: f64,
    /// The fastest and the slowest.
    pub load_range: [f64; 2],
    /// From one changed endpoint: median.
    pub change: f64,
    /// From one changed endpoint: 99th percentile.
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
            limits: limits(&figures, &agents),
            figures,
            agents,
        }
    }

    fn times(&self) -> Table {
        let mut table = Table::new(&["Services", "in", "load", "min..max", "one change", "p99"]);
        for figure in &self.figures {
            let [least, greatest] = figure.load_range;
            table.row([
                figure.shape.to_string(),
                figure.subject.to_string(),
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

    /// A time over the number of Services with 4 endpoints each: a line for each subject.
    fn chart(&self, title: &str, time: impl Fn(&Figure) -> Quartiles) -> Chart {
        const ENDPOINTS: u32 = 4;
        let subjects = [Subject::Maps].into_iter().chain(Filter::ALL.map(Subject::Rules));
        let series = subjects.map(|subject| {
            let figures = self.figures.iter();
            let figures =
                figures.filter(|figure| figure.subject == subject && figure.shape.endpoints == ENDPOINTS);
            Series {
                name: subject.to_string(),
                points: figures
                    .map(|figure| (f64::from(figure.shape.services), time(figure)))
                    .collect(),
            }
        });
        Chart {
            title: title.to_owned(),
            x: "Services with 4 endpoints",
            y: "milliseconds".to_owned(),
            scale: Scale::Logarithmic,
            series: series.collect(),
        }
    }
}

impl Results for Report {
    const NAME: &str = "control-plane";

    fn summary(&self) -> String {
        format!(
            "{}\n\nmilliseconds from all objects, and from one changed endpoint, to complete maps or rules\n\n{}\n\
             the agent's memory, and its CPU time in percent of one CPU\n\n{}\nlimits\n\n{}",
            self.place,
            self.times(),
            self.agents(),
            Limit::table(&self.limits)
        )
    }

    fn charts(&self) -> Vec<Chart> {
        let load = |figure: &Figure| Quartiles {
            median: figure.load,
            quartiles: figure.load_range,
        };
        let change = |figure: &Figure| Quartiles {
            median: figure.change,
            quartiles: [figure.change, figure.change_p99],
        };
        vec![
            self.chart("All Services: median, fastest and slowest", load),
            self.chart("One changed endpoint: median and 99th percentile", change),
        ]
    }
}
