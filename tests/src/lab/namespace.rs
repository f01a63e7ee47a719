//! Network namespaces under `/run/netns`, where `ip netns` also finds them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns};

use super::wait::wait_for;

const DIRECTORY: &str = "/run/netns";

/// A network namespace of a lab.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace.
    pub(super) fn create(name: String) -> Result<Self> {
        ip_batch(&[format!("netns add {name}")])?;
        Ok(Self { name })
    }

    /// Its name, for `ip -n NAME` and `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes its name. The kernel deletes the namespace and its devices once no process is in it.
    ///
    /// # Errors
    ///
    /// If the name is already removed.
    pub fn remove(&self) -> Result<()> {
        ip_batch(&[format!("netns delete {}", self.name)])
    }

    /// Calls `function` in the namespace, on a separate thread: the calling thread stays in its
    /// namespace. Files and sockets that `function` opens belong to the namespace, even if they are
    /// used elsewhere.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered, or what `function` returns.
    pub fn run<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&self.name)?;
                function()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs lines of `ip` commands (without the leading `ip`) in the namespace.
    ///
    /// # Errors
    ///
    /// At the first line that fails.
    pub fn ip(&self, lines: &[impl AsRef<str> + Sync]) -> Result<()> {
        self.run(|| ip_batch(lines))
            .with_context(|| format!("namespace {}", self.name))
    }

    /// Runs lines of `ip -6` commands. `ip rule` does not derive the IP version from an address.
    pub(super) fn ip6(&self, lines: &[impl AsRef<str> + Sync]) -> Result<()> {
        self.run(|| batch("ip", &["-6", "-batch", "-"], lines))
            .with_context(|| format!("namespace {}", self.name))
    }

    /// Runs lines of `bridge` commands.
    pub(super) fn bridge(&self, lines: &[impl AsRef<str> + Sync]) -> Result<()> {
        self.run(|| batch("bridge", &["-batch", "-"], lines))
            .with_context(|| format!("namespace {}", self.name))
    }

    /// Sets variables below `/proc/sys/net`: pairs of path and value.
    ///
    /// # Errors
    ///
    /// If one cannot be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(path, value)| {
                let path = Path::new("/proc/sys/net").join(path);
                fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
            })
        })
    }

    /// Waits until devices are running.
    ///
    /// Deferred work of the kernel notifies the end of a link that was set up first that the other
    /// end is up. Until then the device drops the packets that it should send. A dropped neighbour
    /// request is repeated only a second later.
    pub(super) fn wait_until_running(&self, devices: &[&str]) -> Result<()> {
        let is_running = |device: &str| {
            getifaddrs().is_ok_and(|mut found| {
                found.any(|found| {
                    found.interface_name == device && found.flags.contains(InterfaceFlags::IFF_RUNNING)
                })
            })
        };
        self.run(|| {
            devices.iter().try_for_each(|device| {
                wait_for(&format!("device {device}"), Duration::from_secs(10), || {
                    is_running(device).then_some(())
                })
            })
        })
    }

    /// Sets a device's offloads, as in `ethtool -K DEVICE tx off gro on`.
    ///
    /// Native XDP on one end of a veth pair needs exactly these settings on the other end: XDP
    /// cannot detect an incomplete checksum.
    ///
    /// # Errors
    ///
    /// If `ethtool` fails.
    pub fn offload(&self, device: &str, settings: &[&str]) -> Result<()> {
        self.run(|| {
            let output = Command::new("ethtool")
                .arg("-K")
                .arg(device)
                .args(settings)
                .output()
                .context("run ethtool")?;
            if !output.status.success() {
                bail!(
                    "ethtool -K {device} {settings:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            Ok(())
        })
    }
}

/// Moves the calling thread into a namespace.
///
/// # Errors
///
/// If there is no such namespace or no privilege.
pub fn enter(name: &str) -> Result<()> {
    let path = path(name);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter namespace {name}"))
}

/// Removes the namespaces whose names are `unwanted`.
pub(super) fn remove(unwanted: impl Fn(&str) -> bool) -> Result<()> {
    let lines: Vec<String> = names()
        .into_iter()
        .filter(|name| unwanted(name))
        .map(|name| format!("netns delete {name}"))
        .collect();
    match lines.is_empty() {
        true => Ok(()),
        false => ip_batch_forced(&lines),
    }
}

/// Names of all namespaces.
fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Runs lines of `ip` commands in the namespace of the calling thread.
pub(super) fn ip_batch(lines: &[impl AsRef<str>]) -> Result<()> {
    batch("ip", &["-batch", "-"], lines)
}

fn batch(program: &str, arguments: &[&str], lines: &[impl AsRef<str>]) -> Result<()> {
    let errors = run_batch(program, arguments, lines)?;
    match errors {
        None => Ok(()),
        Some(errors) => bail!("{program}: {errors}"),
    }
}

/// Runs all lines even if some fail: another process may be removing the same leftovers.
fn ip_batch_forced(lines: &[String]) -> Result<()> {
    let errors = run_batch("ip", &["-force", "-batch", "-"], lines)?;
    match errors {
        Some(errors)
            if names()
                .iter()
                .any(|name| lines.contains(&format!("netns delete {name}"))) =>
        {
            bail!("ip: {errors}")
        }
        _ => Ok(()),
    }
}

/// Runs `ip` or `bridge` with lines as its input. Returns its error output if it fails.
fn run_batch(program: &str, arguments: &[&str], lines: &[impl AsRef<str>]) -> Result<Option<String>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program} (package iproute2)"))?;
    let input: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
    // Dropping the pipe ends the input. A program that ended early reports that by its exit status.
    let _ = child
        .stdin
        .take()
        .with_context(|| format!("{program} has no input"))?
        .write_all(input.as_bytes());
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {program}"))?;
    Ok(
        (!output.status.success())
            .then(|| format!("{}in:\n{input}", String::from_utf8_lossy(&output.stderr))),
    )
}
