//! The cost of following the control plane: from objects to maps, compared with the rules of a
//! packet filter for the same Services.

mod agent;
mod filter;
mod limits;
mod maps;
mod report;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::objects::Shape;
use crate::bench::filter::Filter;
use crate::stop::Stop;
pub use report::Report;
use report::{Figure, Subject};

/// Endpoint changes per second.
const CHANGES_PER_SECOND: u32 = 250;

/// The length and number of measurements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// Full loads of each number of Services.
    pub loads: usize,
    /// Number of endpoints that are replaced one by one in maps.
    pub changes: u16,
    /// Number of endpoints that are replaced one by one in rules, where each takes long.
    pub filter_changes: u16,
    /// The shapes to measure in maps.
    shapes: &'static [Shape],
    /// The shapes to measure in rules.
    filter_shapes: &'static [Shape],
    /// Duration of the measurement with endpoint changes.
    pub busy: Duration,
    /// Duration of the measurement without changes.
    pub idle: Duration,
}

const fn shape(services: u32, endpoints: u32) -> Shape {
    Shape { services, endpoints }
}

impl Effort {
    /// A full run: a quarter of an hour, most of it for the agents.
    pub const FULL: Self = Self {
        loads: 5,
        changes: 1000,
        filter_changes: 11,
        shapes: &[
            shape(100, 4),
            shape(1_000, 4),
            shape(10_000, 4),
            shape(30_000, 4),
            shape(10_000, 10),
            shape(1, 10_000),
        ],
        filter_shapes: &[shape(1_000, 4), shape(10_000, 4)],
        busy: Duration::from_secs(60),
        idle: Duration::from_secs(30),
    };
    /// A short run.
    pub const QUICK: Self = Self {
        loads: 1,
        changes: 200,
        filter_changes: 3,
        shapes: &[shape(1_000, 4), shape(10_000, 10)],
        filter_shapes: &[shape(1_000, 4)],
        busy: Duration::from_secs(5),
        idle: Duration::from_secs(5),
    };
}

/// Measures everything. `program` is the agent. `progress` receives the name of each step.
///
/// # Errors
///
/// If the kernel rejects something, or `stop` was requested.
pub fn run(program: &Path, effort: &Effort, stop: &Stop, progress: impl FnMut(&str)) -> Result<Report> {
    measure(program, effort, stop, progress).map_err(|error| stop.cause(error))
}

fn measure(program: &Path, effort: &Effort, stop: &Stop, mut progress: impl FnMut(&str)) -> Result<Report> {
    let mut figures = Vec::new();
    for shape in effort.shapes {
        progress(&format!("{shape} in maps"));
        figures.push(Figure::new(
            Subject::Maps,
            *shape,
            &maps::measure(*shape, effort, stop)?,
        ));
    }
    for filter in Filter::ALL {
        for shape in effort.filter_shapes {
            progress(&format!("{shape} as rules of {filter}"));
            let times = filter::measure(filter, *shape, effort, stop)?;
            figures.push(Figure::new(Subject::Rules(filter), *shape, &times));
        }
    }
    let mut agents = Vec::new();
    for shape in effort.shapes {
        progress(&format!("an agent that follows an API server with {shape}"));
        agents.push(agent::measure(program, *shape, effort, stop)?);
    }
    Ok(Report::new(figures, agents))
}

/// The measured times.
struct Times {
    /// From all objects to complete maps or rules.
    loads: Vec<Duration>,
    /// From one changed endpoint to complete maps or rules.
    changes: Vec<Duration>,
}
