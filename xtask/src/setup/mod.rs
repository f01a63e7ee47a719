//! `cargo xtask setup`: installs what the other tasks need, and prints what and why.

pub(crate) mod debian;
pub(crate) mod linker;
pub(crate) mod toolchain;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{command, workspace};
use toolchain::Toolchain;

/// The tools that build the kernel programs.
pub(crate) struct Tools {
    /// Compiler and cargo.
    pub(crate) toolchain: Toolchain,
    /// bpf-linker, built for the compiler's LLVM.
    pub(crate) linker: PathBuf,
}

/// Programs that the tests and benchmarks call, and their packages.
const TEST_PROGRAMS: [(&str, &str); 5] = [
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iptables-restore", "iptables"),
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
];

/// The packages that the virtual machines need.
const MACHINE_PACKAGES: [&str; 3] = ["binutils", "qemu-system-x86", "xz-utils"];

/// Runs all steps. Prints at the end whether it installed anything.
pub(crate) fn run() -> Result<()> {
    let installed = [
        test_packages()?,
        machine_packages()?,
        rust_components()?,
        compiler()?,
        bpf_linker()?,
    ];
    if installed.contains(&true) {
        println!("\nsetup is complete");
    } else {
        println!("\nnothing to do: everything is there");
    }
    Ok(())
}

/// The tools of this machine. Fails if they are not installed.
pub(crate) fn require() -> Result<Tools> {
    let toolchain = Toolchain::find()?.context("no Rust compiler for eBPF: run `cargo xtask setup`")?;
    let version = linker::version(toolchain.llvm)?;
    let linker = linker::find(toolchain.llvm).with_context(|| {
        format!(
            "no bpf-linker {version} for LLVM {}: run `cargo xtask setup`",
            toolchain.llvm
        )
    })?;
    Ok(Tools { toolchain, linker })
}

fn test_packages() -> Result<bool> {
    say(
        "iproute2, ethtool, setpriv, nftables, iptables",
        "the tests create network namespaces and drop privileges, a benchmark compares with packet filters",
    );
    let missing: Vec<String> = TEST_PROGRAMS
        .iter()
        .filter(|(program, _)| command::in_path(program).is_empty())
        .map(|(_, package)| (*package).to_owned())
        .collect();
    if !missing.is_empty() {
        return install(|| debian::install(&missing));
    }
    there("")
}

fn machine_packages() -> Result<bool> {
    say("qemu, xz, strip", "`cargo xtask vm-test` boots other kernels");
    let is_there = |program| !command::in_path(program).is_empty();
    if ["qemu-system-x86_64", "xz", "strip"].into_iter().all(is_there) {
        return there("");
    }
    install(|| debian::install(&MACHINE_PACKAGES.map(str::to_owned)))
}

fn rust_components() -> Result<bool> {
    say("rustfmt, clippy", "`cargo xtask lint` calls them");
    let available = |tool| command::succeeds(workspace::cargo().args([tool, "--version"]));
    if available("fmt") && available("clippy") {
        return there("");
    }
    if command::in_path("rustup").is_empty() {
        println!("missing, and cannot be installed without rustup: `lint` will fail");
        return Ok(false);
    }
    let mut rustup = std::process::Command::new("rustup");
    rustup.args(["component", "add", "rustfmt", "clippy"]);
    install(|| command::run(rustup.current_dir(workspace::root())))
}

fn compiler() -> Result<bool> {
    say(
        "rustc for eBPF",
        "compiles the kernel programs, with `core` from source",
    );
    if let Some(toolchain) = Toolchain::find()? {
        return there(&toolchain.to_string());
    }
    install(|| debian::install(&toolchain::DEBIAN_PACKAGES.map(str::to_owned)))?;
    if Toolchain::find()?.is_none() {
        bail!("installed, but still not usable: {}", toolchain::NEEDED);
    }
    Ok(true)
}

fn bpf_linker() -> Result<bool> {
    say(
        "bpf-linker",
        "links the kernel programs; must use the LLVM of that rustc",
    );
    let toolchain = Toolchain::find()?.context("the previous step installed it")?;
    linker::version(toolchain.llvm)?;
    if let Some(linker) = linker::find(toolchain.llvm) {
        return there(&format!("{}, LLVM {}", linker.display(), toolchain.llvm));
    }
    install(|| {
        let missing = debian::missing(&linker::debian_packages(toolchain.llvm));
        if !missing.is_empty() {
            println!("  first {}, which it needs", missing.join(", "));
            debian::install(&missing)?;
        }
        linker::install(toolchain.llvm)
    })
}

/// Prints the first half of a step's line: what it installs, and why.
fn say(what: &str, why: &str) {
    use std::io::Write;
    print!("{what} ({why}): ");
    // Flushed, because the installation takes a while and writes to standard error.
    std::io::stdout().flush().ok();
}

/// Prints the second half of a step's line if there is nothing to install.
fn there(detail: &str) -> Result<bool> {
    match detail {
        "" => println!("already there"),
        detail => println!("already there, {detail}"),
    }
    Ok(false)
}

/// Prints the second half of a step's line, and installs.
fn install(action: impl FnOnce() -> Result<()>) -> Result<bool> {
    println!("installing…");
    action()?;
    Ok(true)
}
