//! Finds the Rust compiler for the kernel programs.
//!
//! Their target has no precompiled `core`, so the compiler needs Rust's library sources and the
//! unstable `-Z build-std`. Two compilers qualify, in this order:
//! - rustup's nightly with the component `rust-src`, which Rust developers usually have;
//! - Debian's `rustc-web`, which has sources and can be installed with apt-get alone.
//!   `RUSTC_BOOTSTRAP` enables unstable features.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// The packages of Debian's compiler.
pub(crate) const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// The possible compilers, for messages.
pub(crate) const NEEDED: &str = "needed is rustup's nightly (`rustup toolchain install nightly --component rust-src`) \
     or Debian's rustc-web, cargo-web and rust-web-src; 1.95 or later";

/// The oldest compiler for both workspaces: their `rust-version`.
const OLDEST: (u32, u32) = (1, 95);

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// The origin of a compiler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    Rustup,
    Debian,
}

/// A compiler that can build the kernel programs.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Toolchain {
    origin: Origin,
    release: String,
    /// The major version of its LLVM.
    pub(crate) llvm: u32,
}

impl Toolchain {
    /// The compiler to use on this machine, if there is one.
    pub(crate) fn find() -> Result<Option<Self>> {
        for origin in [Origin::Rustup, Origin::Debian] {
            let found = Self::probe(origin)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn probe(origin: Origin) -> Result<Option<Self>> {
        if !has_sources(origin) {
            return Ok(None);
        }
        let version = command::output(rustc(origin).arg("-vV"))?;
        let release = field(&version, "release").context("`rustc -vV` prints no release")?;
        let llvm = llvm_major(&version).context("`rustc -vV` prints no LLVM version")?;
        Ok(is_recent(release).then(|| Self {
            origin,
            release: release.to_owned(),
            llvm,
        }))
    }

    /// Cargo of this compiler, in a clean environment.
    pub(crate) fn cargo(&self) -> Command {
        match self.origin {
            Origin::Rustup => {
                let mut command = command::clean("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Origin::Debian => {
                let mut command = command::clean(DEBIAN_CARGO);
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::Rustup => "rustup's nightly",
            Origin::Debian => "Debian's rustc-web",
        };
        write!(formatter, "{origin} {}, LLVM {}", self.release, self.llvm)
    }
}

fn has_sources(origin: Origin) -> bool {
    let sysroot = match origin {
        // A query for a toolchain that is not installed must not download it.
        Origin::Rustup if command::in_path("rustup").is_empty() => return false,
        Origin::Rustup => command::output(rustc(origin).args(["--print", "sysroot"])).ok(),
        Origin::Debian => (Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_CARGO).is_file())
            .then(|| "/usr".to_owned()),
    };
    sysroot.is_some_and(|sysroot| {
        let sources = PathBuf::from(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        sources.is_dir()
    })
}

fn rustc(origin: Origin) -> Command {
    match origin {
        Origin::Rustup => {
            let mut command = command::clean("rustup");
            command
                .args(["run", "nightly", "rustc"])
                .env("RUSTUP_AUTO_INSTALL", "0");
            command
        }
        Origin::Debian => command::clean(DEBIAN_RUSTC),
    }
}

/// The value of a line of `rustc -vV`.
fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn llvm_major(version: &str) -> Option<u32> {
    field(version, "LLVM version")?.split('.').next()?.parse().ok()
}

fn is_recent(release: &str) -> bool {
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn the_llvm_version_is_read_from_the_version_text() {
        assert_eq!(llvm_major(VERSION), Some(22));
        assert_eq!(llvm_major("release: 1.96.0\n"), None);
        assert_eq!(llvm_major("LLVM version: unknown\n"), None);
    }

    #[test]
    fn old_compilers_are_not_used() {
        assert!(is_recent("1.95.0"));
        assert!(is_recent("1.97.0-nightly"));
        assert!(is_recent("2.0.0"));
        assert!(!is_recent("1.94.1"));
        assert!(!is_recent("1.63.0"));
    }
}
