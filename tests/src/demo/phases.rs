//! The phases under load: the change, what to look at, and the condition for the next phase.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cluster::{Cluster, NODES};
use super::load::{Load, failed, requests};
use super::{Plan, REFRESH, Screen};
use crate::lab::report::HttpReport;
use crate::stop::Stop;

/// How long a phase may take in addition to the time that its requests need.
const PATIENCE: Duration = Duration::from_secs(20);

/// After this many requests of each client without an answer from a Pod, the Pod counts as having
/// no new connections.
const QUIET: u64 = 20;

/// The Pod that is removed and returns, and the one that is added.
const LEAVER: &str = "web-1";
const NEWCOMER: &str = "web-5";
/// The node of both.
const NODE: usize = 0;

/// The condition for the end of a phase.
type Condition<'a> = &'a dyn Fn(&Stage<'_>) -> bool;

/// The state of the phases under load.
pub(super) struct Stage<'a> {
    plan: &'a Plan,
    screen: &'a Screen,
    stop: &'a Stop,
    cluster: Cluster,
    load: Load,
    /// Whether all running agents are in sync.
    in_sync: bool,
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
            in_sync: true,
        })
    }

    /// Runs all phases under load, up to the first that fails.
    pub(super) fn play(&mut self) -> Result<()> {
        self.spread()?;
        self.add_pod()?;
        self.remove_pod()?;
        self.lose_agent()?;
        self.restart_agent()
    }

    /// Returns the cluster and the load after the last phase.
    pub(super) fn end(self) -> (Cluster, Load) {
        (self.cluster, self.load)
    }

    fn spread(&mut self) -> Result<()> {
        self.begin(
            "3/8  HTTP requests to the Service, each on a connection of its own",
            "Look at which Pods answer: all of them at the ClusterIP, the node's own at a\n\
             NodePort (externalTrafficPolicy: Local). The median is that since the start.",
        )?;
        self.finish(&|stage| stage.all_answer())
    }

    fn add_pod(&mut self) -> Result<()> {
        self.begin(
            &format!("4/8  A Pod is added under load: {NEWCOMER} on {}", NODES[NODE]),
            "Look at its column: it gets its share as soon as its manifest exists.",
        )?;
        self.cluster.create_pod(NEWCOMER, NODE)?;
        self.cluster.start_server(NEWCOMER)?;
        self.cluster.apply_pod(NEWCOMER)?;
        self.finish(&|stage| stage.all_answer())
    }

    fn remove_pod(&mut self) -> Result<()> {
        self.begin(
            &format!("5/8  A Pod is removed under load: {LEAVER}"),
            "Look at its column, which stops, and at the errors: there are none. New\n\
             connections go elsewhere before its server ends.",
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
                "6/8  The agent of {} is killed (SIGKILL), then {LEAVER} returns",
                NODES[NODE]
            ),
            "Look at the Pod of node-1 and its NodePort: traffic goes on, by programs and maps\n\
             that stay in the kernel. Only node-2 learns that the Pod is back.",
        )?;
        let agent = self.cluster.agents[NODE].take();
        agent.context("there is no agent to kill")?.kill();
        self.cluster.start_server(LEAVER)?;
        self.cluster.apply_pod(LEAVER)?;
        self.finish(&|stage| stage.returned_for_others())
    }

    fn restart_agent(&mut self) -> Result<()> {
        self.begin(
            &format!("     The agent of {} is started again", NODES[NODE]),
            &format!("Look at {LEAVER}: the agent takes over the pinned maps and catches up."),
        )?;
        self.cluster.agents[NODE] = Some(self.cluster.start_agent(NODE)?);
        self.finish(&|stage| stage.in_sync && stage.all_answer())
    }

    /// Starts a phase.
    fn begin(&mut self, heading: &str, explanation: &str) -> Result<()> {
        self.screen.heading(heading);
        self.screen.print(explanation);
        self.screen.print("");
        self.load.start_phase()
    }

    /// Shows the table until every client has sent its requests and the condition holds. Then
    /// prints the table permanently.
    fn finish(&mut self, condition: Condition<'_>) -> Result<()> {
        let ended = self.wait(&|stage| stage.all_have_asked() && (stage.has_errors() || condition(stage)));
        self.screen.keep(&self.load.table(&self.cluster));
        ended?;
        if self.has_errors() {
            bail!("requests failed");
        }
        Ok(())
    }

    /// Shows the table until no client gets this Pod any more.
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
        let needed = self.plan.interval * self.plan.requests;
        let limit = PATIENCE + 2 * needed;
        let deadline = Instant::now() + limit;
        loop {
            self.load.update()?;
            self.in_sync = self.cluster.agents_in_sync()?;
            self.screen.show(self.load.table(&self.cluster));
            if condition(self) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not every client got answers from every Pod that it should reach within {limit:?}");
            }
            self.stop.pause(REFRESH)?;
        }
    }

    fn all_have_asked(&self) -> bool {
        let mut phase = self.load.phase();
        phase.all(|(_, report)| requests(report) >= u64::from(self.plan.requests))
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
}
