//! The pauses between the retries of a watch.

use std::iter::{Chain, Once, once};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

/// The pause after the first error, and the longest pause, as in the Go client. Jitter lengthens
/// each pause up to twofold.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// The longest pause while the server refuses the credentials. New credentials may appear at any
/// time, and a refused request is cheap.
const LONGEST_WHILE_REFUSED: Duration = Duration::from_secs(10);
/// A watch that ends sooner than this is short. The agent retries immediately after the first short
/// watch, and with backoff after the next ones.
const SHORT: Duration = Duration::from_secs(5);

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum End {
    /// There was no error: the server ended the watch, its connection broke, or the watch was
    /// silent for too long.
    Closed,
    /// The server no longer has the events since the resource version: a list is needed.
    Expired,
    /// The server refused, or was not reachable.
    Failed(kube::Error),
}

/// The backoff state of a watch.
pub(super) struct Pace {
    errors: ExponentialBackoff,
    short_watches: Chain<Once<Duration>, ExponentialBackoff>,
    /// When the server accepted the watch; `None` if it is not open.
    opened: Option<Instant>,
}

impl Pace {
    /// Starts without errors.
    pub(super) fn new() -> Self {
        Self {
            errors: growing(),
            short_watches: once(Duration::ZERO).chain(growing()),
            opened: None,
        }
    }

    /// The server has accepted the watch: this resets the backoff for errors.
    pub(super) fn opened(&mut self, now: Instant) {
        self.errors = growing();
        self.opened = Some(now);
    }

    /// Returns how long to wait before the next attempt.
    pub(super) fn pause(&mut self, end: &End, now: Instant) -> Duration {
        let opened = self.opened.take();
        match end {
            End::Failed(error) if opened.is_none() => {
                let is_unauthorized = matches!(error, kube::Error::Api(status) if status.code == 401);
                let longest = if is_unauthorized {
                    LONGEST_WHILE_REFUSED
                } else {
                    Duration::MAX
                };
                next(&mut self.errors).min(longest)
            }
            _ => {
                if opened.is_some_and(|opened| now - opened >= SHORT) {
                    self.short_watches = once(Duration::ZERO).chain(growing());
                }
                next(&mut self.short_watches)
            }
        }
    }
}

fn next(pauses: &mut impl Iterator<Item = Duration>) -> Duration {
    pauses.next().unwrap_or(LONGEST)
}

fn growing() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST)
        .with_max_delay(LONGEST)
        .without_max_times()
        .with_jitter()
        .build()
}
