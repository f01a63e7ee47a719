//! Finds and builds bpf-linker.
//!
//! It must be linked with the LLVM of the compiler, which Debian updates with security updates. A
//! bpf-linker that the user installed is used if it fits, and never replaced. This task installs
//! its own into a separate directory below cargo's. The directory name contains both versions, and
//! all checkouts share it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};
use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, SectionHeader};

use crate::command;

/// The version of bpf-linker for each major version of LLVM that a compiler can have. Only LLVM 22
/// is tested.
const VERSIONS: [(u32, &str); 3] = [(21, "0.13.0"), (22, "0.13.0"), (23, "0.13.0")];

/// The version of bpf-linker for a compiler with this LLVM.
///
/// # Errors
/// If no version is pinned for it.
pub(crate) fn version(llvm: u32) -> Result<&'static str> {
    let pinned = VERSIONS.iter().find(|(major, _)| *major == llvm);
    pinned.map(|(_, version)| *version).with_context(|| {
        format!(
            "no bpf-linker is pinned for LLVM {llvm}: add one to VERSIONS in xtask/src/setup/linker.rs, or use a \
             compiler with LLVM {} to {}",
            VERSIONS[0].0,
            VERSIONS[VERSIONS.len() - 1].0
        )
    })
}

/// The packages with the libraries that it is linked with.
pub(crate) fn debian_packages(llvm: u32) -> [String; 3] {
    [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "libzstd-dev".to_owned(),
    ]
}

/// Finds a bpf-linker with the required version and LLVM.
pub(crate) fn find(llvm: u32) -> Option<PathBuf> {
    let version = version(llvm).ok()?;
    let ours = install_root(llvm).ok()?.join("bin/bpf-linker");
    let mut candidates = command::in_path("bpf-linker");
    candidates.push(ours);
    candidates.into_iter().find(|file| fits(file, llvm, version))
}

/// Builds bpf-linker with Debian's LLVM and installs it.
pub(crate) fn install(llvm: u32) -> Result<()> {
    let mut cargo = command::clean("cargo");
    cargo
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        .args([
            "install",
            "bpf-linker",
            "--version",
            version(llvm)?,
            "--locked",
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(install_root(llvm)?);
    command::run(&mut cargo)?;
    find(llvm)
        .map(drop)
        .with_context(|| format!("the bpf-linker just built does not run with LLVM {llvm}"))
}

fn install_root(llvm: u32) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let root = cargo
        .or_else(home)
        .context("neither CARGO_HOME nor HOME is set")?;
    let version = version(llvm)?;
    Ok(root.join(format!("lb-agent/bpf-linker-{version}-llvm-{llvm}")))
}

fn fits(file: &Path, llvm: u32, version: &str) -> bool {
    let linked = fs::read(file).is_ok_and(|binary| llvm_of(&binary) == Some(llvm));
    linked
        && command::output(Command::new(file).arg("--version"))
            .is_ok_and(|text| text.trim() == format!("bpf-linker {version}"))
}

/// The major version of the LLVM library that a program is linked with.
fn llvm_of(binary: &[u8]) -> Option<u32> {
    let file = ElfFile64::<object::Endianness>::parse(binary).ok()?;
    let endian = file.endian();
    let sections = file.elf_header().sections(endian, binary).ok()?;
    let (entries, link) = sections
        .iter()
        .find_map(|section| section.dynamic(endian, binary).ok()?)?;
    let strings = sections.strings(endian, binary, link).ok()?;
    entries
        .iter()
        .filter(|entry| entry.tag(endian) == elf::DT_NEEDED)
        .filter_map(|entry| entry.string(endian, strings).ok())
        .find_map(|name| llvm_library(std::str::from_utf8(name).ok()?))
}

/// The major version in the name of LLVM's shared library, since LLVM 18.
fn llvm_library(name: &str) -> Option<u32> {
    name.strip_prefix("libLLVM.so.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_name_contains_the_llvm_version() {
        assert_eq!(llvm_library("libLLVM.so.22.1"), Some(22));
        assert_eq!(llvm_library("libLLVM-14.so.1"), None);
        assert_eq!(llvm_library("libc.so.6"), None);
    }

    #[test]
    fn an_llvm_without_a_pinned_linker_is_an_error() {
        assert_eq!(version(22).ok(), Some("0.13.0"));
        let error = version(99).expect_err("nothing is pinned").to_string();
        assert!(error.contains("LLVM 99"), "{error}");
    }

    #[test]
    fn other_files_have_no_llvm_version() {
        assert_eq!(llvm_of(b"not a program"), None);
        let this = fs::read(env::current_exe().expect("path of this test")).expect("this test's file");
        assert_eq!(llvm_of(&this), None);
    }
}
