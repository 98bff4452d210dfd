//! How a guest's workers died, and when the next one may be started.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How long a death counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Before the second attempt to start a worker; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// What the pauses grow to.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So many deaths are told one by one; those before are in the log.
const SHOWN: usize = 8;

/// The deaths of one guest's workers.
#[derive(Debug, Default)]
pub struct Deaths {
    /// Those that count, the oldest first: when, and how.
    recent: VecDeque<(Instant, String)>,
    /// How often in a row no worker was to be had, or was one too many.
    failures: u32,
    /// Since when the guest waits for the next worker, and how the last one died.
    waiting: Option<(Instant, String)>,
    /// How many workers were started where one had died.
    followed: u64,
}

/// What comes of a death.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another worker may try.
    Follow,
    /// They die too often. How they did, for people to read.
    GiveUp(String),
}

impl Deaths {
    /// A worker died `now`; more than `limit` of them within a minute are too many.
    pub fn add(&mut self, now: Instant, how: &str, limit: u32) -> Verdict {
        self.recent.push_back((now, how.to_owned()));
        while self.recent.front().is_some_and(|(when, _)| now.duration_since(*when) > WINDOW) {
            self.recent.pop_front();
        }
        let deaths = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        self.failures = deaths.saturating_sub(limit);
        if self.failures == 0 {
            self.waiting.get_or_insert_with(|| (now, how.to_owned()));
            return Verdict::Follow;
        }
        self.waiting = None;
        let hidden = self.recent.len().saturating_sub(SHOWN);
        let shown: Vec<_> = self.recent.iter().skip(hidden).map(|(_, how)| how.as_str()).collect();
        let of_late = if hidden == 0 { "" } else { ", of late" };
        Verdict::GiveUp(format!("{deaths} workers died within a minute{of_late}: {}", shown.join("; ")))
    }

    /// No worker could be started.
    pub fn add_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How long to wait before the next is started.
    pub fn pause(&self) -> Duration {
        match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => {
                let times = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
                FIRST_PAUSE.saturating_mul(times).min(LONGEST_PAUSE)
            }
        }
    }

    /// The next one is started.
    pub fn is_followed(&mut self) {
        self.followed += 1;
    }

    /// How many workers were started where one had died.
    pub fn followed(&self) -> u64 {
        self.followed
    }

    /// The guest waits no more; how long it did, and how the worker before had died. `None` if it did not wait.
    pub fn end_waiting(&mut self, now: Instant) -> Option<(Duration, String)> {
        self.waiting.take().map(|(since, how)| (now.duration_since(since), how))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_deaths_within_a_minute_are_too_many_and_older_ones_do_not_count() {
        let (mut deaths, start) = (Deaths::default(), Instant::now());
        for _ in 0..3 {
            assert_eq!(deaths.add(start, "signal: 9", 5), Verdict::Follow);
        }
        let later = start + WINDOW + Duration::from_millis(1);
        for _ in 0..5 {
            assert_eq!((deaths.add(later, "signal: 9", 5), deaths.pause()), (Verdict::Follow, Duration::ZERO));
        }
        let Verdict::GiveUp(why) = deaths.add(later, "signal: 11", 5) else { panic!("a sixth is followed") };
        let five = "signal: 9; ".repeat(5);
        assert_eq!(why, format!("6 workers died within a minute: {five}signal: 11"));
        assert_eq!(deaths.pause(), FIRST_PAUSE);
        let long_after = later + 2 * WINDOW;
        assert_eq!(deaths.add(long_after, "signal: 9", 5), Verdict::Follow, "it is forgotten");
    }

    #[test]
    fn of_many_deaths_the_last_are_told() {
        let (mut deaths, start) = (Deaths::default(), Instant::now());
        let verdicts: Vec<_> = (0..20).map(|n| deaths.add(start, &format!("exit status: {n}"), 5)).collect();
        let Some(Verdict::GiveUp(why)) = verdicts.last() else { panic!("a twentieth is followed") };
        assert!(why.starts_with("20 workers died within a minute, of late: exit status: 12; "), "{why}");
        assert!(why.ends_with("exit status: 19"), "{why}");
    }

    #[test]
    fn a_worker_that_cannot_be_started_is_tried_again_ever_more_slowly_up_to_once_a_second() {
        let mut deaths = Deaths::default();
        let pauses = (0..40).map(|_| {
            deaths.add_failure();
            deaths.pause().as_millis()
        });
        let pauses: Vec<_> = pauses.collect();
        assert_eq!(pauses.get(..5), Some(&[100, 200, 400, 800, 1000][..]));
        assert_eq!(pauses.last(), Some(&1000));
    }

    #[test]
    fn the_guest_waits_since_the_first_death_and_not_since_the_last() {
        let (mut deaths, start) = (Deaths::default(), Instant::now());
        let later = start + Duration::from_secs(2);
        let _ = deaths.add(start, "first", 5);
        let _ = deaths.add(later, "second", 5);
        assert_eq!(deaths.end_waiting(later), Some((Duration::from_secs(2), "first".to_owned())));
        assert_eq!(deaths.end_waiting(later), None);
    }
}
