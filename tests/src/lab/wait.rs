//! Waiting for a condition.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::slowness::patience;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(2);

/// Asks `condition` until it gives a value; on slow machines for longer ([`patience`]).
///
/// Tests wait for what they need and never for a length of time: a sleep is either too short on a
/// busy machine or too long on an idle one.
///
/// # Errors
///
/// If there is none within `timeout`; `what` names the condition in the message.
pub fn wait_for<T>(what: &str, timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let timeout = patience(timeout);
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {timeout:?}");
        }
        thread::sleep(INTERVAL);
    }
}
