//! The caches of a guest's pages: one for each way in which devices reach them, made when the first such device comes.
//!
//! A cache serves the lanes of all devices that reach memory in its way. What is said of the guest's memory as a whole,
//! that it changed or how much of it is mapped, is said of all caches.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use guest_memory::{Budget, MapCache, Sources, Stats};

use crate::model::Grants;
use crate::protocol::Counter;

/// The ways to a guest's pages, as Xen has them.
pub trait GuestPages: Send + Sync + 'static {
    /// Those that devices have whose memory is reached so. `gntdev` is there unless it is never reached by grants.
    ///
    /// # Errors
    /// There is no such way.
    fn sources(&self, grants: Grants, gntdev: Option<OwnedFd>) -> anyhow::Result<Sources>;
}

/// The caches of one guest. The pump and the main thread share them.
pub(super) struct Caches {
    pages: Box<dyn GuestPages>,
    never: OnceLock<Arc<MapCache>>,
    allowed: OnceLock<Arc<MapCache>>,
    only: OnceLock<Arc<MapCache>>,
}

impl Caches {
    /// None yet.
    pub(super) fn new(pages: impl GuestPages) -> Arc<Self> {
        let (never, allowed, only) = Default::default();
        Arc::new(Self { pages: Box::new(pages), never, allowed, only })
    }

    /// The cache for devices whose memory is reached so. `gntdev` is kept by the first of them that uses grants.
    ///
    /// # Errors
    /// It is the first, and there is no such way to the guest's pages.
    pub(super) fn of(&self, grants: Grants, gntdev: Option<OwnedFd>) -> anyhow::Result<Arc<MapCache>> {
        let place = match grants {
            Grants::Never => &self.never,
            Grants::Allowed => &self.allowed,
            Grants::Only => &self.only,
        };
        if let Some(cache) = place.get() {
            return Ok(Arc::clone(cache));
        }
        let sources = self.pages.sources(grants, gntdev)?;
        Ok(Arc::clone(place.get_or_init(|| MapCache::new(sources, Budget::default()))))
    }

    /// Declares all that is mapped stale: an atomic addition each, as the pump must have it.
    pub(super) fn invalidate(&self) {
        self.made().for_each(|cache| cache.invalidate());
    }

    /// Unmaps what is stale and in nobody's hands.
    pub(super) fn sweep(&self) {
        self.made().for_each(|cache| cache.sweep());
    }

    /// What they counted, taken together.
    pub(super) fn counters(&self) -> Vec<Counter> {
        let mut sums = named(Stats::default());
        for cache in self.made() {
            for (sum, (_, count)) in sums.iter_mut().zip(named(cache.stats())) {
                sum.1 += count;
            }
        }
        sums.map(|(name, value)| Counter::new(name, value)).into()
    }

    fn made(&self) -> impl Iterator<Item = &Arc<MapCache>> {
        [&self.never, &self.allowed, &self.only].into_iter().filter_map(OnceLock::get)
    }
}

fn named(stats: Stats) -> [(&'static str, u64); 16] {
    let Stats {
        hits,
        refills,
        misses,
        map_calls,
        pages_mapped,
        holes,
        evictions,
        // The pump counts them, once for all caches.
        invalidations: _,
        busy,
        grant_maps,
        grants_mapped,
        grant_unmaps,
        grant_copies,
        grant_bytes_copied,
        grants_refused,
        bytes_mapped,
        bytes_pinned,
    } = stats;
    [
        ("cache_hits", hits),
        ("cache_refills", refills),
        ("cache_misses", misses),
        ("cache_map_calls", map_calls),
        ("cache_pages_mapped", pages_mapped),
        ("cache_holes", holes),
        ("cache_evictions", evictions),
        ("cache_busy", busy),
        ("cache_bytes_mapped", bytes_mapped),
        ("cache_bytes_pinned", bytes_pinned),
        ("grant_maps", grant_maps),
        ("grants_mapped", grants_mapped),
        ("grant_unmaps", grant_unmaps),
        ("grant_copies", grant_copies),
        ("grant_bytes_copied", grant_bytes_copied),
        ("grants_refused", grants_refused),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use anyhow::ensure;
    use testkit::grants::FakeGrants;
    use testkit::memory::FakeForeignMemory;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const RAM: u64 = 0x4000_0000;

    struct Guest {
        memory: FakeForeignMemory,
        grants: FakeGrants,
    }

    impl Guest {
        fn new() -> Self {
            let memory = FakeForeignMemory::new(&[(RAM, 1 << 20)]);
            Self { grants: FakeGrants::new(memory.clone()), memory }
        }
    }

    impl GuestPages for Guest {
        fn sources(&self, grants: Grants, gntdev: Option<OwnedFd>) -> anyhow::Result<Sources> {
            ensure!(gntdev.is_some() || grants == Grants::Never, "no gntdev");
            Ok(match grants {
                Grants::Never => self.memory.clone().into(),
                Grants::Allowed => Sources::from(self.memory.clone()).with_grants(self.grants.clone()),
                Grants::Only => Sources::grants(self.grants.clone()),
            })
        }
    }

    fn gntdev() -> Option<OwnedFd> {
        Some(File::open("/dev/null").unwrap().into())
    }

    fn count(caches: &Caches, name: &str) -> u64 {
        caches.counters().iter().find(|counter| counter.0 == name).unwrap().1
    }

    #[test]
    fn devices_that_reach_memory_in_one_way_share_a_cache_and_others_have_another() {
        let caches = Caches::new(Guest::new());
        let first = caches.of(Grants::Never, None).unwrap();
        let others = [Grants::Allowed, Grants::Only].map(|grants| caches.of(grants, gntdev()).unwrap());

        assert!(Arc::ptr_eq(&first, &caches.of(Grants::Never, None).unwrap()));
        assert!(Arc::ptr_eq(&others[1], &caches.of(Grants::Only, gntdev()).unwrap()));
        let ways = [&first, &others[0], &others[1]].map(|cache| (cache.reaches_frames(), cache.reaches_grants()));
        assert_eq!(ways, [(true, false), (true, true), (false, true)]);
    }

    #[test]
    fn a_way_that_is_not_there_is_refused_and_may_come_later() {
        let caches = Caches::new(Guest::new());

        assert!(caches.of(Grants::Only, None).is_err());
        assert!(caches.of(Grants::Only, gntdev()).is_ok());
    }

    #[test]
    fn what_is_said_of_the_guests_memory_is_said_of_all_caches() {
        let guest = Guest::new();
        let memory = guest.memory.clone();
        let caches = Caches::new(guest);
        for cache in [caches.of(Grants::Never, None).unwrap(), caches.of(Grants::Allowed, gntdev()).unwrap()] {
            // A view of its own, which is gone when the caches are swept.
            guest_memory::View::new(cache).read_obj::<u64>(GuestAddress(RAM)).unwrap();
        }
        assert_eq!((count(&caches, "cache_misses"), memory.counts().live), (2, 2));

        caches.invalidate();
        caches.sweep();

        assert_eq!((count(&caches, "cache_bytes_mapped"), memory.counts().live), (0, 0));
    }
}
