//! Node agent that implements Kubernetes Services with eBPF. See the README.

use std::process::ExitCode;

use clap::Parser as _;
use lb_agent::cli::{Arguments, Command, refuse};
use lb_agent::{check, cleanup, describe, explain, run, show};

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Status(arguments) => show::status(&arguments),
        Command::Services(arguments) => show::services(&arguments),
        Command::Connections(arguments) => show::connections(&arguments),
        Command::Affinity(command) => show::affinity(&command),
        Command::Explain(arguments) => {
            let question = arguments.question();
            let question = question.unwrap_or_else(|problem| refuse("explain", &problem));
            return explain::run(&arguments, question);
        }
        Command::Check(arguments) => check::run(
            &check::CheckOptions {
                pin_path: arguments.pins.pin_path,
            },
            arguments.output,
        ),
        Command::Cleanup(arguments) => cleanup::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("lb-agent: {}", describe(error.as_ref()));
        ExitCode::FAILURE
    })
}
