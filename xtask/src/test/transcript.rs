//! Reads the output of a test program: selects the lines to show, and counts the tests.
//!
//! Rust's test harness cannot skip tests at run time. By convention, a test that cannot run here
//! prints `skipped: REASON` and returns. With `--show-output`, the harness repeats the line after
//! all tests.

use std::collections::BTreeSet;
use std::ops::AddAssign;

/// Numbers of tests by result.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed or did not end.
    pub(crate) failed: usize,
    /// Tests that could not run here.
    pub(crate) skipped: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A part of the harness's output.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Part {
    /// Tests report as they end.
    #[default]
    Progress,
    /// The output of passed tests.
    Successes,
    /// The output of failed tests.
    Failures,
}

/// Reads a test program's output line by line.
#[derive(Default, Debug)]
pub(crate) struct Transcript {
    part: Part,
    test: String,
    reported: Counts,
    has_result: bool,
    skipped: BTreeSet<String>,
    remarks: Vec<String>,
}

impl Transcript {
    /// Reads a line. Returns whether to show it.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        if let Some(counts) = parse_result(line) {
            self.reported += counts;
            self.has_result = true;
            self.part = Part::Progress;
            return true;
        }
        match line {
            "successes:" => self.part = Part::Successes,
            "failures:" => self.part = Part::Failures,
            _ => {}
        }
        if let Some(test) = parse_header(line) {
            test.clone_into(&mut self.test);
        }
        if let Some(test) = parse_failure(line) {
            self.remarks.push(format!("{test} failed"));
        }
        match line.trim_start().strip_prefix("skipped: ") {
            // A failed test may have skipped a part; it still failed.
            Some(reason) if self.part != Part::Failures => self.skip(reason),
            _ => {}
        }
        self.part != Part::Successes && !line.is_empty()
    }

    /// The counts, depending on the exit status of the program.
    pub(crate) fn finish(&self, success: bool) -> Counts {
        let skipped = self.skipped.len();
        let mut counts = Counts {
            passed: self.reported.passed.saturating_sub(skipped),
            failed: self.reported.failed,
            skipped: self.reported.skipped + skipped,
        };
        if !success && counts.failed == 0 {
            // The program crashed before it could report the failure.
            counts.failed = 1;
        } else if success && !self.has_result && skipped == 0 {
            // A test program without the harness is one test.
            counts.passed = 1;
        }
        counts
    }

    /// Messages about failed and skipped tests.
    pub(crate) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    fn skip(&mut self, reason: &str) {
        let name = match self.part {
            // A process that a test started wrote this directly to the output, so the test is
            // unknown.
            Part::Progress => format!("unnamed test {}", self.skipped.len() + 1),
            _ => self.test.clone(),
        };
        self.remarks.push(format!("{name} skipped: {reason}"));
        self.skipped.insert(name);
    }
}

/// Reads
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
fn parse_result(line: &str) -> Option<Counts> {
    let (_verdict, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        let mut parts = numbers.split("; ");
        parts.find_map(|part| part.strip_suffix(what)?.trim_end().parse().ok())
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

/// Reads `test name ... FAILED`.
fn parse_failure(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// Reads `---- name stdout ----`, the heading of a test's output.
fn parse_header(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test nat ... ok
test dsr ... ok
test slow ... ignored
test icmp ... FAILED

successes:

---- dsr stdout ----
setting up
skipped: needs root
skipped: needs two CPUs


successes:
    dsr
    nat

failures:

---- icmp stdout ----
skipped: the IPv6 half
assertion failed

failures:
    icmp

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s
";

    fn read(output: &str) -> (Transcript, String) {
        let mut transcript = Transcript::default();
        let mut shown = String::new();
        for line in output.lines() {
            if transcript.read(line) {
                shown += line;
                shown += "\n";
            }
        }
        (transcript, shown)
    }

    #[test]
    fn a_skipped_test_is_counted_once_and_not_as_passed() {
        let (transcript, _) = read(OUTPUT);
        let counts = Counts {
            passed: 1,
            failed: 1,
            skipped: 2,
        };
        assert_eq!(transcript.finish(false), counts);
        let remarks = [
            "icmp failed",
            "dsr skipped: needs root",
            "dsr skipped: needs two CPUs",
        ];
        assert_eq!(transcript.remarks(), remarks);
    }

    #[test]
    fn output_of_passed_tests_is_not_shown() {
        let (_, shown) = read(OUTPUT);
        assert!(!shown.contains("setting up"), "{shown}");
        for line in ["test nat ... ok", "assertion failed", "test result: FAILED"] {
            assert!(shown.contains(line), "{line} is missing in {shown}");
        }
    }

    #[test]
    fn several_results_are_added() {
        let (transcript, _) = read(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
        );
        let counts = Counts {
            passed: 7,
            failed: 0,
            skipped: 1,
        };
        assert_eq!(transcript.finish(true), counts);
    }

    #[test]
    fn a_crash_is_counted_as_a_failure() {
        let (transcript, _) = read("running 1 test\n");
        assert_eq!(transcript.finish(false).failed, 1);
    }

    #[test]
    fn a_program_without_the_harness_is_counted_as_one_test() {
        assert_eq!(read("all fine\n").0.finish(true).passed, 1);
        let (transcript, _) = read("skipped: needs root\n");
        let counts = transcript.finish(true);
        assert_eq!((counts.passed, counts.skipped), (0, 1));
    }

    #[test]
    fn other_lines_are_not_parsed_as_results() {
        assert_eq!(parse_result("test result: none"), None);
        assert_eq!(parse_result("test nat ... ok"), None);
    }
}
