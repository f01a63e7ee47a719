//! The phases of the demo: what happens, what to look at, and what must be true before the next one begins.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cluster::{Cluster, NODES, SERVICE, SERVICE_FILE};
use super::load::{Load, failed, requests};
use super::{Plan, Screen, Stop};
use crate::lab::report::HttpReport;
use crate::lab::{AgentOptions, Machine};

/// How often the table is redrawn.
const REFRESH: Duration = Duration::from_millis(100);

/// How long a phase may take beyond the time that its requests need.
const PATIENCE: Duration = Duration::from_secs(20);

/// After so many requests of each client without an answer from a Pod, no new connections go there.
const QUIET: u64 = 20;

/// The Pod that goes and comes back, and the one that is added.
const LEAVER: &str = "web-1";
const NEWCOMER: &str = "web-5";
/// The node of both.
const NODE: usize = 0;

/// The first phase.
pub(super) fn build(plan: &Plan, screen: &Screen) -> Result<Cluster> {
    screen.heading("1/7  Two nodes, Pods and clients: network namespaces, linked only with each other");
    let cluster = Cluster::build(plan.silent.as_deref())?;
    for (index, node) in cluster.nodes.iter().enumerate() {
        let pods = node.pods();
        let pods: Vec<&str> = pods.iter().map(Machine::name).collect();
        screen.print(&format!(
            "{}  Pods: {}",
            place(NODES[index], node.host()),
            pods.join(", ")
        ));
    }
    screen.print(&place("outside", &cluster.outside));
    Ok(cluster)
}

fn place(name: &str, machine: &Machine) -> String {
    let addresses = machine.addresses();
    format!(
        "{name:8} {:13} {:13}",
        addresses.ipv4.to_string(),
        addresses.ipv6.to_string()
    )
    .trim_end()
    .to_owned()
}

/// The second phase.
pub(super) fn start_agents(cluster: &mut Cluster, screen: &Screen) -> Result<()> {
    screen.heading("2/7  An lb-agent on each node, which reads ordinary Kubernetes YAML");
    let path = cluster.lab.manifests().join(SERVICE_FILE);
    screen.print(&format!("{}:", path.display()));
    for line in SERVICE.lines() {
        screen.print(&format!("    {line}"));
    }
    cluster.apply_all()?;
    let start = Instant::now();
    cluster.start_agents()?;
    let seconds = start.elapsed().as_secs_f32();
    screen.print(&format!(
        "Both are in sync after {seconds:.1} s: their programs and maps are in the kernel."
    ));
    Ok(())
}

/// What must be true for a phase to end.
type Condition<'a> = &'a dyn Fn(&Stage<'_>) -> bool;

/// What the phases under load work with.
pub(super) struct Stage<'a> {
    plan: &'a Plan,
    screen: &'a Screen,
    stop: &'a Stop,
    cluster: Cluster,
    load: Load,
    failures: Vec<String>,
}

impl<'a> Stage<'a> {
    /// Starts the clients.
    pub(super) fn new(plan: &'a Plan, screen: &'a Screen, stop: &'a Stop, cluster: Cluster) -> Result<Self> {
        Ok(Self {
            plan,
            screen,
            stop,
            load: Load::start(&cluster, plan.interval)?,
            cluster,
            failures: Vec::new(),
        })
    }

    /// All phases under load, up to the first that fails.
    pub(super) fn play(&mut self) -> Result<()> {
        self.spread()?;
        self.add_pod()?;
        self.remove_pod()?;
        self.lose_agent()?;
        self.restart_agent()
    }

    /// Remembers why it did not go on.
    pub(super) fn note_failure(&mut self, error: &anyhow::Error) {
        self.failures.push(format!("{error:#}"));
    }

    /// What is left when all is done.
    pub(super) fn end(self) -> (Cluster, Load, Vec<String>) {
        (self.cluster, self.load, self.failures)
    }

    fn spread(&mut self) -> Result<()> {
        self.begin(
            "3/7  Requests to the Service, each on a connection of its own",
            "Look at the Pods that answer: all of them from inside, the node's own from outside\n\
             (externalTrafficPolicy: Local).",
        )?;
        self.finish(&|stage| stage.all_answer())
    }

    fn add_pod(&mut self) -> Result<()> {
        self.begin(
            &format!("4/7  A Pod is added under load: {NEWCOMER} on {}", NODES[NODE]),
            "Look at its column: it gets its share as soon as its manifest is there.",
        )?;
        self.cluster.create_pod(NEWCOMER, NODE)?;
        self.cluster.start_server(NEWCOMER)?;
        self.cluster.apply_pod(NEWCOMER)?;
        self.finish(&|stage| stage.all_answer())
    }

