//! `cargo xtask demo`: a Service between network namespaces, with real connections, while Pods and
//! agents are stopped and started.
//!
//! ```no_run
//! use lb_tests::demo::{Plan, Screen, run};
//! use lb_tests::stop::Stop;
//!
//! # fn main() -> anyhow::Result<()> {
//! let outcome = run(&Plan::default(), &Screen::new()?, &Stop::never())?;
//! assert!(outcome.failures.is_empty());
//! # Ok(())
//! # }
//! ```

mod cluster;
mod explore;
mod load;
mod one_machine;
mod phases;
mod prepare;
mod screen;
mod summary;
mod table;

use std::time::Duration;

use anyhow::Result;

pub use screen::Screen;
pub use summary::Outcome;

use crate::stop::{Interrupted, Stop};

/// The interval at which the screen is redrawn and conditions are checked.
const REFRESH: Duration = Duration::from_millis(100);

/// Options of the demo.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The minimum number of requests that each client sends in each phase.
    pub requests: u32,
    /// How long each client waits between two requests.
    pub interval: Duration,
    /// Whether the lab stays until the user presses Enter.
    pub keep: bool,
    /// A Pod without a server, which makes the demo fail.
    pub silent: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            requests: 150,
            interval: Duration::from_millis(40),
            keep: false,
            silent: None,
        }
    }
}

/// Runs the demo. The outcome contains everything that failed.
///
/// # Errors
///
/// If the lab cannot be created, or if the demo was requested to stop ([`Interrupted`]).
pub fn run(plan: &Plan, screen: &Screen, stop: &Stop) -> Result<Outcome> {
    perform(plan, screen, stop).map_err(|error| stop.cause(error))
}

fn perform(plan: &Plan, screen: &Screen, stop: &Stop) -> Result<Outcome> {
    let mut cluster = prepare::build(plan, screen)?;
    prepare::start_agents(&mut cluster, screen, stop)?;
    let mut stage = phases::Stage::new(plan, screen, stop, cluster)?;
    let mut failures = Vec::new();
    if let Err(error) = stage.play() {
        let cause = stop.cause(error);
        if cause.is::<Interrupted>() {
            return Err(cause);
        }
        failures.push(format!("{cause:#}"));
    }
    let (mut cluster, load) = stage.end();
    let reports = load.stop()?;
    let alone = one_machine::play(&cluster, screen, stop)?;
    let outcome = summary::summarize(&mut cluster, &reports, alone, failures, screen)?;
    if plan.keep {
        explore::print(&cluster, screen);
        stop.wait_for_enter()?;
    }
    Ok(outcome)
}
