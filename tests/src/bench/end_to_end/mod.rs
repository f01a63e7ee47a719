//! The performance of connections: Services by the socket hooks, by TC and by XDP, compared with
//! kube-proxy's rules and with bare Pods.
//!
//! Each contender has separate namespaces. Each round measures each operation of each contender
//! three times in immediate succession and in random order: to the Service, to the bare Pods of the
//! same namespaces, and to the bare Pods where nothing is translated. Ratios compare measurements
//! of the same turn; the result is the median of all rounds. Each round covers all operations of
//! all contenders, also in random order, so that a busy moment of the machine affects a round and
//! not a contender.

mod contender;
mod limits;
mod metric;
mod random;
mod report;
mod world;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::bench::load::Sample;
use crate::stop::Stop;
use contender::{CONTENDERS, Contender, Subject};
use metric::Operation;
use random::Random;
pub use report::Report;
use world::{Target, World};

/// The length and number of measurements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// Numbers of Services, in ascending order.
    pub services: &'static [u32],
    /// Maximum number of Services for packet filters, whose rules take long to load.
    pub most_in_rules: u32,
    /// Number of rounds.
    pub rounds: u32,
    /// Duration of one measurement. Many short measurements are more accurate than few long ones,
    /// because the state of a machine changes over time.
    pub milliseconds: u32,
}

impl Effort {
    /// A full run: a quarter of an hour.
    pub const FULL: Self = Self {
        services: &[100, 1_000, 10_000, 30_000],
        most_in_rules: 10_000,
        rounds: 11,
        milliseconds: 100,
    };
    /// A short run.
    pub const QUICK: Self = Self {
        services: &[100, 1_000],
        most_in_rules: 1_000,
        rounds: 5,
        milliseconds: 40,
    };
}

/// An operation on the Services of a contender.
struct Cell {
    subject: Subject,
    /// Index of its world.
    world: usize,
    operation: Operation,
    /// The turns, one for each round.
    turns: Vec<Turn>,
}

/// Three consecutive measurements.
struct Turn {
    /// To the Service.
    service: Sample,
    /// To the bare Pods in the same namespaces.
    pods: Sample,
    /// To the bare Pods where nothing is translated.
    bare: Sample,
}

/// Measures everything. `progress` receives the name of each step. The same `seed` gives the same
/// order.
///
/// # Errors
///
/// If the kernel rejects something, or `stop` was requested.
pub fn run(effort: &Effort, seed: u64, stop: &Stop, progress: impl FnMut(&str)) -> Result<Report> {
    measure(effort, seed, stop, progress).map_err(|error| stop.cause(error))
}

fn measure(effort: &Effort, seed: u64, stop: &Stop, mut progress: impl FnMut(&str)) -> Result<Report> {
    let mut bare = World::bare()?;
    let mut worlds = Vec::new();
    let mut cells = Vec::new();
    for &services in effort.services {
        let ways = CONTENDERS
            .iter()
            .filter(|way| way.is_ours() || services <= effort.most_in_rules);
        for way in ways {
            stop.pause(Duration::ZERO)?;
            progress(&format!("{}: {services} Services are loaded", way.name));
            cells.extend(new_cells(way, services, worlds.len()));
            let world = World::of(way, services);
            worlds.push(world.with_context(|| format!("{} with {services} Services", way.name))?);
        }
    }
    let mut random = Random::new(seed);
    for round in 1..=effort.rounds {
        progress(&format!("round {round} of {}", effort.rounds));
        let mut order: Vec<usize> = (0..cells.len()).collect();
        random.shuffle(&mut order);
        for index in order {
            stop.pause(Duration::ZERO)?;
            let cell = &mut cells[index];
            let turn = turn(cell, &mut bare, &mut worlds[cell.world], effort, &mut random);
            let turn =
                turn.with_context(|| format!("{} with {} Services", cell.subject, cell.subject.services))?;
            cell.turns.push(turn);
        }
    }
    Ok(Report::new(effort, seed, &cells))
}

fn new_cells(way: &'static Contender, services: u32, world: usize) -> impl Iterator<Item = Cell> {
    let subjects = way.views.iter().map(move |&view| Subject { way, view, services });
    subjects.flat_map(move |subject| {
        Operation::ALL.map(|operation| Cell {
            subject,
            world,
            operation,
            turns: Vec::new(),
        })
    })
}

fn turn(
    cell: &Cell,
    bare: &mut World,
    world: &mut World,
    effort: &Effort,
    random: &mut Random,
) -> Result<Turn> {
    let mut order = [0, 1, 2];
    random.shuffle(&mut order);
    let mut samples = [const { None }; 3];
    for which in order {
        let (world, target) = match which {
            0 => (&mut *world, Target::Service),
            1 => (&mut *world, Target::Pods),
            _ => (&mut *bare, Target::Pods),
        };
        samples[which] =
            Some(world.measure(cell.operation, cell.subject.view, target, effort.milliseconds)?);
    }
    let [service, pods, bare] = samples.map(|sample| sample.context("all three are measured"));
    Ok(Turn {
        service: service?,
        pods: pods?,
        bare: bare?,
    })
}
