//! `cargo xtask vm-test`: runs packet tests and lab tests on the kernels of several distributions,
//! in virtual machines.

mod archive;
mod image;
mod kernels;
mod machine;
mod modules;
mod packages;
mod report;
mod results;

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::test::runner;
use crate::test::stage::{self, Executable, Stage};
use crate::{build_ebpf, command, setup, workspace};
use image::Contents;
use kernels::{Files, Kernel};
use machine::Boot;
use report::Use;
use results::Results;

/// The program that loads all kernel programs and reports the verifier's results.
const PROBE: &str = "verifier-probe";

/// Programs that the tests or the machine start.
const PROGRAMS: [&str; 5] = ["held-lab", "lab-tool", "lb-agent", "lb-demo", PROBE];

/// Parts of the names of the tests that run by default. They cover each hook and both families,
/// attached in the way that the kernel supports. They are few, because an emulated CPU is twenty to
/// fifty times slower.
const SHORT: [(Stage, &[&str]); 2] = [
    (
        Stage::Packets,
        &[
            "foreign::",
            "forward::",
            "fragments::",
            "icmp::",
            "programs::",
            "segments::",
            "translate::",
        ],
    ),
    (
        Stage::Lab,
        &[
            "cluster_ip::pods_and_the_node_reach_services_through_sockets",
            "node_port::clients_outside_reach_node_ports_through_generic_xdp",
            "node_port::clients_outside_reach_node_ports_through_tc",
        ],
    ),
];

/// The number of concurrent machines: the number of CPUs of the smallest supported host.
const MACHINES: usize = 2;

