//! Processes in the machines of a lab.

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

/// How long a process may run by default, so that a test that hangs ends too.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// How long a process may take to become ready, or to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many bytes of a log a message shows.
const LOG_TAIL: usize = 4000;

/// A process. Dropping it kills the process. It also ends when the process that started it ends.
#[derive(Debug)]
pub struct Process {
    title: String,
    child: Child,
    output: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Runs a program on this machine and returns its standard output.
    ///
    /// # Errors
    ///
    /// If it fails; the message shows its standard error.
    pub fn exec(&self, program: impl AsRef<OsStr>, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
        self.start(program, arguments)?.output(TIME_LIMIT)
    }

    /// Starts a program on this machine.
    ///
    /// # Errors
    ///
    /// If `lab-tool` cannot be started. If the program does not exist, waiting for it fails.
    pub fn start(&self, program: impl AsRef<OsStr>, arguments: &[impl AsRef<OsStr>]) -> Result<Process> {
        let title = Path::new(program.as_ref())
            .file_name()
            .unwrap_or(program.as_ref())
            .to_string_lossy();
        let mut command = self.tool(Some(TIME_LIMIT))?;
        command.args(["exec", "--"]).arg(&program).args(arguments);
        self.spawn(&title, command)
    }

    /// A `lab-tool` command that enters this machine. The caller appends the subcommand.
    pub(super) fn tool(&self, time_limit: Option<Duration>) -> Result<Command> {
        let mut command = Command::new(built_binary("lab-tool", "LAB_TOOL")?);
        // Tests read the end of its error output, which a backtrace would fill.
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

    /// The same for a program that may log to standard output or standard error.
    pub(super) fn spawn_with_single_log(&self, title: &str, command: Command) -> Result<Process> {
        let log = self.file(title).with_added_extension("log");
        Process::spawn(format!("{title} in {}", self.name), command, log.clone(), log)
    }

    /// The path of a file to which no other process writes, without its extension.
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

    /// Its standard output so far.
    pub fn output_so_far(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The file with its standard error.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `condition` returns a value.
    ///
    /// # Errors
    ///
    /// If it returns none in time or the process ends first. The message shows the end of its log.
    pub fn wait_until<T>(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let title = format!("{}: {what}", self.title);
        let found = wait_for(&title, PATIENCE, || {
            let ended = self.has_ended();
            // Called after the check, so that the last output of a process counts.
            let value = condition(self);
            (ended || value.is_some()).then_some(value)
        });
        match found {
            Ok(Some(value)) => Ok(value),
            Ok(None) => bail!("{title}: ended before\n{}", self.tail()),
            Err(error) => Err(error.context(self.tail())),
        }
    }

    /// Waits until it prints `ready` to standard output.
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
    /// If it no longer reads its input.
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

    /// Sends SIGTERM and waits until it has ended.
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

    /// Waits until it ends by itself and returns its standard output.
    ///
    /// # Errors
    ///
    /// If it has not ended in time or failed. The message shows the end of its log.
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
        // Fails if it has already ended, which is fine.
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

/// The path of the program `name` that cargo built next to the running one. The environment
/// variable takes precedence.
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

/// Spawns on a thread that runs as long as this process.
///
/// Children request that the kernel kills them when their parent ends. For the kernel, the parent
/// is the *thread* that started them, and the thread of a test may end before its children should.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                // Fails only if the waiting thread was killed.
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
