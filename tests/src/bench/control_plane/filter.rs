//! A packet filter's rules, loaded as kube-proxy loads them.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Effort, Times};
use crate::bench::objects::Shape;
use crate::bench::rules::Filter;
use crate::lab::LoneNamespace;

/// Loads all rules, and those of one changed Service after the other. The rules are written before the time is taken.
pub(super) fn measure(filter: Filter, shape: Shape, effort: &Effort) -> Result<Times> {
    let all = filter.all(shape);
    let mut times = Times {
        loads: Vec::new(),
        changes: Vec::new(),
    };
    for round in 0..effort.loads {
        let _alone = LoneNamespace::enter("rules")?;
        load(filter, &filter.base())?;
        times.loads.push(load(filter, &all)?);
        if round > 0 {
            continue;
        }
        for turn in 0..effort.filter_changes {
            let before = shape.service((u32::from(turn) * 7919) % shape.services);
            let after = before.clone().with_other_endpoint(turn);
            times
                .changes
                .push(load(filter, &filter.change(shape, &before, &after))?);
        }
    }
    Ok(times)
}

fn load(filter: Filter, rules: &str) -> Result<Duration> {
    let [program, arguments @ ..] = filter.command() else {
        unreachable!("every filter has a program")
    };
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    // Dropping it ends the input.
    let written = child
        .stdin
        .take()
        .map(|mut input| input.write_all(rules.as_bytes()));
    let status = child.wait()?;
    ensure!(status.success(), "{program} refused the rules: {status}");
    written.transpose().context("write the rules")?;
    Ok(start.elapsed())
}
