//! A disk with a volatile cache: what is durable, and what is still in the cache.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::log::{Change, Event};

/// Bytes that are written whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// How a device could lie to its guest, for the test to be tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lie {
    /// It answers flushes and does nothing.
    FlushesNothing,
    /// A flush makes durable what was done before the flush before it began.
    FlushesLate,
    /// A flush forgets every eighth write.
    FlushesMost,
    /// Writes that are to be durable when they are done go into the cache.
    StableInWord,
}

/// A disk at one point of a log.
pub struct Platter<'a> {
    lie: Option<Lie>,
    durable: Vec<u8>,
    /// By sector: which write it holds, counted in the order in which they were asked for. What is older and still in
    /// the cache never gets there any more.
    age: Vec<u64>,
    /// What is in the cache or on its way there, in the order in which it was asked for.
    cached: Vec<Cached<'a>>,
    flushes: HashMap<u64, Flush>,
    /// Begin of the flush that began last.
    last_flush: u64,
    asked: u64,
    settled: u64,
}

/// A change that is not durable.
pub(crate) struct Cached<'a> {
    pub(crate) number: u64,
    id: u64,
    change: &'a Change,
    done: Option<u64>,
}

/// A flush that is under way.
struct Flush {
    /// What was done before this is durable when it is done.
    covers: u64,
}

impl<'a> Platter<'a> {
    /// A disk that is not there yet, whose device lies or does not.
    pub fn new(lie: Option<Lie>) -> Self {
        Self {
            lie,
            durable: Vec::new(),
            age: Vec::new(),
            cached: Vec::new(),
            flushes: HashMap::new(),
            last_flush: 0,
            asked: 0,
            settled: 0,
        }
    }

    /// What is durable. All else may be lost.
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// Takes the next event of the log. Returns whether it has made something durable.
    pub fn take(&mut self, event: &'a Event) -> bool {
        let before = self.settled;
        match event {
            Event::Opened { size } => {
                let size = usize::try_from(*size).unwrap_or_default();
                *self = Self::new(self.lie);
                self.durable = vec![0; size];
                self.age = vec![0; size / SECTOR];
            }
            Event::Asked { id, what: Change::Flush } => {
                self.asked += 1;
                let covers = if self.lie == Some(Lie::FlushesLate) { self.last_flush } else { self.asked };
                self.last_flush = self.asked;
                self.flushes.insert(*id, Flush { covers });
            }
            Event::Asked { id, what } => {
                self.asked += 1;
                self.cached.push(Cached { number: self.asked, id: *id, change: what, done: None });
            }
            Event::Done { id } => self.finish(*id),
            Event::Said(_) => {}
        }
        self.settled > before
    }

    fn finish(&mut self, id: u64) {
        if let Some(flush) = self.flushes.remove(&id) {
            let lie = self.lie;
            self.settle(|write| {
                let covered = write.done.is_some_and(|done| done < flush.covers);
                covered && lie != Some(Lie::FlushesNothing) && (lie != Some(Lie::FlushesMost) || write.number % 8 != 0)
            });
            return;
        }
        let (asked, lie) = (self.asked, self.lie);
        if let Some(write) = self.cached.iter_mut().find(|write| write.id == id) {
            write.done = Some(asked);
        }
        self.settle(|write| write.id == id && write.change.is_stable() && lie != Some(Lie::StableInWord));
    }

