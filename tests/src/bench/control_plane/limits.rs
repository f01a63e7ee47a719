//! Limits of the figures.

use super::agent::AgentFigure;
use super::report::{Figure, Subject};
use super::shape;
use crate::bench::limit::{Bound, Limit};
use crate::bench::objects::Shape;
use crate::bench::statistics::Quartiles;

/// A shape with many endpoints.
const LARGE: Shape = shape(10_000, 10);
/// The shape that is compared with rules.
const MANY: Shape = shape(10_000, 4);
/// Times must not grow from this shape to [`MOST`].
const FEWEST: Shape = shape(100, 4);
const MOST: Shape = shape(30_000, 4);

/// The limits of the measured figures. A quick run does not have all of them.
pub(super) fn limits(figures: &[Figure], agents: &[AgentFigure]) -> Vec<Limit> {
    let maps = |shape| move |figure: &&Figure| figure.subject == Subject::Maps && figure.shape == shape;
    let of = |shape| figures.iter().find(maps(shape));
    let mut limits = Vec::new();
    let mut add = |what: &str, shape: &dyn std::fmt::Display, value, bound| {
        let value = Quartiles::single(value);
        limits.push(Limit::new(what.to_owned(), shape.to_string(), value, bound));
    };
    if let Some(figure) = of(LARGE) {
        add("load, milliseconds", &LARGE, figure.load, Bound::AtMost(500.0));
    }
    for figure in figures.iter().filter(|figure| figure.subject == Subject::Maps) {
        add(
            "one change, milliseconds",
            &figure.shape,
            figure.change,
            Bound::AtMost(1.0),
        );
        add(
            "one change, p99, milliseconds",
            &figure.shape,
            figure.change_p99,
            Bound::AtMost(5.0),
        );
    }
    if let (Some(fewest), Some(most)) = (of(FEWEST), of(MOST)) {
        let between = format!("{} / {}", MOST.services, FEWEST.services);
        add(
            "one change grows",
            &between,
            most.change / fewest.change,
            Bound::NoMore,
        );
    }
    let rules = figures
        .iter()
        .filter(|figure| figure.subject != Subject::Maps && figure.shape == MANY);
    for rules in rules {
        let Some(maps) = of(MANY) else { continue };
        let what = |time| format!("{time} by {}, of ours", rules.subject);
        add(&what("load"), &MANY, rules.load / maps.load, Bound::AtLeast(10.0));
        add(
            &what("one change"),
            &MANY,
            rules.change / maps.change,
            Bound::AtLeast(50.0),
        );
    }
    for agent in agents {
        if agent.shape == LARGE {
            let megabytes = (agent.resident_mib << 20) as f64 / 1e6;
            add("the agent's memory, MB", &LARGE, megabytes, Bound::AtMost(150.0));
        }
        add(
            "idle, percent of a CPU",
            &agent.shape,
            agent.idle_percent,
            Bound::AtMost(0.05),
        );
    }
    limits
}
