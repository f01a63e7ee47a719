//! The stages of `cargo xtask test`, and their tests.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{command, workspace};

/// The crate whose tests have separate stages.
const TESTS_CRATE: &str = "lb-tests";

/// A stage of the test suite. They are in the order of execution: from the fastest to the most
/// realistic.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stage {
    /// Unit, property and documentation tests
    Unit,
    /// The unit and property tests again, without root's privileges
    PlainUser,
    /// Manifests to map contents, compared with files (`golden*.rs`)
    Golden,
    /// The kernel programs, packet by packet (`packets/`)
    Packets,
    /// The agent with an API server (`kube_*.rs`)
    Api,
    /// Traffic between network namespaces (`lab/`)
    Lab,
    /// Traffic through devices that not every kernel has (`vm_*.rs`): for `cargo xtask vm-test vm`,
    /// here only on request
    Vm,
}

impl Stage {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Unit,
        Self::PlainUser,
        Self::Golden,
        Self::Packets,
        Self::Api,
        Self::Lab,
        Self::Vm,
    ];

    /// Its name in headings and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::PlainUser => "plain-user",
            Self::Golden => "golden",
            Self::Packets => "packets",
            Self::Api => "api",
            Self::Lab => "lab",
            Self::Vm => "vm",
        }
    }

    /// Whether its tests pin maps and programs, which needs root.
    pub(crate) fn needs_bpffs(self) -> bool {
        matches!(self, Self::Packets | Self::Api | Self::Lab | Self::Vm)
    }

    /// Whether its tests start the agent.
    pub(crate) fn needs_agent(self) -> bool {
        matches!(self, Self::Api | Self::Lab | Self::Vm)
    }
}

/// A cargo target with tests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// The crate.
    pub(crate) package: String,
    /// `lib`, `bin` or `test`.
    pub(crate) kind: String,
    /// Its name; for `test`, the name of the file.
    pub(crate) name: String,
}

impl Target {
    /// The stage that runs it. Fails for a test file without a stage.
    pub(crate) fn stage(&self) -> Result<Stage> {
        const PREFIXES: [(&str, Stage); 5] = [
            ("golden", Stage::Golden),
            ("packets", Stage::Packets),
            ("kube_", Stage::Api),
            ("lab", Stage::Lab),
            ("vm_", Stage::Vm),
        ];
        if self.kind != "test" {
            return Ok(Stage::Unit);
        }
        let stage = PREFIXES.iter().find(|(prefix, _)| self.name.starts_with(prefix));
        match stage {
            Some((_, stage)) => Ok(*stage),
            None if self.package == TESTS_CRATE => {
                let known = PREFIXES.map(|(prefix, _)| prefix).join("*, ");
                bail!(
                    "no stage runs the test file {}: names start with {known}*",
                    self.name
                )
            }
            None => Ok(Stage::Unit),
        }
    }

    /// The arguments with which cargo builds its tests.
    pub(crate) fn selectors(&self) -> Vec<&str> {
        match self.kind.as_str() {
            "lib" => vec!["--lib"],
            "bin" => vec!["--bins"],
            _ => vec!["--test", &self.name],
        }
    }

    /// Reads a target from cargo's description.
    pub(crate) fn parse(package: &str, description: &Value) -> Option<Self> {
        let kind = description["kind"].as_array()?.first()?.as_str()?;
        ["lib", "bin", "test"].contains(&kind).then(|| {
            Some(Self {
                package: package.to_owned(),
                kind: kind.to_owned(),
                name: description["name"].as_str()?.to_owned(),
            })
        })?
    }
}

/// All targets of the workspace that can contain tests.
pub(crate) fn targets() -> Result<Vec<Target>> {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--no-deps", "--format-version=1"]);
    let metadata = serde_json::from_str(&command::output(&mut cargo)?)?;
    parse_metadata(&metadata).context("`cargo metadata` describes no packages")
}

