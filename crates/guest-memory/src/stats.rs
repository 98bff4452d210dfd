//! Counters of a map cache.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a map cache did since it was made, and holds now.
///
/// In the steady state of a guest that reuses its buffers only `hits` grows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Lookups that a view answered by itself. Each view's last few hundred may not be in yet.
    pub hits: u64,
    /// Lookups that found the chunk in the cache, under its lock.
    pub refills: u64,
    /// Lookups that had to map.
    pub misses: u64,
    /// Calls of the page source.
    pub map_calls: u64,
    /// Pages mapped.
    pub pages_mapped: u64,
    /// Frames found without memory behind them.
    pub holes: u64,
    /// Chunks dropped to make room.
    pub evictions: u64,
    /// Times all mappings were declared stale.
    pub invalidations: u64,
    /// Lookups refused because the budget was in use.
    pub busy: u64,
    /// Calls that mapped grants.
    pub grant_maps: u64,
    /// Granted pages mapped by them.
    pub grants_mapped: u64,
    /// Mappings of grants that were taken away again.
    pub grant_unmaps: u64,
    /// Calls that copied from or to granted pages.
    pub grant_copies: u64,
    /// Bytes copied by them, both ways.
    pub grant_bytes_copied: u64,
    /// Grants that the guest named and that were not to be had.
    pub grants_refused: u64,
    /// Bytes mapped now, whoever holds them.
    pub bytes_mapped: u64,
    /// Those of them that views and requests hold: no eviction frees them.
    pub bytes_pinned: u64,
}

/// What is counted one by one; the rest of [`Stats`] is worked out when asked for.
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    Hits,
    Refills,
    Misses,
    MapCalls,
    PagesMapped,
    Holes,
    Evictions,
    Busy,
    GrantMaps,
    GrantsMapped,
    GrantUnmaps,
    GrantCopies,
    GrantBytesCopied,
    GrantsRefused,
}

#[derive(Default)]
pub(crate) struct Counters([AtomicU64; Counter::GrantsRefused as usize + 1]);

impl Counters {
    #[expect(clippy::indexing_slicing, reason = "the array has a place for each counter")]
    fn cell(&self, counter: Counter) -> &AtomicU64 {
        &self.0[counter as usize]
    }

    pub(crate) fn add(&self, counter: Counter, count: u64) {
        self.cell(counter).fetch_add(count, Relaxed);
    }

    /// Everything counted; the rest is the caller's to fill in.
    pub(crate) fn snapshot(&self) -> Stats {
        let count = |counter| self.cell(counter).load(Relaxed);
        Stats {
            hits: count(Counter::Hits),
            refills: count(Counter::Refills),
            misses: count(Counter::Misses),
            map_calls: count(Counter::MapCalls),
            pages_mapped: count(Counter::PagesMapped),
            holes: count(Counter::Holes),
            evictions: count(Counter::Evictions),
            busy: count(Counter::Busy),
            grant_maps: count(Counter::GrantMaps),
            grants_mapped: count(Counter::GrantsMapped),
            grant_unmaps: count(Counter::GrantUnmaps),
            grant_copies: count(Counter::GrantCopies),
            grant_bytes_copied: count(Counter::GrantBytesCopied),
            grants_refused: count(Counter::GrantsRefused),
            ..Stats::default()
        }
    }
}