    /// Moves changes from the cache to the platter.
    fn settle(&mut self, is_durable: impl Fn(&Cached<'a>) -> bool) {
        let (durable, cached) = std::mem::take(&mut self.cached).into_iter().partition(is_durable);
        self.cached = cached;
        for change in Vec::from_iter::<Vec<_>>(durable) {
            self.settled += 1;
            for (sector, bytes) in change.sectors() {
                if let Some(age) = self.age.get_mut(sector).filter(|age| **age <= change.number) {
                    *age = change.number;
                    put(&mut self.durable, sector, bytes);
                }
            }
        }
    }

    /// What is in the cache.
    pub(crate) fn cached(&self) -> &[Cached<'a>] {
        &self.cached
    }

    /// What is found when the power is back: the durable, and of the cache those sectors that `keep` says, given the
    /// place of a change in the cache and the sector. The number stands for the state: others have others.
    pub(crate) fn cut(&self, mut keep: impl FnMut(usize, usize) -> bool) -> (Vec<u8>, u64) {
        let (mut found, mut state) = (self.durable.clone(), DefaultHasher::new());
        self.settled.hash(&mut state);
        for (place, change) in self.cached.iter().enumerate() {
            for (sector, bytes) in change.sectors() {
                let newer = self.age.get(sector).is_some_and(|age| *age < change.number);
                if newer && keep(place, sector) {
                    (change.number, sector).hash(&mut state);
                    put(&mut found, sector, bytes);
                }
            }
        }
        (found, state.finish())
    }
}

impl Change {
    fn is_stable(&self) -> bool {
        matches!(self, Self::Write { stable: true, .. } | Self::Zeroes { stable: true, .. })
    }
}

impl<'a> Cached<'a> {
    /// Number and contents of each sector it changes.
    fn sectors(&self) -> impl Iterator<Item = (usize, &'a [u8])> + use<'a> {
        let (offset, len, data): (u64, u64, Option<&[u8]>) = match self.change {
            Change::Write { offset, data, .. } => (*offset, data.len() as u64, Some(data)),
            Change::Zeroes { offset, len, .. } => (*offset, *len, None),
            Change::Flush => (0, 0, None),
        };
        let first = usize::try_from(offset).unwrap_or(usize::MAX) / SECTOR;
        let count = usize::try_from(len).unwrap_or_default() / SECTOR;
        (0..count).map(move |at| {
            let bytes = data.and_then(|data| data.get(at * SECTOR..(at + 1) * SECTOR));
            (first + at, bytes.unwrap_or(&[0; SECTOR]))
        })
    }
}

fn put(disk: &mut [u8], sector: usize, bytes: &[u8]) {
    if let Some(place) = disk.get_mut(sector * SECTOR..(sector + 1) * SECTOR) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Event {
        Event::Opened { size: 4 * SECTOR as u64 }
    }

    fn write(id: u64, sector: u64, byte: u8, stable: bool) -> Event {
        let data = vec![byte; 2 * SECTOR];
        Event::Asked { id, what: Change::Write { offset: sector * SECTOR as u64, data, stable } }
    }

    fn flush(id: u64) -> Event {
        Event::Asked { id, what: Change::Flush }
    }

    fn done(id: u64) -> Event {
        Event::Done { id }
    }

    fn after(events: &[Event], lie: Option<Lie>) -> Platter<'_> {
        let mut platter = Platter::new(lie);
        for event in events {
            platter.take(event);
        }
        platter
    }

    /// The first byte of each durable sector.
    fn durable_after(events: &[Event], lie: Option<Lie>) -> [u8; 4] {
        let platter = after(events, lie);
        [0, 1, 2, 3].map(|sector| platter.durable()[sector * SECTOR])
    }

    #[test]
    fn a_flush_covers_what_was_done_when_it_began() {
        let events = [opened(), write(1, 0, 7, false), done(1), write(2, 2, 8, false), flush(3), done(2), done(3)];
        assert_eq!(durable_after(&events, None), [7, 7, 0, 0]);
        assert_eq!(durable_after(&events[..6], None), [0; 4]);
        assert_eq!(durable_after(&events, Some(Lie::FlushesNothing)), [0; 4]);
        assert_eq!(durable_after(&events, Some(Lie::FlushesLate)), [0; 4]);
    }

    #[test]
    fn the_flush_after_a_late_one_covers_what_that_should_have() {
        let events = [opened(), write(1, 0, 7, false), done(1), flush(2), done(2), flush(3), done(3)];
        assert_eq!(durable_after(&events[..5], Some(Lie::FlushesLate)), [0; 4]);
        assert_eq!(durable_after(&events, Some(Lie::FlushesLate)), [7, 7, 0, 0]);
    }

    #[test]
    fn a_stable_write_is_durable_when_it_is_done() {
        let events = [opened(), write(1, 0, 7, true), done(1)];
        assert_eq!(durable_after(&events, None), [7, 7, 0, 0]);
        assert_eq!(durable_after(&events[..2], None), [0; 4]);
        assert_eq!(durable_after(&events, Some(Lie::StableInWord)), [0; 4]);
    }

    #[test]
    fn zeroes_are_a_change_like_others() {
        let what = Change::Zeroes { offset: SECTOR as u64, len: SECTOR as u64, stable: true };
        let events = [opened(), write(1, 0, 7, true), done(1), Event::Asked { id: 2, what }, done(2)];
        assert_eq!(durable_after(&events, None), [7, 0, 0, 0]);
    }

    #[test]
    fn a_sector_never_goes_back_behind_what_is_durable_in_it() {
        let events = [opened(), write(1, 0, 7, false), done(1), write(2, 1, 8, true), done(2)];
        let platter = after(&events, None);
        let (found, _) = platter.cut(|_, _| true);
        assert_eq!([0, 1, 2].map(|sector| found[sector * SECTOR]), [7, 8, 8]);
    }

    #[test]
    fn a_state_is_told_from_others_by_what_was_kept() {
        let events = [opened(), write(1, 0, 7, false), write(2, 2, 8, false)];
        let platter = after(&events, None);
        let none = platter.cut(|_, _| false);
        let first = platter.cut(|place, _| place == 0);
        let torn = platter.cut(|_, sector| sector % 2 == 0);
        assert_eq!(none, platter.cut(|_, _| false));
        assert_eq!(torn.0[..3 * SECTOR].chunks(SECTOR).map(|sector| sector[0]).collect::<Vec<_>>(), [7, 0, 8]);
        assert!(none.1 != first.1 && first.1 != torn.1 && none.1 != torn.1);
    }
}
