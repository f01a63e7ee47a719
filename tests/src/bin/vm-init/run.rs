//! Runs programs one after another, and reports them to the host.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_tests::lab::wait_for;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The serial port that the host reads.
const PORT: &str = "/dev/ttyS1";

/// The factor by which timeouts are extended: processors may be emulated.
const SLOWNESS: &str = "8";

/// The time limit for a program to end after it was killed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The serial port to which results are written.
pub(super) struct Report(File);

impl Report {
    pub(super) fn open() -> Result<Self> {
        let mut options = OpenOptions::new();
        // The port must not become the controlling terminal.
        options.write(true).custom_flags(libc::O_NOCTTY);
        Ok(Self(options.open(PORT).with_context(|| format!("open {PORT}"))?))
    }

    pub(super) fn line(&self, text: &str) -> Result<()> {
        let written = (&self.0).write_all(format!("{text}\n").as_bytes());
        written.with_context(|| format!("write to {PORT}"))
    }

    fn as_output(&self) -> Result<Stdio> {
        Ok(self.0.try_clone().context("share the port")?.into())
    }
}

/// Runs one line of the list of programs.
pub(super) fn run(report: &Report, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let mut next = || words.next().with_context(|| format!("incomplete: {line:?}"));
    let limit = Duration::from_secs(next()?.parse().context("the time limit is not a number")?);
    let (directory, program) = (next()?, next()?);
    report.line(&format!("=== run {program}"))?;
    let start = Instant::now();
    let mut command = Command::new(program);
    command
        .args(words)
        .current_dir(directory)
        .env("CARGO_MANIFEST_DIR", directory)
        .env("LB_TESTS_SLOWNESS", SLOWNESS)
        .stdin(Stdio::null())
        .stdout(report.as_output()?)
        .stderr(report.as_output()?)
        .process_group(0);
    let child = command.spawn().with_context(|| format!("start {program}"))?;
    let status = end_of(Pid::from_raw(child.id().cast_signed()), limit)?;
    report.line(&format!("=== end {status} {}", start.elapsed().as_millis()))
}

/// Waits for a program. Returns how it ended: its exit code, `signal` or `time`.
fn end_of(program: Pid, limit: Duration) -> Result<String> {
    let status = wait_for("the program's end", limit, || reap(program));
    let late = status.is_err();
    // Processes that it left running would disturb the next program.
    match killpg(program, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error).context("kill the processes that a program left"),
    }
    if late {
        wait_for("the killed program's end", PATIENCE, || reap(program))?;
    }
    Ok(match status {
        Ok(WaitStatus::Exited(_, code)) => code.to_string(),
        Ok(_) => "signal".to_owned(),
        Err(_) => "time".to_owned(),
    })
}

/// How a program ended, if it did. Also reaps orphans, which become children of this process.
fn reap(program: Pid) -> Option<WaitStatus> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(status) if status.pid() == Some(program) => return Some(status),
            Ok(_) => {}
        }
    }
}