    fn remove_pod(&mut self) -> Result<()> {
        self.begin(
            &format!("5/7  A Pod is removed under load: {LEAVER}"),
            "Look at its column, which stops, and at the errors: its server ends only when new\n\
             connections go elsewhere, so there are none.",
        )?;
        self.cluster.apply_deletion(LEAVER)?;
        self.wait_until_quiet(LEAVER)?;
        self.cluster.stop_server(LEAVER)?;
        self.cluster.remove_pod(LEAVER)?;
        self.finish(&|stage| stage.all_answer())
    }

    fn lose_agent(&mut self) -> Result<()> {
        self.begin(
            &format!(
                "6/7  The agent of {} is killed (SIGKILL), then {LEAVER} returns",
                NODES[NODE]
            ),
            "Look at the clients of that node: their requests succeed, since programs and maps stay\n\
             in the kernel. Only the other node's agent can tell its clients of the Pod that is back.",
        )?;
        let agent = self.cluster.agents[NODE].take();
        agent.context("there is no agent to kill")?.kill();
        self.cluster.start_server(LEAVER)?;
        self.cluster.apply_pod(LEAVER)?;
        self.finish(&|stage| stage.returned_for_others())
    }

    fn restart_agent(&mut self) -> Result<()> {
        self.begin(
            "     It is started again",
            &format!("Look at {LEAVER}: a new agent takes over what is in the kernel and catches up."),
        )?;
        let agent = self.cluster.nodes[NODE].start_agent_unready(&AgentOptions::default())?;
        self.cluster.agents[NODE] = Some(agent);
        self.finish(&|stage| stage.agents_in_sync() && stage.all_answer())
    }

    /// Starts a phase.
    fn begin(&mut self, heading: &str, explanation: &str) -> Result<()> {
        self.screen.heading(heading);
        self.screen.print(explanation);
        self.screen.print("");
        self.load.start_phase()
    }

    /// Shows the table until every client has sent its requests and the condition holds; then the table stays.
    fn finish(&mut self, condition: Condition<'_>) -> Result<()> {
        let ended = self.wait(&|stage| stage.all_have_asked() && (stage.has_errors() || condition(stage)));
        self.screen.keep(&self.load.table(&self.cluster));
        ended?;
        if self.has_errors() {
            bail!("requests failed");
        }
        Ok(())
    }

    /// Shows the table until no client is sent to this Pod any more.
    fn wait_until_quiet(&mut self, pod: &str) -> Result<()> {
        loop {
            let before = self.counts(pod);
            self.wait(&|stage| {
                let mut pairs = stage.counts(pod).into_iter().zip(&before);
                pairs.all(|((now, _), (before, _))| now >= before + QUIET)
            })?;
            let mut pairs = self.counts(pod).into_iter().zip(&before);
            if pairs.all(|((_, now), (_, before))| now == *before) {
                return Ok(());
            }
        }
    }

    /// By client: requests, and answers from a Pod.
    fn counts(&self, pod: &str) -> Vec<(u64, u64)> {
        let count = |report: &HttpReport| report.answers.get(pod).copied().unwrap_or_default();
        self.load
            .phase()
            .map(|(_, report)| (requests(report), count(report)))
            .collect()
    }

    /// Shows the table until a condition holds.
    fn wait(&mut self, condition: Condition<'_>) -> Result<()> {
        let needed = self.plan.interval.as_secs_f64() * self.plan.requests as f64;
        let deadline = Instant::now() + PATIENCE + Duration::from_secs_f64(2.0 * needed);
        loop {
            self.load.update()?;
            self.screen.show(self.load.table(&self.cluster));
            if condition(self) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not every client was answered by every Pod in time");
            }
            self.stop.pause(REFRESH)?;
        }
    }

    fn all_have_asked(&self) -> bool {
        let mut phase = self.load.phase();
        phase.all(|(_, report)| requests(report) >= self.plan.requests)
    }

    fn has_errors(&self) -> bool {
        self.load.phase().any(|(_, report)| failed(report) > 0)
    }

    /// Whether every client has been answered by every Pod that it can reach.
    fn all_answer(&self) -> bool {
        self.load.phase().all(|(route, report)| {
            let mut pods = route.pods(&self.cluster);
            pods.all(|pod| report.answers.contains_key(pod))
        })
    }

    /// Whether the clients of nodes with an agent have been answered by the Pod that is back.
    fn returned_for_others(&self) -> bool {
        self.load
            .phase()
            .filter(|(route, _)| self.cluster.agents[route.agent].is_some() && route.reaches(NODE))
            .all(|(_, report)| report.answers.contains_key(LEAVER))
    }

    fn agents_in_sync(&self) -> bool {
        let mut agents = self.cluster.agents.iter().flatten();
        agents.all(|agent| agent.is_in_sync())
    }
}
