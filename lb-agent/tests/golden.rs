//! Scenarios: objects are applied, and the maps are compared as text.
//!
//! A scenario is a directory of steps. A step is a file `NN-name.yaml` with objects to apply, or
//! `NN-name-delete.yaml` with objects to delete. `NN-name.maps` contains the expected maps after
//! the step, and `NN-name.problems` the expected problems. Each scenario runs without faults, and
//! with every tenth write failing. With `UPDATE_GOLDEN=1` the test rewrites the expectations.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic too")]

mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_agent::controller::Controller;
use lb_agent::maps::testing::{FakeMaps, FaultyMaps};
use lb_agent::maps::{Capacity, Maps, dump};
use lb_agent::model::{NodeConfig, NodePortAddresses, UnknownPort};
use lb_agent::object::{Change, Object, ObjectKind, ObjectReference};

const KINDS: [ObjectKind; 5] = ObjectKind::ALL;
const CAPACITY: Capacity = Capacity {
    frontends: 200,
    slots: 20_000,
    backends: 200,
    services: 100,
    source_ranges: 100,
};

type TestMaps = FaultyMaps<FakeMaps>;

struct Step {
    path: PathBuf,
    is_delete: bool,
    objects: Vec<Object>,
}

fn steps(scenario: &Path) -> Vec<Step> {
    let mut paths: Vec<PathBuf> = fs::read_dir(scenario)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    paths
        .into_iter()
        .map(|path| Step {
            is_delete: path.file_stem().unwrap().to_string_lossy().ends_with("-delete"),
            objects: objects::parse(&fs::read_to_string(&path).unwrap()),
            path,
        })
        .collect()
}

fn node() -> NodeConfig {
    NodeConfig {
        name: "node-a".to_owned(),
        zone: Some("zone-a".to_owned()),
        addresses: ["192.168.0.10", "fd00:168::10"]
            .map(|text| text.parse().unwrap())
            .into(),
        device_addresses: BTreeSet::new(),
        other_nodes: BTreeSet::new(),
        service_cidrs: BTreeSet::new(),
        node_port_addresses: vec![NodePortAddresses::Primary, NodePortAddresses::Localhost],
        unknown_port: UnknownPort::Reject,
        service_proxy_name: None,
    }
}

fn controller(maps: TestMaps) -> Controller<TestMaps> {
    Controller::new(maps, node(), KINDS, Duration::from_secs(5)).unwrap()
}

/// Lists all objects, as a source does.
fn replace_all(controller: &mut Controller<TestMaps>, objects: &BTreeMap<ObjectReference, Object>) {
    for kind in KINDS {
        let of_kind = objects.iter().filter(|(reference, _)| reference.kind == kind);
        controller.change(Change::Replace {
            kind,
            objects: of_kind.map(|(_, object)| object.clone()).collect(),
        });
    }
}

/// Advances the clock until nothing is due.
fn settle(controller: &mut Controller<TestMaps>, now: &mut Instant) {
    for _ in 0..1000 {
        controller.tick(*now);
        match controller.next_due() {
            Some(due) => *now = due.max(*now),
            None => return,
        }
    }
    panic!("does not settle: {:?}", controller.status());
}

/// Checks that a new agent writes nothing.
fn check_restart(
    controller: &Controller<TestMaps>,
    objects: &BTreeMap<ObjectReference, Object>,
    step: &Path,
) {
    let mut maps = controller.maps().clone();
    maps.inner.log.clear();
    let mut restarted = self::controller(maps);
    replace_all(&mut restarted, objects);
    restarted.tick(Instant::now());
    assert_eq!(
        restarted.maps().inner.log,
        [],
        "{}: a new agent writes",
        step.display()
    );
    assert_eq!(restarted.services(), controller.services(), "{}", step.display());
}

/// Checks that no row referred to a missing row at any time.
fn check_order(controller: &Controller<TestMaps>, scenario: &Path) {
    let mut maps = FakeMaps::new(CAPACITY);
    for operation in &controller.maps().inner.log {
        maps.apply(operation).unwrap();
        if let Some(fault) = maps.inconsistency() {
            panic!("{}: after {operation:?}: {fault}", scenario.display());
        }
    }
}

fn check_golden(path: &Path, found: &str, context: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        if found.is_empty() && path.extension().is_some_and(|extension| extension == "problems") {
            let _ = fs::remove_file(path);
        } else {
            fs::write(path, found).unwrap();
        }
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(found, expected, "{} differs {context}:\n{found}", path.display());
}

fn run(scenario: &Path, percent: u64, seed: u64) {
    let mut now = Instant::now();
    let mut objects: BTreeMap<ObjectReference, Object> = BTreeMap::new();
    let mut controller = controller(FaultyMaps::new(FakeMaps::new(CAPACITY), percent, seed));
    for (number, step) in steps(scenario).into_iter().enumerate() {
        for object in step.objects {
            let reference = object.reference();
            let change = match step.is_delete {
                true => {
                    objects.remove(&reference).expect("deletes what exists");
                    Change::Delete(reference)
                }
                false => {
                    objects.insert(reference, object.clone());
                    Change::Apply(object)
                }
            };
            if number > 0 {
                controller.change(change);
            }
        }
        if number == 0 {
            replace_all(&mut controller, &objects);
        }
        settle(&mut controller, &mut now);

        let context = format!("with {percent} % faults, seed {seed}");
        let text = dump(&controller.maps().image().unwrap());
        check_golden(&step.path.with_extension("maps"), &text, &context);
        let problems = controller
            .problems()
            .into_iter()
            .map(|problem| format!("{problem}\n"));
        check_golden(
            &step.path.with_extension("problems"),
            &problems.collect::<String>(),
            &context,
        );
        if percent == 0 {
            check_restart(&controller, &objects, &step.path);
        }
        assert_eq!(
            controller.repair().unwrap().faults(),
            0,
            "{}: {context}",
            step.path.display()
        );
        now += Duration::from_secs(60);
    }
    replace_all(&mut controller, &BTreeMap::new());
    settle(&mut controller, &mut now);
    let text = dump(&controller.maps().image().unwrap());
    assert_eq!(
        text,
        "",
        "{} leaves something behind, seed {seed}",
        scenario.display()
    );
    check_order(&controller, scenario);
}

#[test]
fn scenarios() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let seeds = std::env::var("GOLDEN_SEEDS").map_or(50, |text| text.parse().unwrap());
    let mut scenarios: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    scenarios.sort();
    assert!(!scenarios.is_empty());
    for scenario in scenarios {
        run(&scenario, 0, 0);
        for seed in 1..=seeds {
            run(&scenario, 10, seed);
        }
    }
}
