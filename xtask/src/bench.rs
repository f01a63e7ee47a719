//! `cargo xtask bench`: how fast it is.

use anyhow::{Result, ensure};

use crate::{build_ebpf, command, test, workspace};

/// What is measured.
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// What a packet costs at each kernel program, beside an empty program
    Packets(Packets),
    /// How long the tables take that outside clients' backends are chosen by
    Maglev,
}

/// How `bench packets` is called.
#[derive(clap::Args)]
pub(crate) struct Packets {
    /// How to print the result: `table` or `json`
    #[arg(short, long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    output: String,
    /// TCP only, and fewer and shorter rounds: for a first look
    #[arg(long)]
    quick: bool,
}

/// Builds what is needed and measures.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Packets(arguments) => packets(arguments),
        Bench::Maglev => maglev(),
    }
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

/// The kernel takes the time, of programs that are always built for speed: the caller of the kernel need not be, and
/// so is the one that the tests have built.
fn packets(arguments: &Packets) -> Result<()> {
    const BINARY: &str = "bench-packets";
    ensure!(command::is_root()?, "only root may load kernel programs");
    test::mount_bpffs()?;
    build_ebpf::build()?;
    command::run(workspace::cargo().args(["build", "--quiet", "--package=lb-tests", "--bin", BINARY]))?;
    let mut bench = command::clean(workspace::root().join("target/debug").join(BINARY));
    bench
        .arg(workspace::ebpf_bench_object())
        .args(["--output", &arguments.output]);
    if arguments.quick {
        bench.arg("--quick");
    }
    command::run(&mut bench)
}
