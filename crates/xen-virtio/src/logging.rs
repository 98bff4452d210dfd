//! Logs: one line an event, escaped, and in a worker so few that no guest can flood the host's journal.
//!
//! In a worker every event may be the guest's doing. Each place in the code may log a burst of lines and then one a
//! second; what is held back is counted, and the next line from there says how many it stands for. `debug` and `trace`
//! are for an operator who asked for them, and pass unlimited.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines from one place in the code before the limit is felt.
const BURST: u32 = 10;
/// How often there may be one more after that.
const REFILL: Duration = Duration::from_secs(1);

/// How many lines were held back since the start.
#[derive(Clone, Debug, Default)]
pub struct HeldBack(Arc<AtomicU64>);

impl HeldBack {
    /// The number now.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Has the broker's events written to standard error.
///
/// # Errors
/// The filter makes no sense.
pub fn for_broker(filter: &str) -> anyhow::Result<()> {
    install(filter, Line::new(String::new(), None))
}

/// Has the events of a guest's worker written to standard error, limited.
///
/// # Errors
/// The filter makes no sense.
pub fn for_worker(filter: &str, domid: u16) -> anyhow::Result<HeldBack> {
    let held_back = HeldBack::default();
    install(filter, Line::new(format!("guest {domid}: "), Some(Limiter::new(held_back.clone()))))?;
    Ok(held_back)
}

/// Has the events of a device without a broker written to standard error, limited.
///
/// # Errors
/// The filter makes no sense.
pub fn for_device(filter: &str, name: &str) -> anyhow::Result<()> {
    install(filter, Line::new(format!("{name}: "), Some(Limiter::new(HeldBack::default()))))
}

fn install(filter: &str, line: Line) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("{filter:?} is no filter for logs; try info, or info,xen_virtio=debug"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .event_format(line)
        .try_init()
        .map_err(|error| anyhow::anyhow!(error).context("Logging is set up twice"))
}

/// Writes events.
struct Line {
    prefix: String,
    limiter: Option<Limiter>,
    inner: Format<Full, Clock>,
}

impl Line {
    fn new(prefix: String, limiter: Option<Limiter>) -> Self {
        // journald has a clock of its own.
        let clock = if std::env::var_os("JOURNAL_STREAM").is_some() { Clock::None } else { Clock::System };
        Self { prefix, limiter, inner: Format::default().with_timer(clock).with_ansi(false).with_target(false) }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let limiter = self.limiter.as_ref().filter(|_| *metadata.level() <= Level::INFO);
        let Some(held_back) = limiter.map_or(Some(0), |limiter| limiter.admit(metadata.callsite(), Instant::now()))
        else {
            return Ok(());
        };
        let mut text = String::new();
        self.inner.format_event(context, Writer::new(&mut text), event)?;
        // The name is what to search for, and tells the hops of a request apart.
        write!(to, "{}{} [{}]", self.prefix, Escaped(text.trim_end()), metadata.name())?;
        if held_back > 0 {
            write!(to, " ({held_back} more like this were held back)")?;
        }
        writeln!(to)
    }
}

/// Text without what a terminal would obey, or a reader of logs take for another line.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

enum Clock {
    None,
    System,
}

impl FormatTime for Clock {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::System => SystemTime.format_time(to),
        }
    }
}

/// A token bucket for each place in the code.
struct Limiter {
    /// Locked by whichever thread logs, for a lookup.
    buckets: Mutex<HashMap<Identifier, Bucket>>,
    held_back: HeldBack,
}

struct Bucket {
    tokens: u32,
    refilled: Instant,
    held_back: u64,
}

impl Limiter {
    fn new(held_back: HeldBack) -> Self {
        Self { buckets: Mutex::default(), held_back }
    }

    /// Whether a line may be written, and if so how many it stands for beside itself.
    fn admit(&self, place: Identifier, now: Instant) -> Option<u64> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(place).or_insert(Bucket { tokens: BURST, refilled: now, held_back: 0 });
        let due = now.saturating_duration_since(bucket.refilled).as_secs() / REFILL.as_secs();
        if due > 0 {
            bucket.tokens = u32::try_from(due).map_or(BURST, |due| bucket.tokens.saturating_add(due).min(BURST));
            bucket.refilled = now;
        }
        match bucket.tokens.checked_sub(1) {
            Some(left) => {
                bucket.tokens = left;
                Some(std::mem::take(&mut bucket.held_back))
            }
            None => {
                bucket.held_back += 1;
                self.held_back.0.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Page {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn logged(limiter: Option<Limiter>, events: impl FnOnce()) -> String {
        let page = Page::default();
        let line = Line::new("guest 7: ".into(), limiter);
        let subscriber =
            tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(page.clone()).event_format(line);
        tracing::subscriber::with_default(subscriber.finish(), events);
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_guest_that_makes_a_thousand_errors_makes_ten_lines_and_a_count() {
        let held_back = HeldBack::default();

        let text = logged(Some(Limiter::new(held_back.clone())), || {
            for _ in 0..1000 {
                tracing::warn!("a bad descriptor");
            }
        });

        // A slow machine may earn a line more.
        let lines = text.lines().count();
        assert!((10..20).contains(&lines), "{text}");
        assert_eq!(held_back.count(), 1000 - lines as u64);
    }

    #[test]
    fn another_place_in_the_code_has_a_limit_of_its_own_and_debug_has_none() {
        let text = logged(Some(Limiter::new(HeldBack::default())), || {
            (0..100).for_each(|_| tracing::error!("one"));
            (0..3).for_each(|_| tracing::error!("two"));
            (0..100).for_each(|_| tracing::debug!("three"));
        });

        assert_eq!((text.matches("two").count(), text.matches("three").count()), (3, 100));
    }

    #[test]
    fn after_a_pause_a_line_says_how_many_it_stands_for() {
        let event = || tracing::error_span!("a place").metadata().map(|metadata| metadata.callsite());
        let place = with_spans(event).unwrap();
        let limiter = Limiter::new(HeldBack::default());
        let start = Instant::now();
        let burst: Vec<_> = (0..15).map(|_| limiter.admit(place.clone(), start)).collect();

        let later = limiter.admit(place.clone(), start + REFILL);
        let too_soon = limiter.admit(place.clone(), start + REFILL);
        let much_later = (0..15).filter_map(|_| limiter.admit(place.clone(), start + 1000 * REFILL)).count();

        assert_eq!(burst.iter().flatten().count(), 10);
        assert_eq!((later, too_soon, much_later), (Some(5), None, 10));
    }

    fn with_spans<T>(body: impl FnOnce() -> T) -> T {
        tracing::subscriber::with_default(tracing_subscriber::fmt().finish(), body)
    }

    #[test]
    fn h11_what_a_guest_wrote_stays_on_its_line_and_cannot_steer_a_terminal() {
        let text = logged(None, || {
            let serial = "SN\nguest 8: ERROR all is lost\r\u{1b}[2J\u{7}\u{9b}";
            tracing::info!(%serial, "{serial}");
        });

        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("guest 7: ") && !text.trim_end().contains(char::is_control), "{text:?}");
    }
}
