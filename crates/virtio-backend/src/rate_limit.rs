//! A limit to how much a device does in a time, as a token bucket with a timer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};

/// So much a second, and so much at once after a pause. Of what, its user says.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, expecting = "a table { per_second = ..., burst = ... }")]
pub struct Rate {
    /// How much a second in the long run; at least 1.
    pub per_second: u64,
    /// How much at once; at least 1.
    pub burst: u64,
}

/// Keeps to a [`Rate`]. A worker that is refused gives the timer among its sources, and is woken when it may go on.
///
/// What can be had in parts is [taken](Self::take); what is done wholly or not at all is [admitted](Self::admits) and then
/// [charged](Self::charge).
#[derive(Debug)]
pub struct RateLimit {
    rate: Rate,
    /// What may be taken now, counted in `1 / NANOS` so that nothing is lost in rounding. Below zero it is a debt.
    credit: i128,
    filled_at: Instant,
    timer: OwnedFd,
}

const NANOS: i128 = 1_000_000_000;

impl RateLimit {
    /// Starts with a full bucket.
    ///
    /// # Errors
    /// No timer is to be had.
    pub fn new(rate: Rate) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let credit = i128::from(rate.burst) * NANOS;
        Ok(Self { rate, credit, filled_at: Instant::now(), timer })
    }

    /// Takes up to `wanted`, and gives how much it took. Where that is nothing the timer wakes the lane as soon as there
    /// is `worthwhile` to take, or a full bucket if that is less.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub fn take(&mut self, wanted: u64, worthwhile: u64) -> io::Result<u64> {
        self.fill(Instant::now());
        // In debt there is nothing to take.
        let there = u64::try_from(self.credit / NANOS).unwrap_or(0);
        let taken = wanted.min(there);
        self.credit -= i128::from(taken) * NANOS;
        if taken == 0 && wanted > 0 {
            self.wake_in(self.until(worthwhile.clamp(1, self.rate.burst.max(1))))?;
        }
        Ok(taken)
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&mut self, unused: u64) {
        self.credit = (self.credit + i128::from(unused) * NANOS).min(i128::from(self.rate.burst) * NANOS);
    }

    /// Whether something may be done now, however large it is; what it costs is to be [charged](Self::charge). Where it may
    /// not, the timer wakes the lanes that watch it as soon as it may.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub fn admits(&mut self) -> io::Result<bool> {
        self.fill(Instant::now());
        if self.credit >= NANOS {
            return Ok(true);
        }
        self.wake_in(self.until(1))?;
        Ok(false)
    }

    /// Pays for something that was admitted. What costs more than there is leaves a debt, so that it need not wait for a
    /// bucket that never is so full, and the rate holds all the same.
    pub fn charge(&mut self, cost: u64) {
        self.credit = self.credit.saturating_sub(i128::from(cost) * NANOS);
    }

    /// Silences the timer; to be called when it wakes the lane.
    pub fn silence(&self) {
        // It fails if the timer has not fired.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
    }

    fn fill(&mut self, now: Instant) {
        let passed = i128::try_from(now.saturating_duration_since(self.filled_at).as_nanos()).unwrap_or(i128::MAX);
        let earned = passed.saturating_mul(i128::from(self.rate.per_second));
        self.credit = self.credit.saturating_add(earned).min(i128::from(self.rate.burst) * NANOS);
        self.filled_at = now;
    }

    fn until(&self, wanted: u64) -> Duration {
        let lacking = u128::try_from((i128::from(wanted) * NANOS).saturating_sub(self.credit)).unwrap_or(0);
        let nanos = lacking.div_ceil(u128::from(self.rate.per_second.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn wake_in(&self, wait: Duration) -> io::Result<()> {
        // Zero would switch the timer off.
        let wait = wait.max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

impl AsFd for RateLimit {
    /// Readable when it is worthwhile to try again.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn limit(per_second: u64, burst: u64) -> RateLimit {
        RateLimit::new(Rate { per_second, burst }).unwrap()
    }

    #[test]
    fn a_burst_is_given_at_once_and_no_more() {
        let mut limit = limit(1, 100);
        assert_eq!(limit.take(60, 1).unwrap(), 60);
        assert_eq!(limit.take(60, 1).unwrap(), 40);
        assert_eq!(limit.take(60, 1).unwrap(), 0);
    }

    #[test]
    fn what_time_earns_is_exact_over_many_small_steps() {
        let mut limit = limit(3, 1_000_000);
        limit.credit = 0;
        let start = limit.filled_at;
        for millis in 1..=100_000 {
            limit.fill(start + Duration::from_millis(millis));
        }
        assert_eq!(limit.credit, 300 * NANOS);
    }

    #[test]
    fn a_long_pause_fills_the_bucket_and_not_more() {
        let mut limit = limit(u64::MAX, 5);
        limit.fill(limit.filled_at + Duration::from_secs(1 << 40));
        assert_eq!(limit.take(u64::MAX, 1).unwrap(), 5);
    }

    #[test]
    fn what_was_not_used_can_be_taken_again() {
        let mut limit = limit(1, 10);
        assert_eq!(limit.take(10, 1).unwrap(), 10);
        limit.give_back(4);
        assert_eq!(limit.take(10, 1).unwrap(), 4);
    }

    #[test]
    fn the_timer_wakes_who_was_refused() {
        let mut limit = limit(1000, 10);
        assert_eq!(limit.take(10, 1).unwrap(), 10);
        assert_eq!(limit.take(10, 5).unwrap(), 0);

        poll(&mut [PollFd::new(&limit, PollFlags::IN)], None).unwrap();
        limit.silence();

        assert!(limit.take(10, 5).unwrap() >= 5);
        assert!(rustix::io::read(&limit.timer, &mut [0; 8]).is_err(), "silent");
    }

    #[test]
    fn what_is_larger_than_the_burst_goes_at_once_and_is_paid_for_afterwards() {
        let mut limit = limit(10, 10);
        assert!(limit.admits().unwrap());

        limit.charge(1000);

        assert_eq!(limit.until(1), Duration::from_millis(99_100), "for the debt of 990, and one more");
        assert!(!limit.admits().unwrap());
        assert_eq!(limit.take(1, 1).unwrap(), 0);
    }

    #[test]
    fn a_debt_has_no_end_that_could_overflow() {
        let mut limit = limit(1, 1);
        (0..100).for_each(|_| limit.charge(u64::MAX));
        assert!(!limit.admits().unwrap());
        limit.fill(limit.filled_at + Duration::from_secs(1 << 40));
        assert!(!limit.admits().unwrap());
    }

    #[test]
    fn the_wait_is_for_what_is_worthwhile_at_most_for_a_full_bucket() {
        let mut limit = limit(10, 10);
        limit.credit = 0;
        assert_eq!(limit.until(5), Duration::from_millis(500));
        assert_eq!(limit.until(1), Duration::from_millis(100));
        assert_eq!(limit.take(1, u64::MAX).unwrap(), 0, "and no overflow");
    }
}
