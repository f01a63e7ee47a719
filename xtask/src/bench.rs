//! `cargo xtask bench`: how fast it is.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::{build_ebpf, command, test, workspace};

/// Arguments of the task.
#[derive(clap::Args)]
pub(crate) struct BenchArguments {
    /// What is measured; without it everything is, and docs/benchmarks.md is written anew: three
    /// quarters of an hour
    #[command(subcommand)]
    what: Option<Bench>,
}

/// What is measured.
#[derive(clap::Subcommand)]
enum Bench {
    /// What a packet costs at each kernel program, beside an empty program (`--quick`: TCP only)
    Packets(Arguments),
    /// What it takes to follow the control plane, beside the rules of packet filters
    ControlPlane(Arguments),
    /// What connections to Services notice, beside the rules of packet filters and beside bare Pods
    EndToEnd(Arguments),
    /// How long the tables take that outside clients' backends are chosen by
    Maglev,
}

/// How a benchmark is called.
#[derive(clap::Args)]
struct Arguments {
    /// How to print the result: `table` or `json`
    #[arg(short, long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    output: String,
    /// Less, and in fewer and shorter rounds: for a first look
    #[arg(long)]
    quick: bool,
    /// A page to write the result to as well, as docs/benchmarks.md is written
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// Builds what is needed and measures.
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

/// The kernel takes the time, of programs that are always built for speed: the caller of the kernel
/// need not be, and so is the one that the tests have built.
fn packets(arguments: &Arguments) -> Result<()> {
    const BINARY: &str = "bench-packets";
    prepare()?;
    command::run(workspace::cargo().args(["build", "--quiet", "--package=lb-tests", "--bin", BINARY]))?;
    let bench = command::clean(workspace::root().join("target/debug").join(BINARY));
    measure(bench, arguments)
}

/// The agent as it is delivered, with the peers beside it.
fn control_plane(arguments: &Arguments) -> Result<()> {
    const BINARY: &str = "bench-control-plane";
    let built = build_for_speed(&["lb-agent", "lab-tool", BINARY])?;
    let mut bench = command::clean(built.join(BINARY));
    bench.arg(built.join("lb-agent"));
    measure(bench, arguments)
}

/// The same in the lab, under load.
fn end_to_end(arguments: &Arguments) -> Result<()> {
    const BINARY: &str = "bench-end-to-end";
    let built = build_for_speed(&["lb-agent", "lab-tool", BINARY])?;
    measure(command::clean(built.join(BINARY)), arguments)
}

/// Builds programs as they are delivered; where they are.
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
