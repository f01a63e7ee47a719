//! Kernel modules and their dependencies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::command;

/// Modules that the tests need if they are not built into the kernel.
const WANTED: [&str; 12] = [
    "8021q",
    "bridge",
    "cls_bpf",
    "dummy",
    "inet_diag",
    "sch_ingress",
    "sctp",
    "tcp_diag",
    "tun",
    "udp_diag",
    "veth",
    "vxlan",
];

/// A module to load.
pub(super) struct Module {
    /// Its name.
    pub(super) name: String,
    /// Its file's contents.
    pub(super) code: Vec<u8>,
}

/// The modules that the tests need, each after its dependencies.
pub(super) fn wanted(directory: &Path) -> Result<Vec<Module>> {
    let mut modules = Modules {
        files: files(directory)?,
        built_in: built_in(directory)?,
        loaded: Vec::new(),
    };
    for name in WANTED {
        modules.add(name)?;
    }
    Ok(modules.loaded)
}

struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: Vec<String>,
    loaded: Vec<Module>,
}

impl Modules {
    fn add(&mut self, name: &str) -> Result<()> {
        let is_there = self.loaded.iter().any(|module| module.name == name);
        if is_there || self.built_in.iter().any(|built_in| built_in == name) {
            return Ok(());
        }
        let file = self
            .files
            .get(name)
            .with_context(|| format!("this kernel has no module {name}"))?;
        let code = read(file)?;
        let needs = needs(&code).with_context(|| format!("in {}", file.display()))?;
        for needed in needs.modules {
            self.add(&needed)?;
        }
        for algorithm in needs.algorithms {
            // The dependency is an algorithm. The kernel tries several module names for it, of
            // which this is one.
            let module = format!("{algorithm}_generic");
            if self.files.contains_key(&module) {
                self.add(&module)?;
            }
        }
        self.loaded.push(Module {
            name: name.to_owned(),
            code,
        });
        Ok(())
    }
}

/// Files of modules by the modules' names.
fn files(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut open = vec![directory.join("kernel")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

/// The module name of a file: `sch-ingress.ko.xz` contains `sch_ingress`.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn built_in(directory: &Path) -> Result<Vec<String>> {
    let path = directory.join("modules.builtin");
    let list = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(list
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(path).with_context(|| format!("read {}", path.display())),
        Some("xz") => command::bytes(Command::new("xz").args(["--decompress", "--stdout"]).arg(path)),
        _ => bail!("{}: compressed in an unknown way", path.display()),
    }
}

/// The dependencies of a module.
#[derive(PartialEq, Eq, Default, Debug)]
struct Needs {
    /// Modules whose functions it calls.
    modules: Vec<String>,
    /// Algorithms that must be available when it starts.
    algorithms: Vec<String>,
}

/// Reads `depends=a,b` and `softdep=pre: c` in a module's description.
fn needs(code: &[u8]) -> Result<Needs> {
    let file = object::File::parse(code)?;
    let description = file
        .section_by_name(".modinfo")
        .context("no description")?
        .uncompressed_data()?;
    Ok(parse_needs(&String::from_utf8_lossy(&description)))
}

fn parse_needs(description: &str) -> Needs {
    let words = |text: &str, separator| {
        let words = text.split(separator).filter(|word| !word.is_empty());
        words.map(|word| word.replace('-', "_")).collect()
    };
    let field = |name| description.split('\0').find_map(|field| field.strip_prefix(name));
    Needs {
        modules: words(field("depends=").unwrap_or_default(), ','),
        algorithms: words(field("softdep=pre: ").unwrap_or_default(), ' '),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_are_derived_from_file_names() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(
            name("kernel/net/sch-ingress.ko.xz").as_deref(),
            Some("sch_ingress")
        );
        assert_eq!(name("kernel/net/veth.ko").as_deref(), Some("veth"));
        assert_eq!(name("kernel/net/Makefile"), None);
    }

    #[test]
    fn needs_of_other_files_are_an_error() {
        assert!(needs(b"text").is_err());
    }

    #[test]
    fn dependencies_are_read_from_the_description() {
        let needs =
            parse_needs("license=GPL\0softdep=pre: crc32c\0depends=udp-tunnel,ip6_udp_tunnel\0name=a\0");
        assert_eq!(needs.modules, ["udp_tunnel", "ip6_udp_tunnel"]);
        assert_eq!(needs.algorithms, ["crc32c"]);
        assert_eq!(parse_needs("depends=\0"), Needs::default());
    }
}
