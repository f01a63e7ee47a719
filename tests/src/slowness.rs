//! Machines on which everything takes longer.

use std::env;
use std::time::Duration;

/// Names a number: how many times as long as usual everything may take here. `cargo xtask vm-test`
/// sets it in machines whose processor is emulated.
const VARIABLE: &str = "LB_TESTS_SLOWNESS";

/// How many times as long as usual everything may take.
fn slowness() -> u32 {
    env::var(VARIABLE)
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(1)
        .max(1)
}

/// How long to wait here for what elsewhere takes no longer than `timeout`.
pub fn patience(timeout: Duration) -> Duration {
    timeout.saturating_mul(slowness())
}

/// How many random cases to try here where `cases` are tried elsewhere: so many less that they take
/// less time here, since others find what all machines have in common.
pub fn cases(cases: u32) -> u32 {
    (cases / slowness().saturating_pow(2)).max(1)
}
