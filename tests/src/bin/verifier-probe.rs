//! Loads each kernel program and prints the result of the running kernel's verifier, as one JSON
//! object per program.
//!
//! The kernel reports the verified instructions only in the verifier's log, which the loader
//! discards on success. So every program is loaded while no file descriptor is free: it passes the
//! verifier, and then the load fails with EMFILE.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use aya::programs::{Program, ProgramError};
use lb_agent::datapath::object::settings::{DEFAULT_TABLES, Settings, TableSizes};
use lb_agent::datapath::object::{self, program};
use lb_agent::maps::Capacity;
use lb_tests::lab::PinDirectory;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

/// How many lines of a refused program's log are shown. Its end contains the reason.
const LOG_LINES: usize = 40;

/// The result for a program.
#[derive(Serialize, Default, Debug)]
struct Finding {
    program: String,
    loads: bool,
    /// Instructions that the verifier processed. It may process the same one several times.
    instructions: Option<u64>,
    microseconds: Option<u64>,
    /// The verifier's stack depths in bytes, one for each function. The longest call chain needs at
    /// most their sum.
    stack: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

fn main() -> Result<()> {
    probe(false, |name| Some(name.to_owned()))?;
    // With this option one program has more code.
    probe(true, |name| {
        (name == program::TC_FROM_POD).then(|| format!("{name}_local_redirect"))
    })
}

/// Probes the programs for which `called` returns a name. `redirects_locally` loads them as with
/// `--local-redirect`.
fn probe(redirects_locally: bool, called: impl Fn(&str) -> Option<String>) -> Result<()> {
    let pins = PinDirectory::new("verifier").context("a bpf file system")?;
    let settings = Settings {
        redirects_locally,
        capacity: Capacity {
            frontends: 1024,
            slots: 1024,
            backends: 1024,
            services: 1024,
            source_ranges: 1024,
        },
        tables: TableSizes {
            flows: 1024,
            ..DEFAULT_TABLES
        },
        ..Settings::default()
    };
    let mut ebpf = object::prepare(&settings, pins.path())?;
    let mut programs: Vec<_> = ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, _)| name.to_string());
    for (name, program) in programs {
        let Some(name) = called(name) else { continue };
        let finding = examine(&name, program)?;
        let mut output = std::io::stdout().lock();
        serde_json::to_writer(&mut output, &finding)?;
        writeln!(output)?;
    }
    Ok(())
}

fn examine(name: &str, program: &mut Program) -> Result<Finding> {
    let result = without_descriptors(|| match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Ok(()),
    })?;
    let Err(ProgramError::LoadError {
        io_error,
        verifier_log,
    }) = result
    else {
        anyhow::bail!("{name}: no verifier log but {result:?}");
    };
    let log = verifier_log.to_string();
    let loads = io_error.raw_os_error() == Some(Errno::EMFILE as i32);
    Ok(Finding {
        program: name.to_owned(),
        loads,
        instructions: number_after(&log, "processed "),
        microseconds: number_after(&log, "verification time "),
        stack: word_after(&log, "stack depth ").map(str::to_owned),
        log: (!loads).then(|| format!("{io_error}\n{}", end_of(&log))),
    })
}

/// Calls `function` while no further file descriptor can be opened.
fn without_descriptors<T>(function: impl FnOnce() -> T) -> Result<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The next file would get the lowest free number.
    let free = std::fs::File::open("/")?;
    let lowest = std::os::fd::AsRawFd::as_raw_fd(&free);
    drop(free);
    ensure!(lowest >= 0, "no file descriptor");
    setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(lowest)?, hard)?;
    let result = function();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(result)
}

fn number_after(log: &str, what: &str) -> Option<u64> {
    word_after(log, what)?.parse().ok()
}

fn word_after<'a>(log: &'a str, what: &str) -> Option<&'a str> {
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix(what))?;
    line.split_whitespace().next()
}

fn end_of(log: &str) -> String {
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
