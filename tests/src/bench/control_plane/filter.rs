//! Measures a packet filter's rules, loaded as kube-proxy loads them.

use std::time::Duration;

use anyhow::Result;

use super::{Effort, Times};
use crate::bench::filter::Filter;
use crate::bench::objects::{Made, Shape};
use crate::lab::LoneNamespace;
use crate::stop::Stop;

/// Loads all rules, then those of changed Services one by one. Generating the rules is not part of
/// the measured time.
pub(super) fn measure(filter: Filter, shape: Shape, effort: &Effort, stop: &Stop) -> Result<Times> {
    let services: Vec<Made> = shape.all().collect();
    let all = filter.all(&services);
    let mut times = Times {
        loads: Vec::new(),
        changes: Vec::new(),
    };
    for round in 0..effort.loads {
        stop.pause(Duration::ZERO)?;
        let _alone = LoneNamespace::enter("rules")?;
        filter.load(&filter.base())?;
        times.loads.push(filter.load(&all)?);
        if round > 0 {
            continue;
        }
        for turn in 0..effort.filter_changes {
            stop.pause(Duration::ZERO)?;
            let before = shape.service((u32::from(turn) * 7919) % shape.services);
            let after = before.clone().with_other_endpoint(turn);
            times
                .changes
                .push(filter.load(&filter.change(&services, &before, &after))?);
        }
    }
    Ok(times)
}
