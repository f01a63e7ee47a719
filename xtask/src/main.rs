//! Developer and user tasks: `cargo xtask help` lists them.

mod build;
mod build_ebpf;
mod command;
mod setup;
mod workspace;

use clap::{Parser, Subcommand};

/// Everything that is done with this checkout, from installing its tools to running its tests.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need; what is there already is left alone
    Setup,
    /// Build the kernel programs, check the object and list its programs and maps
    BuildEbpf(build_ebpf::Arguments),
    /// Build the agent with the kernel programs inside
    Build,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Task::Build => build::run(),
    }
}
