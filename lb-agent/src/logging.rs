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

/// What is logged unless RUST_LOG says otherwise. The crates on the way to the API server name
/// neither the server nor a remedy; the source tells what they warn of.
pub const FILTER: &str = "info,kube_client=off,kube_core=off,hyper=off,hyper_util=off,rustls=off,tower=off";

/// How long a warning is not repeated.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long it is known that a warning was said.
const KEPT: Duration = Duration::from_secs(600);

/// Begins to log to the standard error.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(shows_colours())
        .event_format(WithoutRepeats::new(shows_colours(), Instant::now))
        .init();
}

/// Whether whoever reads the log sees colours: files and journals show escape sequences instead.
/// See no-color.org.
fn shows_colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

/// The usual format, in which a warning or error is not repeated for a minute. Then it says how
/// often it was left out. It is a repetition if it says the same, word for word: about another
/// object, or of another cause, it does not.
pub struct WithoutRepeats<C> {
    format: Format,
    clock: C,
    said: Mutex<Said>,
}

impl<C: Fn() -> Instant> WithoutRepeats<C> {
    /// Nothing was said yet.
    pub fn new(colours: bool, clock: C) -> Self {
        Self {
            format: Format::default().with_ansi(colours),
            clock,
            said: Mutex::default(),
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
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = match said.note(text.0, (self.clock)()) {
            None => return Ok(()),
            Some(left_out) => left_out,
        };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match left_out {
            0 => writeln!(writer, "{line}"),
            times => writeln!(writer, "{line} (left out {times} times since it was last said)"),
        }
    }
}

/// Which warnings were said: when, and how often they were left out since.
#[derive(Default)]
struct Said {
    warnings: HashMap<String, (Instant, u64)>,
    /// How many there may be before old ones are looked for.
    room: usize,
}

impl Said {
    /// Whether to say it, and then how often it was left out.
    fn note(&mut self, text: String, now: Instant) -> Option<u64> {
        if let Some((at, left_out)) = self.warnings.get_mut(&text)
            && now.duration_since(*at) < INTERVAL
        {
            *left_out += 1;
            return None;
        }
        let before = self.warnings.insert(text, (now, 0));
        if self.warnings.len() > self.room {
            self.warnings.retain(|_, (at, _)| now.duration_since(*at) < KEPT);
            self.room = 2 * self.warnings.len();
        }
        Some(before.map_or(0, |(_, left_out)| left_out))
    }
}

/// All that an event says.
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

    /// What is logged, without the time, while the clock says what `time` holds.
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
    fn a_repeated_warning_is_said_once_a_minute_with_its_number() {
        let lines = logged(false, |time| {
            for second in 0..=120 {
                time.store(second, Ordering::Relaxed);
                tracing::warn!(device = "eth0", "cannot attach");
            }
        });
        let line = "WARN lb_agent::logging::tests: cannot attach device=\"eth0\"";
        let repeated = format!("{line} (left out 59 times since it was last said)");
        assert_eq!(lines, [line, &repeated, &repeated]);
    }

    #[test]
    fn other_causes_and_objects_are_not_left_out() {
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
    fn what_is_no_warning_is_repeated() {
        let lines = logged(false, |_| {
            for _ in 0..3 {
                tracing::info!("in sync");
            }
        });
        assert_eq!(lines, ["INFO lb_agent::logging::tests: in sync"; 3]);
    }

    #[test]
    fn warnings_have_colours_where_others_have() {
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
    fn what_was_said_long_ago_is_forgotten() {
        let (mut said, begin) = (Said::default(), Instant::now());
        for second in 0..10_000 {
            said.note(second.to_string(), begin + Duration::from_secs(second));
        }
        assert!(said.warnings.len() < 1500, "{}", said.warnings.len());
    }
}
