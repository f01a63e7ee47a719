//! `cargo xtask demo`: builds what the demo needs, then becomes the demo.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, command, setup, workspace};

/// What is built, beside each other, in the profile that the tests use too: its build is the
/// quicker one.
const PROGRAMS: [&str; 3] = ["lb-agent", "lab-tool", "lb-demo"];

/// How `demo` is called.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave the lab for exploring until Enter is pressed, and say how
    #[arg(long)]
    keep: bool,
}

/// Returns only if the demo cannot be started; else its exit code is ours.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // First: a long build that ends with this would be in vain.
    let mut demo = as_root()?;
    println!("=== tools");
    setup::run()?;
    println!("\n=== build (minutes the first time, seconds later)");
    build_ebpf::compile(&setup::require()?, &[])?;
    let programs = PROGRAMS.map(|name| format!("--bin={name}"));
    // All crates are named, so that the tests find the dependencies built with the same features.
    command::run(workspace::cargo().args(["build", "--workspace"]).args(programs))?;
    println!("\n=== demo (about a minute)");
    // Where cargo put this program, it puts the others too.
    demo.arg(env::current_exe()?.with_file_name("lb-demo"));
    if arguments.keep {
        demo.arg("--keep");
    }
    // In our place, so that Ctrl-C ends the demo alone and its cleaning up is waited for.
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
        "the demo needs root: it makes network namespaces and loads programs into the kernel.\n\
         Run it as root, or after `sudo --validate`, so that sudo asks for nothing"
    )
}
