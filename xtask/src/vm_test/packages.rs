//! Kernel packages of any Debian suite. They are fetched by apt with separate lists and sources, so
//! that those of the machine stay unchanged. Mirror and network options are those of the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, setup};

/// The package that depends on the kernel of a suite.
const META_PACKAGE: &str = "linux-image-amd64";

/// Names of packages with parts of a kernel.
const PARTS: [&str; 4] = ["linux-base-", "linux-binary-", "linux-image-", "linux-modules-"];

/// The keys that sign the suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The machine's mirrors of Debian.
struct Mirrors {
    debian: String,
    security: String,
}

/// Downloads the kernel of some suites and unpacks it into `root`. `directory` is for temporary
/// files.
pub(super) fn fetch(suites: &[String], directory: &Path, root: &Path) -> Result<()> {
    let apt = Apt::new(directory, &mirrors()?, suites)?;
    println!("fetching the kernel of {}", suites.join(", "));
    command::output(apt.command("apt-get").arg("update"))?;
    let packages = apt.parts_of(META_PACKAGE)?;
    let archives = directory.join("archives");
    fs::create_dir_all(&archives)?;
    command::output(
        apt.command("apt-get")
            .arg("download")
            .args(&packages)
            .current_dir(&archives),
    )?;
    // Unpacked under another name first, so that an incomplete directory is not treated as a
    // kernel.
    let unfinished = directory.join("unfinished");
    for archive in fs::read_dir(&archives)? {
        let mut unpack = Command::new("dpkg-deb");
        command::output(unpack.arg("--extract").arg(archive?.path()).arg(&unfinished))?;
    }
    fs::rename(&unfinished, root)?;
    fs::remove_dir_all(&archives)?;
    fs::remove_dir_all(&apt.directory)?;
    Ok(())
}

/// An apt configuration that is separate from the machine's.
struct Apt {
    directory: std::path::PathBuf,
}

impl Apt {
    fn new(directory: &Path, mirrors: &Mirrors, suites: &[String]) -> Result<Self> {
        let directory = directory.join("apt");
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("state/status"), "")?;
        fs::write(directory.join("sources.list"), sources(mirrors, suites))?;
        Ok(Self { directory })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let directory = self.directory.display();
        for option in [
            format!("Dir::State={directory}/state"),
            format!("Dir::State::status={directory}/state/status"),
            format!("Dir::Cache={directory}/cache"),
            format!("Dir::Etc::sourcelist={directory}/sources.list"),
            format!("Dir::Etc::sourceparts={directory}/none"),
            format!("Dir::Etc::preferences={directory}/none"),
            format!("Dir::Etc::preferencesparts={directory}/none"),
            "APT::Architecture=amd64".to_owned(),
            // Otherwise apt writes as another user, who may lack permission here.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The packages with parts of a kernel on which a package depends, directly or indirectly.
    fn parts_of(&self, package: &str) -> Result<Vec<String>> {
        let mut found: Vec<String> = Vec::new();
        let mut open = vec![package.to_owned()];
        while let Some(package) = open.pop() {
            let mut show = self.command("apt-cache");
            let about = command::output(show.args(["show", "--no-all-versions"]).arg(&package))?;
            for part in parts(&about) {
                if !found.contains(&part) {
                    found.push(part.clone());
                    open.push(part);
                }
            }
        }
        if found.is_empty() {
            bail!("{package} depends on no kernel");
        }
        Ok(found)
    }
}

/// The dependencies that are parts of a kernel, from the output of `apt-cache show`.
fn parts(about: &str) -> Vec<String> {
    let dependencies = about
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: "))
        .flat_map(|line| line.split([',', '|']));
    dependencies
        .filter_map(|dependency| dependency.split_whitespace().next())
        .filter(|name| PARTS.iter().any(|part| name.starts_with(part)))
        .map(str::to_owned)
        .collect()
}

fn sources(mirrors: &Mirrors, suites: &[String]) -> String {
    let lines = suites.iter().map(|suite| {
        let mirror = match suite.ends_with("-security") {
            true => &mirrors.security,
            false => &mirrors.debian,
        };
        format!("deb [target=Packages signed-by={KEYRING}] {mirror} {suite} main\n")
    });
    lines.collect()
}

fn mirrors() -> Result<Mirrors> {
    let list = || {
        let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
        command::output(Command::new("apt-get").args(["indextargets", "--format", format]))
    };
    if let Some(mirrors) = parse_mirrors(&list()?) {
        return Ok(mirrors);
    }
    // The lists may be empty, so they are updated.
    setup::debian::update()?;
    parse_mirrors(&list()?).context("apt has no mirror of Debian and its security updates")
}

fn parse_mirrors(list: &str) -> Option<Mirrors> {
    let mirror = |label| {
        let prefix = format!("Debian|{label}|");
        list.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .map(str::to_owned)
    };
    Some(Mirrors {
        debian: mirror("Debian")?,
        security: mirror("Debian-Security")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_kernel_are_selected_from_the_dependencies() {
        let about = "Package: linux-image-7.2\nDepends: dracut | linux-initramfs-tool, linux-base-7.2 (= 7.2-1), \
                     linux-binary-7.2 (= 7.2-1), linux-modules-7.2 (= 7.2-1)\nSuggests: linux-image-other\n";
        assert_eq!(
            parts(about),
            ["linux-base-7.2", "linux-binary-7.2", "linux-modules-7.2"]
        );
        assert!(parts("Depends: kmod").is_empty());
    }

    #[test]
    fn sources_use_the_machines_mirrors() {
        let list = "Debian|Debian-Security|http://security.example/\nDebian|Debian|http://debian.example/\n\
                    Other|Other|http://other.example/\n";
        let mirrors = parse_mirrors(list).expect("both mirrors");
        let sources = sources(&mirrors, &["old".to_owned(), "old-security".to_owned()]);
        let lines: Vec<_> = sources.lines().collect();
        assert!(lines[0].ends_with("http://debian.example/ old main"), "{sources}");
        assert!(
            lines[1].ends_with("http://security.example/ old-security main"),
            "{sources}"
        );
        assert!(parse_mirrors("Debian|Debian|http://debian.example/\n").is_none());
    }
}
