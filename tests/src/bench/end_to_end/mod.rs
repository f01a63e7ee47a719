//! What connections notice: Services by the socket hooks, by TC and by XDP, beside kube-proxy's
//! rules and beside no Services at all.
//!
//! Each way has namespaces of its own. In each round, each operation of each way is measured three
//! times, one right after the other and in random order: to the Service, to the bare Pods of the
//! same namespaces, and to the bare Pods where nothing is translated. A ratio is one of such
//! neighbours; the median of all rounds counts. Rounds go through all operations of all ways, in
//! random order too, so that a busy moment of the machine spoils a round and not a way.

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

/// How long and how often is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// Numbers of Services, in ascending order.
    pub services: &'static [u32],
    /// The most that packet filters get: their rules take long to load.
    pub most_in_rules: u32,
    /// Turns of each measurement.
    pub rounds: u32,
    /// How long one takes: many short ones tell more than few long ones, since a machine does not
    /// stay the same for long.
    pub milliseconds: u32,
}

impl Effort {
    /// A quarter of an hour.
    pub const FULL: Self = Self {
        services: &[100, 1_000, 10_000, 30_000],
        most_in_rules: 10_000,
        rounds: 11,
        milliseconds: 100,
    };
    /// For a first look.
    pub const QUICK: Self = Self {
        services: &[100, 1_000],
        most_in_rules: 1_000,
        rounds: 5,
        milliseconds: 40,
    };
}

/// An operation on Services that are translated in some way.
struct Cell {
    subject: Subject,
    /// Index of its world.
    world: usize,
    operation: Operation,
    /// One for each round.
    turns: Vec<Turn>,
}

/// Measurements that followed each other.
struct Turn {
    /// To the Service.
    service: Sample,
    /// To the bare Pods beside it.
    pods: Sample,
    /// To the bare Pods where nothing is translated.
    bare: Sample,
}

/// Measures everything; `progress` is told what comes next. The same `seed` gives the same order.
///
/// # Errors
///
/// If the kernel refuses something, or `stop` is told to end.
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
