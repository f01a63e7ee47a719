//! `cargo xtask build`: the agent with the kernel programs inside.

use anyhow::Result;

use crate::{build_ebpf, command, workspace};

/// Builds the kernel programs, then the agent.
pub(crate) fn run() -> Result<()> {
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    command::run(workspace::cargo().args(["build", "--release", "-p", "lb-agent"]))?;
    println!(
        "\nthe agent: {}",
        workspace::root().join("target/release/lb-agent").display()
    );
    Ok(())
}
