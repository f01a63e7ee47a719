//! Names that contain their owner, so that a later run recognises the leftovers of a killed one.

use std::fs;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Prefix of the name of everything that a lab creates outside its namespaces.
const PREFIX: &str = "lb-lab-";

/// Name of one lab, unique on this machine: `lb-lab-PID-SEQUENCE`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LabId(String);

impl LabId {
    /// A name for a lab of this process.
    pub(super) fn new() -> Self {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        Self(format!("{PREFIX}{}-{sequence}", process::id()))
    }

    /// The name of a part of the lab.
    pub(super) fn part(&self, name: &str) -> String {
        format!("{}-{name}", self.0)
    }

    /// The name itself.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether something of this name belongs to this lab.
    pub(super) fn owns(&self, name: &str) -> bool {
        name.strip_prefix(&self.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }
}

/// Whether something of this name belongs to a lab whose process has ended.
pub(super) fn is_leftover(name: &str) -> bool {
    let owner = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok());
    owner.is_some_and(|pid| !is_alive(pid))
}

/// Whether the process runs. A zombie does not.
fn is_alive(pid: u32) -> bool {
    // The state follows the command's name, which is in parentheses and may contain anything.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit(')')
                .next()
                .map(|rest| !rest.trim_start().starts_with(['Z', 'X']))
        })
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_running_process_are_not_leftovers() {
        let id = LabId::new();
        assert!(id.owns(&id.part("node-1")));
        assert!(!is_leftover(&id.part("node-1")));
    }

    #[test]
    fn another_lab_of_the_same_process_is_not_owned() {
        let id = LabId("lb-lab-7-1".to_owned());
        assert!(id.owns("lb-lab-7-1"));
        assert!(!id.owns("lb-lab-7-10-node-1"));
    }

    #[test]
    fn names_of_an_ended_process_are_leftovers() {
        // Above the largest possible pid.
        assert!(is_leftover("lb-lab-4194305-0-node-1"));
        assert!(!is_leftover("cni-4194305-0"));
    }
}
