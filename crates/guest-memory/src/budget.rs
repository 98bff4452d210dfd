//! How much guest memory may be mapped at a time, and the account that holds to it.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{CHUNK_SIZE, PAGE_SIZE, sync::AtomicU64};

/// How much of one guest's memory may be mapped. Values are rounded to chunks and to what can work at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Budget {
    /// Bytes that stay mapped when nobody uses them, so that the next request finds them.
    pub kept: u64,
    /// Bytes mapped at any time, requests in flight included. Beyond it a lookup says [`Busy`](crate::AccessError::Busy).
    ///
    /// Each view may hold on to [`View::REACH`](crate::View::REACH) of it between requests.
    pub at_most: u64,
}

impl Default for Budget {
    /// 64 MiB kept, 128 MiB at most.
    ///
    /// Kept: a driver reuses its rings and request headers for ever (under 1 MiB a queue), and `fio` or a database
    /// its I/O buffers: depth 128 at 256 KiB is 32 MiB. Twice that leaves room for a second device. More helps only
    /// guests that read through their page cache, whose buffers are all their free memory; it costs the host page
    /// tables, and a real page for each mapped one where the kernel lacks `CONFIG_XEN_UNPOPULATED_ALLOC`.
    fn default() -> Self {
        Self { kept: 64 << 20, at_most: 128 << 20 }
    }
}

impl Budget {
    /// Chunks to keep: at least one, at most all.
    pub(crate) fn kept_chunks(self) -> usize {
        usize::try_from(self.kept.min(self.at_most) / CHUNK_SIZE).unwrap_or(usize::MAX).max(1)
    }

    /// Pages at most: at least two chunks, because a buffer of two bytes can need as many.
    fn pages(self) -> u64 {
        self.at_most.max(2 * CHUNK_SIZE) / PAGE_SIZE
    }
}

/// The account of mapped pages.
#[derive(Debug)]
pub(crate) struct Account {
    limit: u64,
    pages: AtomicU64,
}

impl Account {
    pub(crate) fn new(budget: Budget) -> Arc<Self> {
        Arc::new(Self { limit: budget.pages(), pages: AtomicU64::new(0) })
    }

    /// Takes `pages` out of the budget until the reservation is dropped; `None` when it has not as many left.
    pub(crate) fn reserve(self: &Arc<Self>, pages: u64) -> Option<Reservation> {
        let add = |now: u64| now.checked_add(pages).filter(|&sum| sum <= self.limit);
        self.pages.fetch_update(Relaxed, Relaxed, add).ok()?;
        Some(Reservation { account: self.clone(), pages })
    }

    /// Bytes reserved now.
    pub(crate) fn bytes(&self) -> u64 {
        self.pages.load(Relaxed) * PAGE_SIZE
    }

    /// Bytes that one buffer can have mapped whatever its alignment.
    pub(crate) fn largest_buffer(&self) -> u64 {
        self.limit * PAGE_SIZE - CHUNK_SIZE
    }
}

/// Pages of the budget, given back by drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    account: Arc<Account>,
    pages: u64,
}

impl Reservation {
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Gives back what turned out not to be needed.
    pub(crate) fn shrink_to(&mut self, pages: u64) {
        let unused = self.pages.saturating_sub(pages);
        self.account.pages.fetch_sub(unused, Relaxed);
        self.pages -= unused;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.pages.fetch_sub(self.pages, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_beyond_the_limit_is_refused_and_a_dropped_one_makes_room() {
        let account = Account::new(Budget { kept: 0, at_most: 2 * CHUNK_SIZE });
        let first = account.reserve(16).unwrap();
        let mut second = account.reserve(16).unwrap();

        assert!(account.reserve(1).is_none());
        assert!(account.reserve(u64::MAX).is_none());
        second.shrink_to(10);
        assert_eq!(account.bytes(), 26 * PAGE_SIZE);
        assert!(account.reserve(6).is_some());
        drop((first, second));
        assert_eq!(account.bytes(), 0);
    }

    #[test]
    fn a_budget_too_small_to_work_is_rounded_up() {
        let budget = Budget { kept: 0, at_most: 0 };
        assert_eq!(budget.kept_chunks(), 1);
        assert!(Account::new(budget).reserve(32).is_some());
    }
}
