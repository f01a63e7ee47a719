//! The agent of a node.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::node::Node;
use super::process::{Process, built_binary};

/// How long a command of the agent may take.
const COMMAND_TIME_LIMIT: Duration = Duration::from_secs(30);

/// The agent's log text when the maps contain everything in the manifests.
const READY: &str = "in sync";

/// The agent's modules that warn about Services that are not in the maps as in their manifests.
const WARNING_MODULES: [&str; 3] = [
    "WARN lb_agent::source",
    "WARN lb_agent::controller",
    "WARN lb_agent::install",
];

/// Whose sockets are translated at the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketLb {
    /// Those of the host and of all Pods.
    All,
    /// Those of the host.
    Host,
    /// No sockets.
    Off,
}

/// How XDP is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Xdp {
    /// In the driver if it supports XDP, otherwise in the stack.
    Auto,
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
    /// Not at all.
    Off,
}

impl fmt::Display for SocketLb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::All => "all",
            Self::Host => "host",
            Self::Off => "off",
        })
    }
}

impl fmt::Display for Xdp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        })
    }
}

/// Options for starting an agent. Unset options have the agent's defaults.
#[derive(Clone, Default, Debug)]
pub struct AgentOptions {
    /// The program; the one that cargo built if not set.
    pub program: Option<PathBuf>,
    /// The Kubernetes API as the source, instead of the lab's manifests.
    pub kubeconfig: Option<PathBuf>,
    /// `--socket-lb`
    pub socket_lb: Option<SocketLb>,
    /// `--xdp`
    pub xdp: Option<Xdp>,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// How long it may run; unlimited if not set. It always ends with the lab.
    pub time_limit: Option<Duration>,
}

impl AgentOptions {
    fn arguments(&self) -> Vec<String> {
        let socket_lb = self.socket_lb.map(|mode| format!("--socket-lb={mode}"));
        let xdp = self.xdp.map(|mode| format!("--xdp={mode}"));
        socket_lb
            .into_iter()
            .chain(xdp)
            .chain(self.arguments.iter().cloned())
            .collect()
    }
}

/// A running agent. Dropping it kills the process. Its programs keep working until the lab ends.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    options: AgentOptions,
    process: Process,
}

impl Node {
    /// Starts the node's agent on the manifests of the lab, and waits until it is in sync.
    ///
    /// The program is `lb-agent` next to the running one. The environment variable `LB_AGENT` takes
    /// precedence.
    ///
    /// # Errors
    ///
    /// If it does not get in sync; the message shows the end of its log. If it warns about a
    /// manifest or a Service, because a test would only notice later that the Service does not
    /// work; the message contains the warnings.
    pub fn start_agent(&self, options: &AgentOptions) -> Result<Agent> {
        let mut agent = self.start_agent_unready(options)?;
        agent.wait_until_logged(READY)?;
        let complaints = agent.complaints();
        ensure!(
            complaints.is_empty(),
            "the agent of {} did not install all Services:\n{}",
            self.name(),
            complaints.join("\n")
        );
        Ok(agent)
    }

    /// The same without waiting. For an agent that should fail, that is killed while it starts, or
    /// that cannot install some Services.
    ///
    /// # Errors
    ///
    /// If the program does not exist.
    pub fn start_agent_unready(&self, options: &AgentOptions) -> Result<Agent> {
        let program = options.program.clone().map_or_else(built_agent, Ok)?;
        let mut command = self.host().tool(options.time_limit)?;
        command
            .args(["exec", "--"])
            .arg(program)
            .args(["run", "--node-name", self.name()])
            .arg("--pin-path")
            .arg(self.pin_path())
            .arg("--state-directory")
            .arg(self.state_directory())
            .arg("--cgroup")
            .arg(self.cgroup())
            .args(options.arguments());
        match &options.kubeconfig {
            Some(path) => command.arg("--kube").env("KUBECONFIG", path),
            None => command.arg("--manifests").arg(&self.manifests),
        };
        Ok(Agent {
            node: self.clone(),
            options: options.clone(),
            process: self.host().spawn_with_single_log("lb-agent", command)?,
        })
    }

    /// Runs another command of the agent (`status`, `services`, `cleanup` ...) on this node and
    /// returns its standard output.
    ///
    /// # Errors
    ///
    /// If it fails; the message shows its standard error.
    pub fn agent_command(&self, command: &str, arguments: &[&str]) -> Result<String> {
        self.start_command(command, arguments)?.output(COMMAND_TIME_LIMIT)
    }

    /// Runs the command, accepts any exit code, and returns the code with the output.
    ///
    /// # Errors
    ///
    /// If it does not end, or has no exit code.
    pub fn agent_command_code(&self, command: &str, arguments: &[&str]) -> Result<(i32, String)> {
        let mut process = self.start_command(command, arguments)?;
        let status = process.wait(COMMAND_TIME_LIMIT)?;
        let code = status.code().with_context(|| format!("{command}: {status}"))?;
        Ok((code, process.output_so_far()))
    }

    fn start_command(&self, command: &str, arguments: &[&str]) -> Result<Process> {
        let program = built_agent()?;
        let mut tool = self.host().tool(Some(COMMAND_TIME_LIMIT))?;
        tool.args(["exec", "--"])
            .arg(program)
            .arg(command)
            .args(arguments)
            .arg("--pin-path")
            .arg(self.pin_path());
        self.host().spawn(&format!("lb-agent-{command}"), tool)
    }
}

impl Agent {
    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its warnings about Services that are not in the maps as in their manifests.
    fn complaints(&self) -> Vec<String> {
        let log = self.log();
        let warnings = log
            .lines()
            .filter(|line| WARNING_MODULES.iter().any(|who| line.contains(who)));
        warnings.map(str::to_owned).collect()
    }

    /// The file with its log.
    pub fn log_path(&self) -> &Path {
        self.process.log_path()
    }

    /// Whether the maps contain everything that was in the manifests when it started.
    pub fn is_in_sync(&self) -> bool {
        self.log().contains(READY)
    }

    /// Waits until it has logged a line that contains `text`.
    ///
    /// # Errors
    ///
    /// If it does not in time or ends first.
    pub fn wait_until_logged(&mut self, text: &str) -> Result<()> {
        self.process
            .wait_until(&format!("{text:?} in its log"), |process| {
                process
                    .log()
                    .lines()
                    .any(|line| line.contains(text))
                    .then_some(())
            })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it as a crash does (SIGKILL).
    pub fn kill(self) {
        self.process.kill();
    }

    /// Ends it as an update does (SIGTERM).
    ///
    /// # Errors
    ///
    /// If it has not ended in time.
    pub fn stop(self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// Kills it and starts another in its place, with the same options.
    ///
    /// # Errors
    ///
    /// As [`Node::start_agent`].
    pub fn restart(self) -> Result<Self> {
        let Self {
            node,
            options,
            process,
        } = self;
        process.kill();
        node.start_agent(&options)
            .with_context(|| format!("restart the agent of {}", node.name()))
    }
}

fn built_agent() -> Result<PathBuf> {
    built_binary("lb-agent", "LB_AGENT")
}
