//! CPU time: the client's, the lab's and the machine's.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};

/// The files from which CPU time is read.
pub(super) struct Meter {
    /// `cpu.stat` of control groups.
    groups: Vec<PathBuf>,
    /// `schedstat` of the kernel threads `ksoftirqd`, which handle deferred packets.
    threads: Vec<PathBuf>,
    /// The unit of `/proc/stat` in nanoseconds.
    tick: u64,
}

/// CPU time so far, or between two readings, in nanoseconds.
pub(super) struct Usage {
    pub(super) client: u64,
    pub(super) lab: u64,
    pub(super) machine: u64,
}

impl Usage {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            client: self.client - before.client,
            lab: self.lab - before.lab,
            machine: self.machine - before.machine,
        }
    }
}

impl Meter {
    pub(super) fn new(groups: &[PathBuf]) -> Result<Self> {
        let ticks = sysconf(SysconfVar::CLK_TCK)?.context("sysconf returns no clock tick")?;
        Ok(Self {
            groups: groups.iter().map(|group| group.join("cpu.stat")).collect(),
            threads: packet_threads()?,
            tick: 1_000_000_000 / u64::try_from(ticks)?,
        })
    }

    pub(super) fn read(&self) -> Result<Usage> {
        let mut lab = 0;
        for path in &self.groups {
            lab += number_after(path, "usage_usec")? * 1000;
        }
        for path in &self.threads {
            lab += number_after(path, "")?;
        }
        let own = getrusage(UsageWho::RUSAGE_SELF)?;
        let own = own.user_time().num_microseconds() + own.system_time().num_microseconds();
        Ok(Usage {
            client: u64::try_from(own)? * 1000,
            lab,
            machine: machine_ticks()? * self.tick,
        })
    }
}

/// The `schedstat` of each CPU's thread `ksoftirqd`.
fn packet_threads() -> Result<Vec<PathBuf>> {
    let processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let is_packet_thread = |process: &PathBuf| {
        fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
    };
    let threads = processes
        .filter(is_packet_thread)
        .map(|process| process.join("schedstat"));
    // Some kernels have no such file; then the time of these threads is missing.
    Ok(threads.filter(|path| path.exists()).collect())
}

/// Busy time of all CPUs: user, nice, system, irq, softirq (proc_stat(5)).
fn machine_ticks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let busy = [0, 1, 2, 5, 6].map(|index| fields.get(index).copied().unwrap_or_default());
    Ok(busy.iter().sum())
}

/// The first number after this word.
fn number_after(path: &PathBuf, word: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let rest = text.split_once(word).map_or("", |(_, rest)| rest);
    let number = rest.split_whitespace().next();
    let number = number.with_context(|| format!("no {word} in {}", path.display()))?;
    Ok(number.parse()?)
}
