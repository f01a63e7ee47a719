//! Slow machines.

use std::env;
use std::time::Duration;

/// The environment variable with the factor by which timeouts are extended. `cargo xtask vm-test`
/// sets it in machines whose processor is emulated.
const VARIABLE: &str = "LB_TESTS_SLOWNESS";

/// The factor by which timeouts are extended; at least 1.
fn slowness() -> u32 {
    env::var(VARIABLE)
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(1)
        .max(1)
}

/// The timeout to use on this machine where a normal one needs `timeout`.
pub fn patience(timeout: Duration) -> Duration {
    timeout.saturating_mul(slowness())
}

/// The number of random cases to try on this machine where a normal one tries `cases`. It falls
/// with the square of the slowness, so that they take less time here: normal machines find the
/// errors that all machines share.
pub fn cases(cases: u32) -> u32 {
    (cases / slowness().saturating_pow(2)).max(1)
}
