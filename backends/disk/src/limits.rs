//! How much of the host a disk may have in a time: requests, and the bytes that they move.
//!
//! A disk's lanes share one bucket for each. A request that is refused goes back into its ring and is taken again when the
//! timer says so, so a lane that waits holds nothing and a reset has nothing to wait for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_backend::{Rate, RateLimit};

use crate::request::Io;

/// The limits of a disk that has any.
#[derive(Debug)]
pub(crate) struct Limits(Mutex<Buckets>);

/// Lanes meet here for a moment, and those of disks without limits never.
#[derive(Debug)]
struct Buckets {
    requests: Option<RateLimit>,
    bytes: Option<RateLimit>,
}

impl Limits {
    /// `None` if there is no limit.
    ///
    /// # Errors
    /// No timer is to be had.
    pub(crate) fn new(iops: Option<Rate>, bandwidth: Option<Rate>) -> io::Result<Option<Self>> {
        if iops.is_none() && bandwidth.is_none() {
            return Ok(None);
        }
        let requests = iops.map(RateLimit::new).transpose()?;
        let bytes = bandwidth.map(RateLimit::new).transpose()?;
        Ok(Some(Self(Mutex::new(Buckets { requests, bytes }))))
    }

    /// Whether this may be done now, and counts it if so. Where it may not, one of the [timers](Self::timers) tells when to
    /// try again. A flush always may: what it waits for has been paid.
    ///
    /// # Errors
    /// A timer cannot be set.
    pub(crate) fn admit(&self, io: Io) -> io::Result<bool> {
        if io == Io::Flush {
            return Ok(true);
        }
        let mut buckets = self.buckets();
        let Buckets { requests, bytes } = &mut *buckets;
        for limit in [&mut *requests, &mut *bytes].into_iter().flatten() {
            if !limit.admits()? {
                return Ok(false);
            }
        }
        if let Some(limit) = requests {
            limit.charge(1);
        }
        if let Some(limit) = bytes {
            limit.charge(bytes_moved(io));
        }
        Ok(true)
    }

    /// The timers, for a lane to watch.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub(crate) fn timers(&self) -> io::Result<Vec<OwnedFd>> {
        let buckets = self.buckets();
        let limits = [&buckets.requests, &buckets.bytes].into_iter().flatten();
        limits.map(|limit| limit.as_fd().try_clone_to_owned()).collect()
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Zeroes count as what they may cost; what is given back costs no bytes.
fn bytes_moved(io: Io) -> u64 {
    match io {
        Io::Read(span) | Io::Write(span) | Io::WriteZeroes { span, .. } => span.len,
        Io::Flush | Io::Discard(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Span;

    /// No test waits for it to earn anything.
    const SLOW: Rate = Rate { per_second: 1, burst: 2 };
    const READ: Io = Io::Read(Span { offset: 0, len: 4096 });

    #[test]
    fn a_disk_without_limits_has_none() {
        assert!(Limits::new(None, None).unwrap().is_none());
    }

    #[test]
    fn requests_are_counted_and_flushes_are_free() {
        let limits = Limits::new(Some(SLOW), None).unwrap().unwrap();
        assert!(limits.admit(READ).unwrap() && limits.admit(Io::Flush).unwrap() && limits.admit(READ).unwrap());

        assert!(!limits.admit(READ).unwrap());
        assert!(limits.admit(Io::Flush).unwrap());
    }

    #[test]
    fn a_request_larger_than_the_burst_goes_and_the_next_one_waits() {
        let limits = Limits::new(None, Some(SLOW)).unwrap().unwrap();
        assert!(limits.admit(READ).unwrap());

        assert!(!limits.admit(READ).unwrap());
        assert!(!limits.admit(Io::Discard(Span { offset: 0, len: 512 })).unwrap(), "in turn, though it costs nothing");
    }

    #[test]
    fn what_one_limit_refuses_the_other_does_not_charge() {
        let many = Rate { per_second: 1, burst: 100 };
        let limits = Limits::new(Some(many), Some(SLOW)).unwrap().unwrap();
        assert!(limits.admit(READ).unwrap());
        (0..200).for_each(|_| assert!(!limits.admit(READ).unwrap()));

        let credit = limits.buckets().requests.as_mut().unwrap().take(100, 1).unwrap();
        assert!(credit >= 99, "{credit}");
        assert_eq!(limits.timers().unwrap().len(), 2);
    }
}
