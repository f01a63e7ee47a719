//! The agent's log.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The default log filter; RUST_LOG overrides it. The crates that talk to the API server are
/// silenced: their messages name neither the server nor a remedy. The source logs their errors.
pub const FILTER: &str = "info,kube_client=off,kube_core=off,hyper=off,hyper_util=off,rustls=off,tower=off";

/// The time for which repetitions of a warning are suppressed.
const INTERVAL: Duration = Duration::from_secs(60);
/// The time after which a warning may be dropped from [`Recent`].
const KEPT: Duration = Duration::from_secs(600);

/// Starts to log to standard error.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(shows_colours())
        .event_format(WithoutRepeats::new(shows_colours(), Instant::now))
        .init();
}

/// Whether to write colours: only to a terminal, because files and journals show the escape
/// sequences, and not if `NO_COLOR` is set (<https://no-color.org>).
fn shows_colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

/// The default format, but repetitions of a warning or error are suppressed for a minute. After
/// that, the next one is logged with the number of suppressed repetitions. An event is a repetition
/// if its text and all its fields are the same. Another object or another cause makes it different.
pub struct WithoutRepeats<C> {
    format: Format,
    clock: C,
    recent: Mutex<Recent>,
}

impl<C: Fn() -> Instant> WithoutRepeats<C> {
    /// Returns a format that has not logged anything yet.
    pub fn new(colours: bool, clock: C) -> Self {
        Self {
            format: Format::default().with_ansi(colours),
            clock,
            recent: Mutex::default(),
        }
    }
}

impl<C, S, N> FormatEvent<S, N> for WithoutRepeats<C>
where
    C: Fn() -> Instant,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if *event.metadata().level() > Level::WARN {
            return self.format.format_event(context, writer, event);
        }
        let metadata = event.metadata();
        let mut text = Text(format!("{} {}", metadata.level(), metadata.target()));
        event.record(&mut text);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let suppressed = match recent.note(text.0, (self.clock)()) {
            None => return Ok(()),
            Some(suppressed) => suppressed,
        };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match suppressed {
            0 => writeln!(writer, "{line}"),
            times => writeln!(writer, "{line} (repeated {times} times since it was last logged)"),
        }
    }
}

/// The recent warnings: when each was logged, and how often it was suppressed since.
#[derive(Default)]
struct Recent {
    warnings: HashMap<String, (Instant, u64)>,
    /// The number of warnings above which old ones are removed.
    room: usize,
}

impl Recent {
    /// Returns how often the warning was suppressed since it was last logged. `None` if it is to be
    /// suppressed now.
    fn note(&mut self, text: String, now: Instant) -> Option<u64> {
        if let Some((at, suppressed)) = self.warnings.get_mut(&text)
            && now.duration_since(*at) < INTERVAL
        {
            *suppressed += 1;
            return None;
        }
        let before = self.warnings.insert(text, (now, 0));
        if self.warnings.len() > self.room {
            self.warnings.retain(|_, (at, _)| now.duration_since(*at) < KEPT);
            self.room = 2 * self.warnings.len();
        }
        Some(before.map_or(0, |(_, suppressed)| suppressed))
    }
}

/// The text and fields of an event.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "\n{field}={value:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the lines that `act` logs, without their timestamps. `act` sets the clock through
    /// its argument, in seconds.
    fn logged(colours: bool, act: impl FnOnce(&AtomicU64)) -> Vec<String> {
        let (log, time) = (Log::default(), Arc::new(AtomicU64::new(0)));
        let (begin, seconds) = (Instant::now(), time.clone());
        let clock = move || begin + Duration::from_secs(seconds.load(Ordering::Relaxed));
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(WithoutRepeats::new(colours, clock));
        tracing::subscriber::with_default(subscriber.finish(), || act(&time));
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.trim().to_owned())
            .collect()
    }

    #[test]
    fn a_repeated_warning_is_logged_once_a_minute_with_its_count() {
        let lines = logged(false, |time| {
            for second in 0..=120 {
                time.store(second, Ordering::Relaxed);
                tracing::warn!(device = "eth0", "cannot attach");
            }
        });
        let line = "WARN lb_agent::logging::tests: cannot attach device=\"eth0\"";
        let repeated = format!("{line} (repeated 59 times since it was last logged)");
        assert_eq!(lines, [line, &repeated, &repeated]);
    }

    #[test]
    fn warnings_about_other_causes_and_objects_are_logged() {
        let lines = logged(false, |_| {
            for _ in 0..3 {
                tracing::warn!(device = "eth0", "cannot attach");
                tracing::warn!(device = "eth1", "cannot attach");
                tracing::warn!(device = "eth0", "cannot detach");
                tracing::error!(device = "eth0", "cannot detach");
            }
        });
        assert_eq!(lines.len(), 4, "{lines:#?}");
    }

    #[test]
    fn repeated_infos_are_not_suppressed() {
        let lines = logged(false, |_| {
            for _ in 0..3 {
                tracing::info!("in sync");
            }
        });
        assert_eq!(lines, ["INFO lb_agent::logging::tests: in sync"; 3]);
    }

    #[test]
    fn warnings_have_colours_if_other_lines_have_them() {
        for colours in [false, true] {
            let lines = logged(colours, |_| {
                tracing::info!("in sync");
                tracing::warn!("cannot attach");
            });
            assert!(
                lines.iter().all(|line| line.contains('\u{1b}') == colours),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn warnings_of_long_ago_are_removed() {
        let (mut recent, begin) = (Recent::default(), Instant::now());
        for second in 0..10_000 {
            recent.note(second.to_string(), begin + Duration::from_secs(second));
        }
        assert!(recent.warnings.len() < 1500, "{}", recent.warnings.len());
    }
}
