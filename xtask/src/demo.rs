//! `cargo xtask demo`: builds what the demo needs, then executes it.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, command, setup, workspace};

/// The programs to build, into one directory. They use the profile of the tests, which builds
/// faster.
const PROGRAMS: [&str; 3] = ["lb-agent", "lab-tool", "lb-demo"];

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave the lab running until Enter is pressed, and print commands to explore it
    #[arg(long)]
    keep: bool,
}

/// Returns only if the demo cannot be started; otherwise this process becomes the demo.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // This check comes first, so that it does not fail after a long build.
    let mut demo = as_root()?;
    println!("=== tools");
    setup::run()?;
    println!("\n=== build (minutes the first time, seconds later)");
    build_ebpf::compile(&setup::require()?, &[])?;
    let programs = PROGRAMS.map(|name| format!("--bin={name}"));
    // All crates are named, so that the tests find the dependencies built with the same features.
    command::run(workspace::cargo().args(["build", "--workspace"]).args(programs))?;
    println!("\n=== demo (about a minute)");
    // Cargo puts the other programs into the directory of this one.
    demo.arg(env::current_exe()?.with_file_name("lb-demo"));
    if arguments.keep {
        demo.arg("--keep");
    }
    // The demo replaces this process, so that Ctrl-C reaches only the demo and the shell waits for
    // its cleanup.
    let error = demo.exec();
    Err(error).context("cannot start the demo")
}

/// A command that runs another as root.
fn as_root() -> Result<Command> {
    if command::is_root()? {
        return Ok(command::clean("env"));
    }
    if command::succeeds(Command::new("sudo").args(["-n", "true"])) {
        let mut sudo = command::clean("sudo");
        sudo.arg("-n");
        return Ok(sudo);
    }
    bail!(
        "the demo needs root: it creates network namespaces and loads programs into the kernel.\n\
         Run it as root, or after `sudo --validate`, so that sudo asks for nothing"
    )
}
