//! How the agent is: what its loop last told, and what follows from that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

/// How long the loop may be silent, and a Service may wait for the maps. kube-proxy waits for twice
/// its sync period, which is 30 s.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What the loop tells at least every few seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// When it told this.
    pub beat: Instant,
    /// Since when the kernel refuses to have the maps written. A Service that does not fit into the
    /// maps does not count: the others are served, and a new start would change nothing.
    pub fault_since: Option<Instant>,
    /// When the maps last held all that was asked for; at first the start. Waiting for the first
    /// list of the objects is no fault of the agent's either, and what an earlier agent left in the
    /// maps is at work meanwhile.
    pub synced: Timestamp,
    /// Whether the Node is being deleted.
    pub node_is_leaving: bool,
}

impl Pulse {
    /// Whether the agent does its work: neither its loop nor a Service is overdue.
    pub fn is_healthy(&self, now: Instant) -> bool {
        let is_recent = |since: Instant| now.saturating_duration_since(since) < LIMIT;
        is_recent(self.beat) && self.fault_since.is_none_or(is_recent)
    }
}

/// The last pulse, for all threads.
#[derive(Debug)]
pub struct Health {
    pulse: Mutex<Pulse>,
}

impl Health {
    /// At the start of the agent.
    pub fn new(now: Instant, clock: Timestamp) -> Self {
        Self {
            pulse: Mutex::new(Pulse {
                beat: now,
                fault_since: None,
                synced: clock,
                node_is_leaving: false,
            }),
        }
    }

    /// Takes note.
    pub fn set(&self, pulse: Pulse) {
        *self.lock() = pulse;
    }

    /// The last pulse.
    pub fn pulse(&self) -> Pulse {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_is_what_is_not_overdue() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for (beat, fault_since, now, expected) in [
            (0, None, 0, true),
            (0, None, 59, true),
            (0, None, 60, false),
            (100, None, 90, true),
            (100, Some(100), 100, true),
            (100, Some(41), 100, true),
            (100, Some(40), 100, false),
            (100, Some(99), 160, false),
        ] {
            let pulse = Pulse {
                beat: at(beat),
                fault_since: fault_since.map(at),
                synced: Timestamp::UNIX_EPOCH,
                node_is_leaving: true,
            };
            assert_eq!(
                pulse.is_healthy(at(now)),
                expected,
                "beat {beat}, fault since {fault_since:?}, now {now}"
            );
        }
    }
}
