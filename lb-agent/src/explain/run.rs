//! The `explain` command.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use lb_common::layout::backend_flags;
use lb_common::net::{Address4, Address6};
use lb_common::packet::Route;

use super::answer::explain;
use super::arguments::ExplainArguments;
use super::explanation::Explanation;
use super::question::{From, PacketProtocol, Question};
use super::routes::KernelRoutes;
use super::surroundings::Surroundings;
use crate::datapath::carriers::Carriers;
use crate::datapath::clock::Clock;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::datapath::pins::Pins;
use crate::devices;
use crate::maps::MapError;
use crate::output::{self, Table};
use crate::privileges;

/// Exit code if the packet is rejected, dropped or not seen by the programs.
const REFUSED: u8 = 1;
/// Exit code if there is no answer; also clap's code for usage errors.
const NO_ANSWER: u8 = 2;

/// Prints the answer to `question` ([`ExplainArguments::question`]). The exit code tells whether
/// the packet gets through.
pub fn run(arguments: &ExplainArguments, question: Question) -> ExitCode {
    match answer(arguments, question) {
        Ok(explanation) if explanation.verdict.is_refusal() => ExitCode::from(REFUSED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {}", crate::describe(error.as_ref()));
            ExitCode::from(NO_ANSWER)
        }
    }
}

fn answer(arguments: &ExplainArguments, question: Question) -> anyhow::Result<Explanation> {
    privileges::require("explain", &privileges::MAPS)?;
    let pins = Pins::new(&arguments.show.pins.pin_path);
    let maps = LiveMaps::open(&pins.maps()).with_context(|| pins.no_agent_message())?;
    let routes = KernelRoutes::connect(question.source.ip()).context("cannot query routes")?;
    let links = pins
        .link_names()
        .with_context(|| format!("cannot read {}", pins.links().display()))?;
    let is_attached = |prefix: &str| links.iter().any(|link| link.starts_with(prefix));
    let carriers = Carriers::read(&pins)?;
    let bare = carriers.bare(&devices::look_without_default_routes()?);
    let from = match arguments.from {
        Some(from) => from,
        None => {
            let leads_to_pod = carriers.leads_to_pods(routes.ingress());
            guess(&maps, question.source.ip(), &routes, leads_to_pod)?
        }
    };
    let surroundings = Surroundings {
        clock: Clock::read().context("cannot read the clock")?,
        routes: &routes,
        ingress: routes.ingress(),
        bare: &bare,
        has_socket_programs: is_attached("cgroup-lb_connect"),
    };
    let explanation = explain(&maps, &surroundings, question, from)?;
    output::print(arguments.show.output, &explanation, table)?;
    Ok(explanation)
}

/// Guesses where a sender is: the node if it has the address, a Pod if the address is a local
/// backend's or the route to it leads to a Pod's device, otherwise outside.
fn guess(
    maps: &LiveMaps,
    source: IpAddr,
    routes: &KernelRoutes,
    leads_to_pod: bool,
) -> Result<From, MapError> {
    if routes.ask(source).route == Route::Local {
        return Ok(From::Node);
    }
    let is_pod = leads_to_pod || is_local_backend::<Address4>(maps, source)?;
    Ok(if is_pod || is_local_backend::<Address6>(maps, source)? {
        From::Pod
    } else {
        From::Outside
    })
}

fn is_local_backend<A: LiveFamily>(maps: &LiveMaps, address: IpAddr) -> Result<bool, MapError> {
    let Some(address) = A::of(address) else {
        return Ok(false);
    };
    let rows = A::rows(maps).backends()?;
    let is_it =
        |row: &lb_common::layout::Backend<A>| row.address == address && row.flags & backend_flags::LOCAL != 0;
    Ok(rows.values().any(is_it))
}

fn table(explanation: &Explanation) -> Table {
    let mut table = Table::new(&["step", "finding"]);
    let mut row = |step: &str, finding: String| table.row([step.to_owned(), finding]);
    let Explanation {
        protocol,
        source,
        destination,
        from,
        ..
    } = explanation;
    let origin = match from {
        From::Pod => "a Pod of this node",
        From::Outside => "outside",
        From::Node => "a process of this node",
    };
    let (source, destination) = match protocol {
        PacketProtocol::Icmp => (source.ip().to_string(), destination.ip().to_string()),
        _ => (source.to_string(), destination.to_string()),
    };
    let protocol = format!("{protocol:?}").to_lowercase();
    row(
        "packet",
        format!("{protocol} {source} -> {destination}, from {origin}"),
    );
    let (verdict, others) = match explanation.steps.split_last() {
        Some((verdict, others)) => (Some(verdict), others),
        None => (None, &[][..]),
    };
    for step in others {
        row(step.step, step.finding.clone());
    }
    for candidate in &explanation.backends {
        let place = if candidate.local {
            "this node"
        } else {
            "another node"
        };
        let share = candidate.share * 100.0;
        let finding = format!(
            "{} ({}, {place}) {share:.1} %",
            candidate.address, candidate.state
        );
        row("backend", finding);
    }
    if let Some(verdict) = verdict {
        row(verdict.step, verdict.finding.clone());
    }
    table
}
