//! Builds and runs tests.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use super::stage::{self, Executable, Stage, Target};
use super::transcript::{Counts, Transcript};
use crate::{command, workspace};

/// The result of a stage or of a part of it.
#[derive(Default, Debug)]
pub(crate) struct Outcome {
    /// The sums.
    pub(crate) counts: Counts,
    /// Messages about tests that did not pass.
    pub(crate) remarks: Vec<String>,
}

impl Outcome {
    /// Adds the result of another part.
    pub(crate) fn add(&mut self, other: Self) {
        self.counts += other.counts;
        self.remarks.extend(other.remarks);
    }
}

/// Builds a stage's tests and runs those whose name contains the filter.
pub(crate) fn run(stage: Stage, targets: &[Target], filter: Option<&str>) -> Result<Outcome> {
    let selected = select(stage, targets)?;
    if selected.is_empty() {
        println!("no tests");
        return Ok(Outcome::default());
    }
    if stage.needs_agent() {
        // Tests look for it in their own directory. Cargo builds it automatically only for the
        // tests of its crate.
        command::run(workspace::cargo().args(["build", "--workspace", "--bin=lb-agent"]))?;
    }
    let mut outcome = Outcome::default();
    for executable in build(&selected)? {
        println!("--- {} {}", executable.target.package, executable.target.name);
        let mut command = program(stage, &executable);
        command.args(filter).arg("--show-output");
        if stage == Stage::Lab {
            command.arg(format!("--test-threads={}", lab_threads()?));
        }
        outcome.add(follow(&mut command)?);
    }
    if stage == Stage::Unit {
        println!("--- documentation");
        let mut cargo = workspace::cargo();
        cargo
            .args(["test", "--quiet", "--workspace", "--doc", "--"])
            .args(filter);
        outcome.add(follow(cargo.arg("--show-output"))?);
    }
    Ok(outcome)
}

/// The number of concurrent lab tests. Each test waits for a third of its time: for packets, and
/// for the agent.
fn lab_threads() -> Result<usize> {
    let processors = thread::available_parallelism().context("the number of CPUs")?;
    Ok(processors.get().saturating_mul(3).div_ceil(2))
}

/// Builds a stage's tests without running them.
pub(crate) fn executables(stage: Stage, targets: &[Target]) -> Result<Vec<Executable>> {
    build(&select(stage, targets)?)
}

fn select(stage: Stage, targets: &[Target]) -> Result<Vec<&Target>> {
    let built_for = match stage {
        Stage::PlainUser => Stage::Unit,
        other => other,
    };
    let mut selected = Vec::new();
    for target in targets {
        if target.stage()? == built_for {
            selected.push(target);
        }
    }
    Ok(selected)
}

/// A command that starts a test program as cargo would.
fn program(stage: Stage, executable: &Executable) -> Command {
    let mut command = match stage {
        Stage::PlainUser => as_plain_user(&executable.program),
        _ => command::clean(&executable.program),
    };
    command
        .current_dir(&executable.directory)
        .env("CARGO_MANIFEST_DIR", &executable.directory);
    command
}

/// Builds the targets' tests. Every build names all crates of the workspace, so that all stages use
/// the dependencies with the same features and nothing is built twice.
fn build(targets: &[&Target]) -> Result<Vec<Executable>> {
    let mut selectors: Vec<_> = targets.iter().map(|target| target.selectors()).collect();
    selectors.sort();
    selectors.dedup();
    let mut cargo = workspace::cargo();
    cargo
        .args([
            "test",
            "--no-run",
            "--workspace",
            "--message-format=json-render-diagnostics",
        ])
        .args(selectors.concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let messages = BufReader::new(child.stdout.take().context("cargo has no output")?);
    let mut executables = Vec::new();
    for line in messages.lines() {
        let executable = stage::parse_artifact(&line?);
        executables.extend(executable.filter(|executable| targets.contains(&&executable.target)));
    }
    if !child.wait()?.success() {
        bail!("the tests do not build");
    }
    Ok(executables)
}

/// Runs a test program and shows its output.
fn follow(command: &mut Command) -> Result<Outcome> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let mut output = BufReader::new(child.stdout.take().context("the program has no output")?);
    let mut transcript = Transcript::default();
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\r', '\n']);
        if transcript.read(text) {
            println!("{text}");
        }
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        println!("ended with {status}");
    }
    Ok(Outcome {
        counts: transcript.finish(status.success()),
        remarks: transcript.remarks().to_vec(),
    })
}

/// A command that runs a program as an unprivileged user.
fn as_plain_user(program: &Path) -> Command {
    let mut command = set_privileges(&[]);
    if !command::succeeds(set_privileges(&[]).args(["test", "-r"]).arg(program)) {
        // The checkout may be below root's home directory. In that case the tests keep the
        // privilege to read all files.
        command = set_privileges(&["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]);
    }
    command.arg(program);
    command
}

/// A command prefix that drops all privileges except these. It ends with `env`, because kept
/// privileges take effect at the first exec.
fn set_privileges(kept: &[&str]) -> Command {
    let mut command = command::clean("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ])
        .args(kept)
        .args(["env", "HOME=/"]);
    command
}