/// Timeouts of a machine, and of a test program in it.
const MACHINE_LIMIT: Duration = Duration::from_secs(40 * 60);
const PROGRAM_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Arguments of `vm-test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The kernels: names in `vagrant/kernels.toml`, or `all`
    #[arg(long = "kernel", value_delimiter = ',', default_value = "all")]
    kernels: Vec<String>,
    /// Run these stages completely; default: selected packet tests and lab tests that cover each
    /// hook
    stages: Vec<Stage>,
    /// Only load the programs and report the verifier's results
    #[arg(long, conflicts_with = "stages")]
    probe: bool,
    /// Write the numbers of verified instructions as the new budget
    #[arg(long)]
    update_budget: bool,
    /// Run only tests with this in their name
    #[arg(last = true)]
    test_name: Option<String>,
}

/// The results of a kernel.
struct Run {
    kernel: Kernel,
    release: String,
    results: Results,
    time: Duration,
}

/// Builds the tests, runs them on all requested kernels, and prints a summary.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match try_run(arguments) {
        Ok(code) => code,
        Err(error) => crate::exit_code(Err(error)),
    }
}

fn try_run(arguments: &Arguments) -> Result<ExitCode> {
    let kernels = Kernel::named(&arguments.kernels)?;
    let has_all = kernels == Kernel::all()?;
    let _alone = lock()?;
    build_ebpf::compile(&setup::require()?, &[])?;
    let tests = build(arguments)?;
    let shared = directory().join("tests.cpio");
    write_tests(&shared, &tests, arguments)?;
    let waiting = Mutex::new(kernels.iter().cloned());
    let worker = || {
        let mut runs = Vec::new();
        while let Some(kernel) = next(&waiting) {
            runs.push(run_kernel(kernel, &shared));
        }
        runs
    };
    let mut runs = thread::scope(|scope| {
        let workers = [(); MACHINES].map(|()| scope.spawn(worker));
        let runs = workers.into_iter().flat_map(|worker| {
            let panicked = |panic| std::panic::resume_unwind(panic);
            worker.join().unwrap_or_else(panicked)
        });
        runs.collect::<Result<Vec<Run>>>()
    })?;
    fs::remove_file(&shared)?;
    // Sorted from the oldest kernel to the newest.
    runs.sort_by_key(|run| kernels.iter().position(|kernel| *kernel == run.kernel));
    report::summarize(
        runs,
        Use {
            programs: has_all,
            tests: !arguments.probe && arguments.stages.is_empty() && arguments.test_name.is_none(),
            update_budget: arguments.update_budget,
        },
    )
}

/// Waits until no other run uses the directory.
fn lock() -> Result<fs::File> {
    fs::create_dir_all(directory())?;
    let file = fs::File::create(directory().join("lock"))?;
    if file.try_lock().is_err() {
        println!("waiting for the end of another run");
        file.lock()?;
    }
    Ok(file)
}

fn directory() -> PathBuf {
    workspace::root().join("target/vm")
}

fn next(waiting: &Mutex<impl Iterator<Item = Kernel>>) -> Option<Kernel> {
    waiting.lock().ok()?.next()
}

fn build(arguments: &Arguments) -> Result<Vec<Executable>> {
    command::run(workspace::cargo().args(["build", "--workspace", "--bins"]))?;
    let stages = match arguments.stages.as_slice() {
        _ if arguments.probe => &[],
        [] => &SHORT.map(|(stage, _)| stage)[..],
        stages => stages,
    };
    let targets = stage::targets()?;
    let mut tests = Vec::new();
    for stage in stages {
        tests.extend(runner::executables(*stage, &targets)?);
    }
    Ok(tests)
}

/// Parts of the names of the tests that run; empty for all tests.
fn names(test: &Executable, arguments: &Arguments) -> Result<Vec<String>> {
    if let Some(name) = &arguments.test_name {
        return Ok(vec![name.clone()]);
    }
    if !arguments.stages.is_empty() {
        return Ok(Vec::new());
    }
    let stage = test.target.stage()?;
    let (_, names) = SHORT
        .iter()
        .find(|(short, _)| *short == stage)
        .with_context(|| format!("{} runs nothing of {stage:?}", file!()))?;
    let list = command::output(Command::new(&test.program).args(["--list", "--format=terse"]))?;
    // Otherwise renamed tests would silently no longer run.
    if let Some(missing) = names.iter().find(|name| !list.contains(**name)) {
        bail!("no test name contains {missing}: update the list in {}", file!());
    }
    Ok(names.iter().map(|name| (*name).to_owned()).collect())
}

/// Writes the part of the initramfs that all machines need.
fn write_tests(path: &Path, tests: &[Executable], arguments: &Arguments) -> Result<()> {
    // Cargo puts the other programs into the directory of this one.
    let built = env::current_exe()?;
    let programs = PROGRAMS.map(|name| built.with_file_name(name));
    let limit = PROGRAM_LIMIT.as_secs();
    let mut list = format!("{limit} / {}\n", built.with_file_name(PROBE).display());
    for test in tests {
        list += &format!("{limit} {} {}", test.directory.display(), test.program.display());
        list += " --show-output --color=never";
        for name in names(test, arguments)? {
            list += &format!(" {name}");
        }
        list += "\n";
    }
    let contents = Contents {
        init: &built.with_file_name("vm-init"),
        programs: programs
            .iter()
            .chain(tests.iter().map(|test| &test.program))
            .map(PathBuf::as_path)
            .collect(),
        directories: tests.iter().map(|test| test.directory.as_path()).collect(),
        list,
    };
    fs::create_dir_all(directory())?;
    image::write_tests(path, &contents, &directory().join("stripped"))
}

fn run_kernel(kernel: Kernel, shared: &Path) -> Result<Run> {
    let Files {
        release,
        image,
        modules,
    } = kernel.files()?;
    let directory = kernel.directory();
    let own = directory.join("modules.cpio");
    image::write_modules(&own, &modules::wanted(&modules)?)?;
    let initramfs = directory.join("initramfs");
    archive::join(&[shared, &own], &initramfs)?;
    let start = Instant::now();
    let boot = Boot {
        image: &image,
        initramfs: &initramfs,
        console: &directory.join("console.log"),
    };
    let mut transcript = File::create(directory.join("results.log"))?;
    let mut results = Results::default();
    println!("{}: Linux {release} starts", kernel.name);
    let mut written = Ok(());
    let ended = machine::run(&boot, MACHINE_LIMIT, |line| {
        if written.is_ok() {
            written = writeln!(transcript, "{line}");
        }
        if results.read(line) {
            println!("{}: {line}", kernel.name);
        }
    })?;
    written.context("cannot write the results")?;
    if !ended {
        println!("{}: ended after {} s", kernel.name, start.elapsed().as_secs());
    }
    for file in [own, initramfs] {
        fs::remove_file(file)?;
    }
    Ok(Run {
        kernel,
        release,
        results,
        time: start.elapsed(),
    })
}
