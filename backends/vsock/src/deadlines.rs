//! What is to be done by when, with one timer for all.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Moments, each known by a token.
#[derive(Debug)]
pub(crate) struct Deadlines {
    moments: BTreeSet<(Instant, u64)>,
    /// When the timer fires; `None` if it does not.
    armed: Option<Instant>,
    timer: OwnedFd,
}

impl Deadlines {
    /// None yet.
    ///
    /// # Errors
    /// No timer is to be had.
    pub(crate) fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { moments: BTreeSet::new(), armed: None, timer })
    }

    /// Adds one.
    pub(crate) fn add(&mut self, moment: Instant, token: u64) {
        self.moments.insert((moment, token));
    }

    /// Takes one back.
    pub(crate) fn remove(&mut self, moment: Instant, token: u64) {
        self.moments.remove(&(moment, token));
    }

    /// Takes one that is past, by its token.
    pub(crate) fn take_past(&mut self, now: Instant) -> Option<u64> {
        self.moments.first().filter(|(moment, _)| *moment <= now)?;
        self.moments.pop_first().map(|(_, token)| token)
    }

    /// Sees to it that the timer fires for the first of them. It may fire once for one that was taken back: setting it
    /// anew for each would cost more.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub(crate) fn arm(&mut self, now: Instant) -> io::Result<()> {
        self.armed = self.armed.filter(|armed| *armed > now);
        let Some((first, _)) = self.moments.first() else { return Ok(()) };
        if self.armed.is_some_and(|armed| armed <= *first) {
            return Ok(());
        }
        // Zero would switch the timer off.
        let wait = first.saturating_duration_since(now).max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.armed = Some(*first);
        Ok(())
    }
}

impl AsFd for Deadlines {
    /// Becomes readable when one is past.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn they_come_in_order_and_not_early() {
        let (mut deadlines, now) = (Deadlines::new().unwrap(), Instant::now());
        let later = now + Duration::from_secs(1);
        deadlines.add(later, 1);
        deadlines.add(now, 2);
        deadlines.add(later, 3);
        deadlines.remove(later, 3);

        assert_eq!(deadlines.take_past(now), Some(2));
        assert_eq!(deadlines.take_past(now), None);
        assert_eq!(deadlines.take_past(later), Some(1));
        assert_eq!(deadlines.take_past(later), None);
    }

    #[test]
    fn the_timer_fires_for_the_first() {
        let (mut deadlines, now) = (Deadlines::new().unwrap(), Instant::now());
        deadlines.add(now + Duration::from_secs(3600), 1);
        deadlines.arm(now).unwrap();
        deadlines.add(now + Duration::from_millis(1), 2);
        deadlines.arm(now).unwrap();

        poll(&mut [PollFd::new(&deadlines, PollFlags::IN)], None).unwrap();

        let now = Instant::now();
        assert_eq!(deadlines.take_past(now), Some(2));
        deadlines.arm(now).unwrap();
        assert!(deadlines.armed.is_some_and(|armed| armed > now), "for the other");
    }
}
