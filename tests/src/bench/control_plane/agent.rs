//! Measures an agent that follows an API server, as on a node.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;

use super::{CHANGES_PER_SECOND, Effort};
use crate::api_server::ApiServer;
use crate::bench::objects::Shape;
use crate::lab::{AgentOptions, Lab, SocketLb, wait_for};
use crate::stop::Stop;

/// After this time, the agent has finished the deferred work of the last changes.
const SETTLING: Duration = Duration::from_secs(5);
/// Timeout for the first lists, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The resources that an agent uses.
#[derive(Debug, Serialize)]
pub struct AgentFigure {
    /// The Services that it follows.
    #[serde(flatten)]
    pub shape: Shape,
    /// Its memory when everything is in the maps, in MiB (`VmRSS`).
    pub resident_mib: u64,
    /// Its peak memory, in MiB (`VmHWM`).
    pub peak_mib: u64,
    /// Endpoint changes per second while it was busy.
    pub changes_per_second: u32,
    /// Its CPU time during the changes, in percent of one CPU.
    pub busy_percent: f64,
    /// Its CPU time without changes, in percent of one CPU.
    pub idle_percent: f64,
}

/// Starts an agent, waits until everything is in the maps, and measures it with and without
/// endpoint changes.
pub(super) fn measure(program: &Path, shape: Shape, effort: &Effort, stop: &Stop) -> Result<AgentFigure> {
    let lab = Lab::new("bench")?;
    let node = lab.node("node-1")?;
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let server = node
        .host()
        .namespace()
        .run(|| runtime.block_on(ApiServer::start("secret")))?;
    server.apply(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": node.host().addresses().ipv4}]},
    }))?;
    for made in shape.all() {
        server.apply(&serde_json::to_value(made.service())?)?;
        for slice in made.slices() {
            server.apply(&serde_json::to_value(slice)?)?;
        }
    }
    let options = AgentOptions {
        program: Some(program.to_owned()),
        kubeconfig: Some(server.write_kubeconfig(directory.path(), "secret")?),
        socket_lb: Some(SocketLb::Off),
        ..AgentOptions::default()
    };
    let mut agent = node.start_agent_unready(&options)?;
    wait_for("the agent to be in sync", PATIENCE, || {
        agent.is_in_sync().then_some(())
    })?;
    let process = Process(agent.process().pid());
    let (resident_mib, peak_mib) = (process.memory("VmRSS")?, process.memory("VmHWM")?);
    let busy_percent = process.cpu_while(|| change(&server, shape, effort.busy, stop))?;
    stop.pause(SETTLING)?;
    let idle_percent = process.cpu_while(|| stop.pause(effort.idle))?;
    Ok(AgentFigure {
        shape,
        resident_mib,
        peak_mib,
        changes_per_second: CHANGES_PER_SECOND,
        busy_percent,
        idle_percent,
    })
}

/// Changes endpoints for this time.
fn change(server: &ApiServer, shape: Shape, busy: Duration, stop: &Stop) -> Result<()> {
    let start = Instant::now();
    let pause = Duration::from_secs(1) / CHANGES_PER_SECOND;
    let turns = (0..u16::MAX)
        .zip(1_u32..)
        .take_while(|(_, count)| pause * *count <= busy);
    for (turn, count) in turns {
        let made = shape.service((u32::from(turn) * 7919) % shape.services);
        let slice = made.with_other_endpoint(turn).last_slice();
        server.apply(&serde_json::to_value(slice)?)?;
        stop.pause((start + pause * count).saturating_duration_since(Instant::now()))?;
    }
    Ok(())
}

/// A process by its id.
struct Process(u32);

impl Process {
    /// A field of its status in MiB; the kernel reports KiB.
    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        Ok(kib.with_context(|| format!("no {field}"))?.parse::<u64>()? / 1024)
    }

    /// Its CPU time during a function, in percent of one CPU.
    fn cpu_while(&self, happens: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (start, before) = (Instant::now(), self.cpu()?);
        happens()?;
        Ok((self.cpu()? - before) / start.elapsed().as_secs_f64() * 100.0)
    }

    /// Its CPU time in seconds, to a hundredth (`utime` and `stime`, proc_pid_stat(5)).
    fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        let fields = stat.rsplit_once(')').context("no name")?.1.split_whitespace();
        let ticks: Vec<u32> = fields
            .skip(11)
            .take(2)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Ok(f64::from(ticks.iter().sum::<u32>()) / 100.0)
    }
}
