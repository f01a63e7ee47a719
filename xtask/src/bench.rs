//! `cargo xtask bench`: runs the benchmarks.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::{build_ebpf, command, test, workspace};

/// Arguments of the task.
#[derive(clap::Args)]
pub(crate) struct BenchArguments {
    /// The benchmark; by default all run and rewrite docs/benchmarks.md, in three quarters of an
    /// hour
    #[command(subcommand)]
    what: Option<Bench>,
}

/// What is measured.
#[derive(clap::Subcommand)]
enum Bench {
    /// The cost of a packet at each kernel program, compared with an empty one (`--quick`: TCP
    /// only)
    Packets(Arguments),
    /// The cost of following the control plane, compared with rules of packet filters
    ControlPlane(Arguments),
    /// The performance of connections to Services, compared with rules of packet filters and bare
    /// Pods
    EndToEnd(Arguments),
    /// The time to compute Maglev tables
    Maglev,
}

/// Arguments of a benchmark.
#[derive(clap::Args)]
struct Arguments {
    /// How to print the result: `table` or `json`
    #[arg(short, long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    output: String,
    /// Measure less, in fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// A page to update with the result, like docs/benchmarks.md
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// Builds the required programs and runs the benchmarks.
pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    match &arguments.what {
        Some(Bench::Packets(arguments)) => packets(arguments),
        Some(Bench::ControlPlane(arguments)) => control_plane(arguments),
        Some(Bench::EndToEnd(arguments)) => end_to_end(arguments),
        Some(Bench::Maglev) => maglev(),
        None => all(),
    }
}

fn all() -> Result<()> {
    let arguments = Arguments {
        output: "table".to_owned(),
        quick: false,
        page: Some(workspace::root().join("docs/benchmarks.md")),
    };
    packets(&arguments)?;
    control_plane(&arguments)?;
    end_to_end(&arguments)
}

fn maglev() -> Result<()> {
    build_ebpf::build()?;
    let example = ["--package=lb-agent", "--example=bench-maglev"];
    command::run(
        workspace::cargo()
            .args(["run", "--quiet", "--release"])
            .args(example),
    )
}

/// The kernel measures the time, and the kernel programs are always optimized. So the calling
/// program uses the profile of the tests, whose build exists already.
fn packets(arguments: &Arguments) -> Result<()> {
    const BINARY: &str = "bench-packets";
    prepare()?;
    command::run(workspace::cargo().args(["build", "--quiet", "--package=lb-tests", "--bin", BINARY]))?;
    let bench = command::clean(workspace::root().join("target/debug").join(BINARY));
    measure(bench, arguments)
}

/// Runs the optimized agent.
fn control_plane(arguments: &Arguments) -> Result<()> {
    const BINARY: &str = "bench-control-plane";
    let built = build_for_speed(&["lb-agent", "lab-tool", BINARY])?;
    let mut bench = command::clean(built.join(BINARY));
    bench.arg(built.join("lb-agent"));
    measure(bench, arguments)
}

/// Runs the optimized agent in the lab, under load.
fn end_to_end(arguments: &Arguments) -> Result<()> {
    const BINARY: &str = "bench-end-to-end";
    let built = build_for_speed(&["lb-agent", "lab-tool", BINARY])?;
    measure(command::clean(built.join(BINARY)), arguments)
}

/// Builds optimized programs. Returns their directory.
fn build_for_speed(programs: &[&str]) -> Result<PathBuf> {
    prepare()?;
    let programs = programs.iter().map(|name| format!("--bin={name}"));
    command::run(
        workspace::cargo()
            .args(["build", "--release", "--package=lb-agent", "--package=lb-tests"])
            .args(programs),
    )?;
    Ok(workspace::root().join("target/release"))
}

fn prepare() -> Result<()> {
    ensure!(command::is_root()?, "only root may load kernel programs");
    test::mount_bpffs()?;
    build_ebpf::build()
}

fn measure(mut bench: Command, arguments: &Arguments) -> Result<()> {
    bench.args(["--output", &arguments.output]);
    if arguments.quick {
        bench.arg("--quick");
    }
    if let Some(page) = &arguments.page {
        bench.arg("--page").arg(page);
    }
    command::run(&mut bench)
}
