//! When to look on at the queues instead of sleeping until the driver kicks.
//!
//! Being woken costs the host some microseconds and the driver a trap; looking costs a processor. So a lane looks on only as
//! long as it is allowed to, and only where that has paid: after it was woken so soon that it would have seen for itself.

use std::time::{Duration, Instant};

/// The policy of one lane.
#[derive(Debug)]
pub(crate) struct Polling {
    /// The longest that it looks without seeing anything; zero: never.
    limit: Duration,
    /// When there was something to do last.
    last: Option<Instant>,
    pays: bool,
}

impl Polling {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, last: None, pays: false }
    }

    /// There is something to do, whoever has noticed.
    pub(crate) fn found(&mut self) {
        if !self.limit.is_zero() {
            self.found_at(Instant::now());
        }
    }

    fn found_at(&mut self, now: Instant) {
        self.pays = self.last.is_some_and(|last| now.duration_since(last) <= self.limit);
        self.last = Some(now);
    }

    /// Whether to look on: kicks are not asked for.
    pub(crate) fn is_on(&self) -> bool {
        self.pays
    }

    /// Whether to look once more; if not, it is over until it would have paid again.
    pub(crate) fn goes_on(&mut self) -> bool {
        if self.pays {
            self.goes_on_at(Instant::now());
        }
        self.pays
    }

    fn goes_on_at(&mut self, now: Instant) {
        self.pays = self.last.is_some_and(|last| now.duration_since(last) <= self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn it_is_tried_when_it_would_have_paid_and_ends_when_it_does_not() {
        let mut polling = Polling::new(LIMIT);
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        polling.found_at(at(0));
        assert!(!polling.is_on(), "nothing is known yet");
        polling.found_at(at(200));
        assert!(!polling.is_on(), "too late to have been seen");
        polling.found_at(at(230));
        assert!(polling.is_on());
        polling.goes_on_at(at(280));
        assert!(polling.is_on());
        polling.goes_on_at(at(281));
        assert!(!polling.is_on());
    }

    #[test]
    fn without_leave_it_never_is() {
        let mut polling = Polling::new(Duration::ZERO);
        for _ in 0..3 {
            polling.found();
            assert!(!polling.is_on() && !polling.goes_on());
        }
    }
}
