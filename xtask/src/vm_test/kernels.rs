//! The kernels to test with, and their files from Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::packages;
use crate::workspace;

/// A kernel to test with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kernel {
    /// Its name: the first numbers of its version, or `newest`.
    pub(crate) name: String,
    /// The Debian suites that contain it.
    pub(crate) suites: Vec<String>,
}

/// A kernel's unpacked packages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Files {
    /// Its full version, as in `uname -r`.
    pub(crate) release: String,
    /// The kernel image.
    pub(crate) image: PathBuf,
    /// The directory with its modules.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// All kernels, from the oldest to the newest.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let path = workspace::root().join("vagrant/kernels.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// The kernels of the given names; all if there are no names.
    pub(crate) fn named(names: &[String]) -> Result<Vec<Self>> {
        let all = Self::all()?;
        if names.is_empty() || names.iter().any(|name| name == "all") {
            return Ok(all);
        }
        let known: Vec<_> = all.iter().map(|kernel| kernel.name.clone()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            bail!("no kernel {unknown}: known are {}", known.join(", "));
        }
        Ok(all
            .into_iter()
            .filter(|kernel| names.contains(&kernel.name))
            .collect())
    }

    /// The directory of all its files. If it is removed, the next run downloads the packages again.
    pub(crate) fn directory(&self) -> PathBuf {
        workspace::root().join("target/vm").join(&self.name)
    }

    /// Its files. Downloads them if needed.
    pub(crate) fn files(&self) -> Result<Files> {
        let root = self.directory().join("root");
        if !root.exists() {
            packages::fetch(&self.suites, &self.directory(), &root)
                .with_context(|| format!("the packages of kernel {}", self.name))?;
        }
        find(&root).with_context(|| {
            format!(
                "no kernel in {}: remove that directory and try again",
                root.display()
            )
        })
    }
}

/// Looks in both places that packages use.
fn find(root: &Path) -> Option<Files> {
    ["lib/modules", "usr/lib/modules"].iter().find_map(|modules| {
        let entry = fs::read_dir(root.join(modules)).ok()?.flatten().next()?;
        let release = entry.file_name().into_string().ok()?;
        let images = [
            root.join("boot").join(format!("vmlinuz-{release}")),
            entry.path().join("vmlinuz"),
        ];
        Some(Files {
            image: images.into_iter().find(|image| image.exists())?,
            modules: entry.path(),
            release,
        })
    })
}

/// Reads lines `"name" = ["suite", "suite"]`: the subset of TOML that is needed.
fn parse(text: &str) -> Result<Vec<Kernel>> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, suites) = line
                .split_once('=')
                .with_context(|| format!("no `=` in {line:?}"))?;
            let quoted: Vec<_> = suites.split('"').skip(1).step_by(2).map(str::to_owned).collect();
            if quoted.is_empty() {
                bail!("no suites in {line:?}");
            }
            Ok(Kernel {
                name: name.trim().trim_matches('"').to_owned(),
                suites: quoted,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_kernels_is_read() {
        let kernel = |name: &str, suites: &[&str]| Kernel {
            name: name.to_owned(),
            suites: suites.iter().map(|suite| (*suite).to_owned()).collect(),
        };
        assert_eq!(
            parse("# comment\n\"6.1\" = [\"a\", \"a-security\"]\n\"newest\" = [\"b\"]\n").expect("sound"),
            [kernel("6.1", &["a", "a-security"]), kernel("newest", &["b"])]
        );
        assert!(parse("\"6.1\" = []").is_err());
        assert!(parse("6.1").is_err());
    }

    #[test]
    fn names_select_kernels() {
        let all = Kernel::all().expect("the list");
        assert_eq!(Kernel::named(&[]).expect("all"), all);
        assert_eq!(Kernel::named(&["all".to_owned()]).expect("all"), all);
        assert_eq!(Kernel::named(&["6.1".to_owned()]).expect("one").len(), 1);
        assert!(Kernel::named(&["2.4".to_owned()]).is_err());
    }
}
