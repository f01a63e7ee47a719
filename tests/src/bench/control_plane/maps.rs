//! Measures the maps: the agent's code without the API and its wire format.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_agent::controller::{Controller, ServiceState};
use lb_agent::datapath::maps::KernelMaps;
use lb_agent::datapath::object;
use lb_agent::datapath::object::settings::Settings;
use lb_agent::model::NodeConfig;
use lb_agent::object::{Change, Object, ObjectKind};

use super::{CHANGES_PER_SECOND, Effort, Times};
use crate::bench::objects::Shape;
use crate::lab::PinDirectory;
use crate::stop::Stop;

/// Fills maps, then replaces endpoints of Services one by one.
pub(super) fn measure(shape: Shape, effort: &Effort, stop: &Stop) -> Result<Times> {
    let mut times = Times {
        loads: Vec::new(),
        changes: Vec::new(),
    };
    for round in 0..effort.loads {
        stop.pause(Duration::ZERO)?;
        let pins = PinDirectory::new("bench")?;
        object::prepare(&Settings::default(), pins.path())?;
        let maps = KernelMaps::open(pins.path())?;
        let lists = lists(shape);
        let node = NodeConfig {
            name: "node-1".to_owned(),
            ..NodeConfig::default()
        };
        let mut controller = Controller::new(
            maps,
            node,
            [ObjectKind::Service, ObjectKind::EndpointSlice],
            Duration::ZERO,
        )?;
        let start = Instant::now();
        for list in lists {
            controller.change(list);
        }
        controller.tick(start);
        times.loads.push(start.elapsed());
        assert_complete(&controller, shape);
        if round == 0 {
            change(&mut controller, shape, effort, &mut times);
            assert_complete(&controller, shape);
        }
    }
    Ok(times)
}

fn lists(shape: Shape) -> [Change; 2] {
    let services = shape.all().map(|made| Object::Service(Box::new(made.service())));
    let slices = shape.all().flat_map(|made| made.slices());
    let slices = slices.map(|slice| Object::EndpointSlice(Box::new(slice)));
    [
        Change::Replace {
            kind: ObjectKind::Service,
            objects: services.collect(),
        },
        Change::Replace {
            kind: ObjectKind::EndpointSlice,
            objects: slices.collect(),
        },
    ]
}

fn assert_complete(controller: &Controller<KernelMaps>, shape: Shape) {
    let services = controller.services();
    let ready = services.iter().filter(|service| {
        service.state == ServiceState::Ok && service.endpoints.ready == shape.endpoints as usize
    });
    assert_eq!(
        ready.count(),
        shape.services as usize,
        "all Services are in the maps"
    );
}

fn change(controller: &mut Controller<KernelMaps>, shape: Shape, effort: &Effort, times: &mut Times) {
    // The controller's clock advances as with a real agent. Unused slots become free after a
    // second, and there are not enough of them for thousands of changes of a large Service per
    // second.
    let (begin, pause) = (Instant::now(), Duration::from_secs(1) / CHANGES_PER_SECOND);
    for turn in 0..effort.changes {
        // Consecutive changes concern distant Services.
        let number = (u32::from(turn) * 7919) % shape.services;
        let slice = shape.service(number).with_other_endpoint(turn).last_slice();
        let change = Change::Apply(Object::EndpointSlice(Box::new(slice)));
        let start = Instant::now();
        controller.change(change);
        let changed = controller.tick(begin + pause * u32::from(turn));
        times.changes.push(start.elapsed());
        assert_eq!(changed.len(), 1);
    }
}
