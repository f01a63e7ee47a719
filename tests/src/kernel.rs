//! Features of the running kernel. A test is skipped only on kernels older than the feature that it
//! needs.

use aya::util::KernelVersion;

/// Whether the kernel is at least `version` (`6.6`), the first one with `feature`. If it is older,
/// prints to standard output that the test is skipped. On newer kernels the test runs, and fails if
/// the feature is missing.
///
/// ```no_run
/// if !lb_tests::kernel::needs("6.6", "TCX links") {
///     return;
/// }
/// ```
pub fn needs(version: &str, feature: &str) -> bool {
    let current = KernelVersion::current().expect("the kernel reports its version");
    let is_there = is_at_least(current, version);
    if !is_there {
        println!("skipped: needs Linux {version} ({feature})");
    }
    is_there
}

fn is_at_least(current: KernelVersion, version: &str) -> bool {
    let mut numbers = version
        .split('.')
        .map(|number| number.parse().expect("a version consists of numbers"));
    let mut next = || numbers.next().unwrap_or_default();
    current >= KernelVersion::new(next(), next(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let current = KernelVersion::new(5, 10, 223);
        for (version, expected) in [
            ("5.4", true),
            ("5.10", true),
            ("5.11", false),
            ("6.1", false),
            ("4", true),
        ] {
            assert_eq!(is_at_least(current, version), expected, "{version}");
        }
    }
}
