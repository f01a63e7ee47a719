//! Reads the reports of a virtual machine: see `tests/src/bin/vm-init`.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::test::runner::Outcome;
use crate::test::transcript::Transcript;

/// All reports of one machine.
#[derive(Default, Debug)]
pub(super) struct Results {
    /// The verifier's result for each kernel program.
    pub(super) programs: Vec<Finding>,
    /// The results of the test programs, with the names of their targets.
    pub(super) tests: Vec<(String, Outcome, Duration)>,
    /// Whether the machine completed its list.
    pub(super) complete: bool,
    running: Option<Running>,
}

/// The verifier's result for a kernel program.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Finding {
    /// Its name.
    pub(super) program: String,
    /// Whether the kernel loads it.
    pub(super) loads: bool,
    /// The number of instructions that the verifier processed, including repetitions.
    pub(super) instructions: Option<u64>,
    /// The time of the verification.
    pub(super) microseconds: Option<u64>,
    /// The end of the verifier's log if it does not load.
    pub(super) log: Option<String>,
}

#[derive(Debug)]
struct Running {
    name: String,
    transcript: Transcript,
}

impl Results {
    /// Reads a line. Returns whether to show it.
    pub(super) fn read(&mut self, line: &str) -> bool {
        if let Some(program) = line.strip_prefix("=== run ") {
            self.running = Some(Running {
                name: target_name(program),
                transcript: Transcript::default(),
            });
            return true;
        }
        if let Some(end) = line.strip_prefix("=== end ") {
            self.end(end);
            return false;
        }
        if line == "=== complete" {
            self.complete = true;
            return false;
        }
        if let Some(finding) = parse_finding(line) {
            self.programs.push(finding);
            return false;
        }
        match &mut self.running {
            Some(running) => running.transcript.read(line),
            None => true,
        }
    }

    /// The counts and messages. A kernel program that loads counts as a passed test.
    pub(super) fn outcome(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(running) = self.running.take() {
            outcome.counts.failed += 1;
            outcome
                .remarks
                .push(format!("the machine ended while {} ran", running.name));
        } else if !self.complete {
            outcome.counts.failed += 1;
            outcome
                .remarks
                .push("the machine ended before all tests were run".to_owned());
        }
        for finding in &self.programs {
            if finding.loads {
                outcome.counts.passed += 1;
            } else {
                outcome.counts.failed += 1;
                outcome.remarks.push(format!("{} is rejected", finding.program));
            }
        }
        for (_, tests, _) in self.tests {
            outcome.add(tests);
        }
        outcome
    }

    fn end(&mut self, end: &str) {
        let Some(Running { name, transcript }) = self.running.take() else {
            return;
        };
        let (status, milliseconds) = end.split_once(' ').unwrap_or((end, ""));
        let mut outcome = match name.as_str() {
            // This program is not a test; it reports findings.
            super::PROBE if status == "0" => Outcome::default(),
            _ => Outcome {
                counts: transcript.finish(status == "0"),
                remarks: transcript.remarks().to_vec(),
            },
        };
        if !["0", "101"].contains(&status) {
            outcome.remarks.push(format!("{name} ended with {status}"));
        }
        let time = Duration::from_millis(milliseconds.parse().unwrap_or_default());
        self.tests.push((name, outcome, time));
    }
}

/// The target name in a program's name: `packets` of `packets-1234567890abcdef`.
fn target_name(program: &str) -> String {
    let file = Path::new(program)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    match file.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 => name.to_owned(),
        _ => file.into_owned(),
    }
}

fn parse_finding(line: &str) -> Option<Finding> {
    let value: Value = serde_json::from_str(line).ok()?;
    Some(Finding {
        program: value["program"].as_str()?.to_owned(),
        loads: value["loads"].as_bool()?,
        instructions: value["instructions"].as_u64(),
        microseconds: value["microseconds"].as_u64(),
        log: value["log"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::transcript::Counts;

    fn read(text: &str) -> Results {
        let mut results = Results::default();
        for line in text.lines() {
            results.read(line);
        }
        results
    }

    const PASSED: &str = "=== run /x/lab_a-0123456789abcdef\ntest a ... ok\n\
                          test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                          === end 0 1500\n";

    #[test]
    fn every_program_has_a_result() {
        let results = read(&format!("{PASSED}=== complete\n"));
        let (name, outcome, time) = &results.tests[0];
        assert_eq!((name.as_str(), *time), ("lab_a", Duration::from_millis(1500)));
        assert_eq!(outcome.counts.passed, 1);
        let Counts { passed, failed, .. } = results.outcome().counts;
        assert_eq!((passed, failed), (1, 0));
    }

    #[test]
    fn an_incomplete_run_of_a_machine_is_a_failure() {
        assert_eq!(read(PASSED).outcome().counts.failed, 1);
        let outcome = read(&format!("{PASSED}=== run /x/lab_b\ntest b ... ")).outcome();
        assert_eq!(outcome.counts.failed, 1);
        assert_eq!(outcome.remarks, ["the machine ended while lab_b ran"]);
    }

    #[test]
    fn a_rejected_program_is_a_failure() {
        let text = "=== run /x/verifier-probe\n\
                    {\"program\":\"lb_a\",\"loads\":true,\"instructions\":7,\"microseconds\":9,\"stack\":\"16\"}\n\
                    {\"program\":\"lb_b\",\"loads\":false,\"instructions\":null,\"log\":\"why\"}\n\
                    === end 0 10\n=== complete\n";
        let results = read(text);
        assert_eq!(results.programs[0].instructions, Some(7));
        assert_eq!(results.programs[1].log.as_deref(), Some("why"));
        let outcome = results.outcome();
        assert_eq!((outcome.counts.passed, outcome.counts.failed), (1, 1));
    }
}
