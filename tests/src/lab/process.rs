//! Processes in the places of a lab.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine::Machine;
use super::wait::wait_for;
use crate::slowness::patience;

/// How long a process may run by default: a test that hangs ends too.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// How long a process may take to end after it was asked to, or to become ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much of a log a message shows.
const LOG_TAIL: usize = 4000;

/// A process. Dropping it kills it; it also ends when the process that started it does.
#[derive(Debug)]
pub struct Process {
    title: String,
    child: Child,
    output: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Runs a program here and returns what it writes to standard output.
    ///
    /// # Errors
    ///
    /// If it fails, with what it wrote to standard error.
    pub fn exec(&self, program: impl AsRef<OsStr>, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
        self.start(program, arguments)?.output(TIME_LIMIT)
    }

    /// Starts a program here.
    ///
    /// # Errors
    ///
    /// If `lab-tool` cannot be started. That the program does not exist shows when it is waited
    /// for.
    pub fn start(&self, program: impl AsRef<OsStr>, arguments: &[impl AsRef<OsStr>]) -> Result<Process> {
        let title = Path::new(program.as_ref())
            .file_name()
            .unwrap_or(program.as_ref())
            .to_string_lossy();
        let mut command = self.tool(Some(TIME_LIMIT))?;
        command.args(["exec", "--"]).arg(&program).args(arguments);
        self.spawn(&title, command)
    }

    /// A command line of `lab-tool` that puts itself in this place, still without what it is to do
    /// there.
    pub(super) fn tool(&self, time_limit: Option<Duration>) -> Result<Command> {
        let mut command = Command::new(built_binary("lab-tool", "LAB_TOOL")?);
        // Its last words are what a test looks at.
        command
            .env("RUST_BACKTRACE", "0")
            .args(["--netns", self.namespace.name()])
            .arg("--cgroup")
            .arg(&self.cgroup)
            .args(["--parent", &process::id().to_string()])
            .args([
                "--time-limit",
                &time_limit.map(patience).unwrap_or_default().as_secs().to_string(),
            ]);
        Ok(command)
    }

    pub(super) fn spawn(&self, title: &str, command: Command) -> Result<Process> {
        let file = self.file(title);
        Process::spawn(
            format!("{title} in {}", self.name),
            command,
            file.with_added_extension("out"),
            file.with_added_extension("log"),
        )
    }

    /// The same of a program that may log to standard output or standard error.
    pub(super) fn spawn_with_single_log(&self, title: &str, command: Command) -> Result<Process> {
        let log = self.file(title).with_added_extension("log");
        Process::spawn(format!("{title} in {}", self.name), command, log.clone(), log)
    }

    /// A file that no other process writes to, still without its extension.
    fn file(&self, title: &str) -> PathBuf {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        self.logs.join(format!("{}-{title}-{sequence}", self.name))
    }
}

impl Process {
    fn spawn(title: String, mut command: Command, output: PathBuf, log: PathBuf) -> Result<Self> {
        // Appending: standard output and standard error may be one file.
        let create = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.with_context(|| format!("create {}", path.display()))
        };
        command
            .stdin(Stdio::piped())
            .stdout(create(&output)?)
            .stderr(create(&log)?);
        let child = spawn_from_lasting_thread(command).with_context(|| format!("start {title}"))?;
        Ok(Self {
            title,
            child,
            output,
            log,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    pub fn output_so_far(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Where it writes standard error to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `condition` gives a value.
    ///
    /// # Errors
    ///
    /// If it gives none in time or the process ends first; the message shows the end of its log.
    pub fn wait_until<T>(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let title = format!("{}: {what}", self.title);
        let found = wait_for(&title, PATIENCE, || {
            let ended = self.has_ended();
            // Asked after: what a process wrote last counts.
            let value = condition(self);
            (ended || value.is_some()).then_some(value)
        });
        match found {
            Ok(Some(value)) => Ok(value),
            Ok(None) => bail!("{title}: ended before\n{}", self.tail()),
            Err(error) => Err(error.context(self.tail())),
        }
    }

    /// Waits until it says on standard output that it is ready.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        self.wait_until("ready", |process| {
            process
                .output_so_far()
                .lines()
                .any(|line| line == "ready")
                .then_some(())
        })
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    ///
    /// If it does not read any more.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input was closed")?;
        writeln!(input, "{line}").with_context(|| format!("write to {}", self.title))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.has_ended() {
            bail!("{} has ended\n{}", self.title, self.tail());
        }
        kill(Pid::from_raw(self.pid().cast_signed()), signal)
            .with_context(|| format!("signal {}", self.title))
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    ///
    /// If it has not ended in time.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(PATIENCE)
    }

    /// Kills it (SIGKILL) and waits until it has ended.
    pub fn kill(mut self) {
        self.end();
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// If it has not ended in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let title = format!("end of {}", self.title);
        wait_for(&title, timeout, || self.child.try_wait().ok().flatten()).with_context(|| self.tail())
    }

    /// Waits until it ends by itself and returns what it wrote to standard output.
    ///
    /// # Errors
    ///
    /// If it has not ended in time or failed; the message shows the end of its log.
    pub fn output(mut self, timeout: Duration) -> Result<String> {
        let status = self.wait(timeout)?;
        if !status.success() {
            bail!("{}: {status}\n{}", self.title, self.tail());
        }
        Ok(self.output_so_far())
    }

    /// The end of its log, for a message.
    fn tail(&self) -> String {
        let log = self.log();
        let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL));
        log[start..].to_owned()
    }

    fn end(&mut self) {
        // Fails if it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.title, self.tail());
        }
    }
}

/// The program `name` as cargo built it beside the running one; the environment variable wins.
pub(super) fn built_binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let running = env::current_exe().context("find the running program")?;
    // Tests are in `deps`, programs in the directory above.
    running
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: run `cargo build --workspace`, or set {variable}"))
}

/// Spawns on a thread that lasts as long as this process.
///
/// Children ask the kernel to kill them when their parent ends, and there the parent is the
/// *thread* that started them: that of a test may end before its children are wanted to.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                // Nobody waits for the answer only if its thread was killed.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, result) = mpsc::channel();
    spawner
        .send((command, answer))
        .ok()
        .context("the thread that starts processes has ended")?;
    Ok(result
        .recv()
        .context("the thread that starts processes has ended")??)
}
