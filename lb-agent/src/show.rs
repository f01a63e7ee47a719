//! `lb-agent status` and `lb-agent services`: what the kernel holds, whether an agent is running or not.

use std::process::ExitCode;

use crate::cli::ShowArguments;

/// Prints the state of the kernel side.
pub fn status(_arguments: &ShowArguments) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}

/// Prints the Services.
pub fn services(_arguments: &ShowArguments) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
