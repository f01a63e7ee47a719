//! Waiting for a condition.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::slowness::patience;

/// The interval at which a condition is checked.
const INTERVAL: Duration = Duration::from_millis(2);

/// Calls `condition` until it returns a value. Slow machines get more time ([`patience`]).
///
/// Tests wait for conditions and never for a fixed time: a sleep is either too short on a busy
/// machine or too long on an idle one.
///
/// # Errors
///
/// If there is none within `timeout`. `what` describes the condition in the message.
pub fn wait_for<T>(what: &str, timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let timeout = patience(timeout);
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("timed out after {timeout:?} waiting for {what}");
        }
        thread::sleep(INTERVAL);
    }
}
