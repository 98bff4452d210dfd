//! When to look for a backend again that is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// A timer whose pauses grow, for ever.
pub(crate) struct Retry {
    timer: OwnedFd,
    pause: Duration,
}

impl Retry {
    pub(crate) fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { timer, pause: FIRST })
    }

    /// Wakes the lane at once.
    pub(crate) fn now(&self) -> io::Result<()> {
        // Zero would switch the timer off.
        self.wake_in(Duration::from_nanos(1))
    }

    /// Wakes the lane after a pause, longer than the one before.
    pub(crate) fn later(&mut self) -> io::Result<()> {
        self.wake_in(self.pause)?;
        self.pause = (2 * self.pause).min(LONGEST);
        Ok(())
    }

    /// What was waited for has come: the next pause is short again.
    pub(crate) fn succeeded(&mut self) {
        self.pause = FIRST;
    }

    fn wake_in(&self, pause: Duration) -> io::Result<()> {
        let it_value = Timespec::try_from(pause).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

impl AsFd for Retry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