fn parse_metadata(metadata: &Value) -> Option<Vec<Target>> {
    let mut targets = Vec::new();
    for package in metadata["packages"].as_array()? {
        let name = package["name"].as_str()?;
        let descriptions = package["targets"].as_array()?.iter();
        targets.extend(descriptions.filter_map(|description| Target::parse(name, description)));
    }
    Some(targets)
}

/// A program that runs the tests of one target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Executable {
    /// The target.
    pub(crate) target: Target,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its crate's directory, where it runs.
    pub(crate) directory: PathBuf,
}

/// Reads one line of `cargo test --message-format=json`. Returns `None` if it is not about a test
/// program.
pub(crate) fn parse_artifact(line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let directory = manifest.parent()?.to_owned();
    // A package's id ends with `#name@version`, or with `/name#version` if the directory has the
    // same name.
    let id = message["package_id"].as_str()?;
    let (path, version) = id.rsplit_once('#')?;
    let package = match version.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit_once('/')?.1,
    };
    Some(Executable {
        target: Target::parse(package, &message["target"])?,
        program: PathBuf::from(message["executable"].as_str()?),
        directory,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(package: &str, kind: &str, name: &str) -> Target {
        Target {
            package: package.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn the_stage_depends_on_the_name_of_the_test_file() {
        let stage = |package, kind, name| target(package, kind, name).stage().expect("a stage");
        assert_eq!(stage("lb-common", "lib", "lb_common"), Stage::Unit);
        assert_eq!(stage("lb-agent", "test", "properties"), Stage::Unit);
        assert_eq!(stage("lb-agent", "test", "golden"), Stage::Golden);
        assert_eq!(stage("lb-tests", "test", "packets"), Stage::Packets);
        assert_eq!(stage("lb-tests", "test", "kube_watch"), Stage::Api);
        assert_eq!(stage("lb-tests", "test", "lab"), Stage::Lab);
        assert_eq!(stage("lb-tests", "test", "vm_vlan"), Stage::Vm);
        assert_eq!(stage("lb-tests", "lib", "lab_tests"), Stage::Unit);
    }

    #[test]
    fn a_test_file_without_a_stage_is_an_error() {
        let error = target("lb-tests", "test", "misc").stage().expect_err("no stage");
        assert!(error.to_string().contains("misc"));
    }

    #[test]
    fn metadata_contains_the_targets_with_tests() {
        let metadata = json!({"packages": [{"name": "lb-agent", "targets": [
            {"kind": ["lib"], "name": "lb_agent"},
            {"kind": ["custom-build"], "name": "build-script-build"},
            {"kind": ["test"], "name": "golden"},
        ]}]});
        let library = target("lb-agent", "lib", "lb_agent");
        let golden = target("lb-agent", "test", "golden");
        assert_eq!(parse_metadata(&metadata), Some(vec![library, golden]));
    }

    #[test]
    fn test_programs_are_read_from_cargos_messages() {
        let message = |id: &str, test: bool| {
            json!({
                "reason": "compiler-artifact",
                "package_id": id,
                "manifest_path": "/checkout/tests/Cargo.toml",
                "target": {"kind": ["test"], "name": "lab"},
                "profile": {"test": test},
                "executable": "/checkout/target/debug/deps/lab-1",
            })
            .to_string()
        };
        let executable = parse_artifact(&message("path+file:///checkout/tests#lb-tests@0.1.0", true));
        let executable = executable.expect("a test program");
        assert_eq!(executable.target, target("lb-tests", "test", "lab"));
        assert_eq!(executable.directory, PathBuf::from("/checkout/tests"));
        let same_name = parse_artifact(&message("path+file:///checkout/xtask#0.1.0", true));
        assert_eq!(same_name.expect("a test program").target.package, "xtask");
        assert_eq!(
            parse_artifact(&message("path+file:///checkout/xtask#0.1.0", false)),
            None
        );
        assert_eq!(parse_artifact("{\"reason\": \"build-finished\"}"), None);
        assert_eq!(parse_artifact("   Compiling"), None);
    }
}
