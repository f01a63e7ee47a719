//! Developer and user tasks: `cargo xtask help` lists them.

mod bench;
mod build;
mod build_ebpf;
mod command;
mod demo;
mod lint;
mod setup;
mod test;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of this checkout, from installing its tools to running its tests
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need; installed tools are left unchanged
    Setup,
    /// Build the kernel programs, check the object and list its programs and maps
    BuildEbpf(build_ebpf::Arguments),
    /// Build the agent with the kernel programs inside
    Build,
    /// Show working Services between network namespaces of this machine, without a cluster
    Demo(demo::Arguments),
    /// Check the format, house rules, warnings of clippy and the compiler, and the documentation
    Lint,
    /// Run the tests, stage by stage
    Test(test::Arguments),
    /// Run packet tests and lab tests on other kernels, in virtual machines
    VmTest(vm_test::Arguments),
    /// Run the benchmarks
    Bench(bench::BenchArguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Task::Build => build::run(),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Lint => lint::run(),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::VmTest(arguments) => return vm_test::run(&arguments),
        Task::Test(arguments) => return test::run(&arguments),
    };
    exit_code(done)
}

/// Prints the error without the backtrace that `RUST_BACKTRACE` would add: users need the message,
/// not the place in the code.
fn exit_code(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
