//! How soon a watch tries again.

use std::iter::{Chain, Once, once};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

/// The pause after the first error, and the longest: those of the Go client. Chance lengthens each
/// up to twofold.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// The longest pause where the credentials are refused. New ones may come at any time, and a
/// refusal costs little.
const LONGEST_WHILE_REFUSED: Duration = Duration::from_secs(10);
/// A watch that ends sooner was of no use. One such is followed by the next at once; then the
/// server is spared.
const SHORT: Duration = Duration::from_secs(5);

/// How a try came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing is wrong: the server ended the watch, its connection broke, or nothing was heard for
    /// long.
    Closed,
    /// The server does not know any more what happened since the version: a list is needed.
    Expired,
    /// The server refused, or was not reached.
    Failed(kube::Error),
}

/// Remembers what went wrong.
pub(super) struct Pace {
    errors: ExponentialBackoff,
    short_watches: Chain<Once<Duration>, ExponentialBackoff>,
    /// Since when the watch is open.
    opened: Option<Instant>,
}

impl Pace {
    /// Nothing has gone wrong yet.
    pub(super) fn new() -> Self {
        Self {
            errors: growing(),
            short_watches: once(Duration::ZERO).chain(growing()),
            opened: None,
        }
    }

    /// The server has accepted the watch: errors so far are forgotten.
    pub(super) fn opened(&mut self, now: Instant) {
        self.errors = growing();
        self.opened = Some(now);
    }

    /// How long to wait before the next try.
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
