//! `lb-agent check`: which features that the agent uses are missing on this kernel and host.

mod feature;
mod probes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use self::feature::Feature;
use crate::output::{self, OutputFormat, Table};

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The directory in which the agent pins maps, programs and links.
    pub pin_path: PathBuf,
}

/// Prints all features and their state. Exits with a failure if a required feature is missing or
/// unknown.
pub fn run(options: &CheckOptions, format: OutputFormat) -> anyhow::Result<ExitCode> {
    let features = probes::features(&options.pin_path);
    output::print(format, &features, |features| table(features)).context("cannot print the features")?;
    Ok(match features.iter().any(Feature::fatal) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn table(features: &[Feature]) -> Table {
    let mut table = Table::new(&["feature", "state", "required", "kernel", "needed for", "note"]);
    for feature in features {
        let required = if feature.required { "yes" } else { "no" };
        table.row([
            feature.name.to_owned(),
            feature.state.to_string(),
            required.to_owned(),
            feature.since.unwrap_or("-").to_owned(),
            feature.needed_for.to_owned(),
            feature.note(),
        ]);
    }
    table
}
