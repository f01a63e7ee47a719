//! The health of the agent: the last heartbeat of its loop, and the conclusion from it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

/// The longest time without a heartbeat, and the longest time that the kernel may refuse a Service,
/// before the agent is unhealthy. kube-proxy waits for twice its sync period, which is 30 s.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A heartbeat. The loop sends one at least every few seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// When the loop sent it.
    pub beat: Instant,
    /// When the kernel began to refuse writes to the maps, if it still does. A Service that does
    /// not fit into the maps does not count: the others are served, and a restart would not help.
    pub fault_since: Option<Instant>,
    /// When the maps were last in sync; at first, when the agent started. An agent that waits for
    /// the first list of the objects is healthy too: meanwhile, the maps of an earlier agent are
    /// used.
    pub synced: Timestamp,
    /// Whether the Node is being deleted.
    pub node_is_leaving: bool,
}

impl Pulse {
    /// Whether the agent is healthy: the heartbeat is recent, and the kernel has not refused writes
    /// for too long.
    pub fn is_healthy(&self, now: Instant) -> bool {
        let is_recent = |since: Instant| now.saturating_duration_since(since) < LIMIT;
        is_recent(self.beat) && self.fault_since.is_none_or(is_recent)
    }
}

/// The last pulse, shared between threads.
#[derive(Debug)]
pub struct Health {
    pulse: Mutex<Pulse>,
}

impl Health {
    /// The state at the start of the agent.
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

    /// Stores the last pulse.
    pub fn set(&self, pulse: Pulse) {
        *self.lock() = pulse;
    }

    /// Returns the last pulse.
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
    fn an_agent_without_a_recent_heartbeat_or_with_an_old_fault_is_unhealthy() {
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
