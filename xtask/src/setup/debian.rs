//! Packages of Debian and its derivatives.

use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

const UPDATE: &str = "apt-get update";

/// The packages that are not installed. Without dpkg, all of them.
pub(crate) fn missing(packages: &[String]) -> Vec<String> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["-W", "-f", "${db:Status-Abbrev} ${Package}\n"])
        .args(packages);
    // The command fails if it does not know one of the packages, but it still lists the others.
    let list = query.output().map(|output| output.stdout).unwrap_or_default();
    let list = String::from_utf8_lossy(&list).into_owned();
    packages
        .iter()
        .filter(|package| !is_installed(&list, package))
        .cloned()
        .collect()
}

fn is_installed(list: &str, package: &str) -> bool {
    list.lines()
        .any(|line| line.starts_with("ii") && line.split_whitespace().last() == Some(package))
}

/// Installs packages with apt-get, as root or through sudo without a password. If neither is
/// possible, the error contains the commands to run.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let packages = packages.join(" ");
    if command::in_path("apt-get").is_empty() {
        bail!("no apt-get on this machine: install the contents of these Debian packages: {packages}");
    }
    let install = format!("apt-get install --yes --no-install-recommends {packages}");
    let Some(root) = root_command()? else {
        bail!("this needs root; run\n  {UPDATE}\n  {install}\nas root, then `cargo xtask setup` again");
    };
    as_root(root, UPDATE)?;
    as_root(root, &install)
}

/// Updates apt's package lists.
pub(crate) fn update() -> Result<()> {
    match root_command()? {
        Some(root) => as_root(root, UPDATE),
        None => bail!("this needs root; run\n  {UPDATE}\nas root"),
    }
}

fn as_root(root: &[&str], step: &str) -> Result<()> {
    println!("  {step}");
    let mut command = Command::new(root[0]);
    command
        .args(&root[1..])
        .arg("DEBIAN_FRONTEND=noninteractive")
        .args(step.split(' '));
    command::run(&mut command)
}

/// The prefix of commands that need root. It ends with `env`, so that variables can follow. `None`
/// if this user cannot become root.
fn root_command() -> Result<Option<&'static [&'static str]>> {
    if command::is_root()? {
        return Ok(Some(&["env"]));
    }
    let sudo: &[&str] = &["sudo", "-n", "env"];
    let works = command::succeeds(Command::new(sudo[0]).args([sudo[1], "true"]));
    Ok(works.then_some(sudo))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_packages_are_installed() {
        let list = "ii  libzstd-dev\nrc  rustc-web\nii  llvm-22-dev\n";
        assert!(is_installed(list, "libzstd-dev"));
        assert!(
            !is_installed(list, "rustc-web"),
            "removed, but its configuration remains"
        );
        assert!(!is_installed(list, "zstd-dev"));
    }
}
