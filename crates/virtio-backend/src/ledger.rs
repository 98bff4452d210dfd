//! Which requests of a queue the device holds, and how many it has given back, for the process that follows.
//!
//! A word for each head says when its request was taken: 0, not at all. One word says up to which index of the used ring the
//! driver has been shown what was given back. From these follows where the queue stands: every entry of the available ring
//! that was looked at is either shown as used or still held.
//!
//! | what happens | what is written, in this order |
//! |---|---|
//! | a request is taken | its head's word |
//! | requests are given back | the used ring, its index, 0 to the words of their heads, the word of the index |
//!
//! Whoever finds the ring's index ahead of the word knows what was being shown when the writer stopped, and finishes that.

use std::sync::Arc;

use guest_memory::SharedMemory;

use crate::record::{load, store};
use crate::{GuestFault, indices};

/// Bytes before the words of the heads.
const HEADER: usize = 64;

/// Set in the word of the index once the queue is in service.
const IN_SERVICE: u64 = 1 << 16;

/// One queue's.
pub struct Ledger {
    memory: Arc<SharedMemory>,
    /// Where it is in there.
    at: usize,
    size: u16,
    /// What is written for the next request that is taken.
    next: u64,
    /// Given back, and not shown yet.
    given_back: Vec<u16>,
}

/// Where a former process left a queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// The next entry of the used ring to fill.
    pub(crate) next_used: u16,
    /// The heads of what was in flight, in the order in which it was taken.
    pub(crate) in_flight: Vec<u16>,
}

impl Ledger {
    /// Bytes of one for a queue of at most `size` entries.
    pub(crate) const fn bytes(size: u16) -> usize {
        (HEADER + 8 * size as usize).next_multiple_of(HEADER)
    }

    /// The one at `at`, in whatever state it was left.
    pub(crate) fn new(memory: Arc<SharedMemory>, at: usize, size: u16) -> Self {
        Self { memory, at, size, next: 1, given_back: Vec::new() }
    }

    /// Makes it that of a queue that has never been in service.
    pub fn clear(&self) {
        // In this order: without the index the rest means nothing.
        store(&self.memory, self.at, 0);
        (0..self.size).for_each(|head| self.set(head, 0));
    }

    /// Begins with a queue that has never been in service.
    pub(crate) fn begin(&self, next_used: u16) {
        store(&self.memory, self.at, IN_SERVICE | u64::from(next_used));
    }

    /// Where a former process left the queue, which has `size` entries; `None` if it has never been in service. `shown` is
    /// the used ring's index as the driver sees it, `used` the head in the entry of an index.
    ///
    /// # Errors
    /// The driver has changed what is the device's to write.
    pub(crate) fn resume(
        &mut self,
        size: u16,
        shown: u16,
        used: impl Fn(u16) -> Option<u32>,
    ) -> Result<Option<Left>, GuestFault> {
        let word = load(&self.memory, self.at);
        if word & IN_SERVICE == 0 {
            return Ok(None);
        }
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the index")]
        let known = word as u16;
        let ahead = indices::ahead(shown, known, size)
            .ok_or(GuestFault::Setup("the index of a used ring is not where the device left it"))?;
        for index in (0..ahead).map(|nth| known.wrapping_add(nth)) {
            let head = used(index).and_then(|head| u16::try_from(head).ok()).filter(|head| *head < size);
            self.set(head.ok_or(GuestFault::Setup("a used ring has an entry that the device did not make"))?, 0);
        }
        self.begin(shown);
        let mut held: Vec<_> =
            (0..self.size).map(|head| (self.get(head), head)).filter(|(when, _)| *when != 0).collect();
        held.sort_unstable();
        self.next = held.last().map_or(1, |(when, _)| when.wrapping_add(1).max(1));
        Ok(Some(Left { next_used: shown, in_flight: held.into_iter().map(|(_, head)| head).collect() }))
    }

    /// A request is taken. One that a former process took keeps its place.
    pub(crate) fn take(&mut self, head: u16, is_new: bool) {
        if is_new {
            self.set(head, self.next);
            self.next = self.next.wrapping_add(1).max(1);
        }
    }

    /// It was not taken after all.
    pub(crate) fn put_back(&self, head: u16) {
        self.set(head, 0);
    }

    /// It is given back; the driver does not know yet.
    pub(crate) fn give_back(&mut self, head: u16) {
        self.given_back.push(head);
    }

    /// The driver has been shown all that was given back, up to this index.
    pub(crate) fn shown(&mut self, next_used: u16) {
        for &head in &self.given_back {
            self.set(head, 0);
        }
        self.given_back.clear();
        self.begin(next_used);
    }

    fn place(&self, head: u16) -> Option<usize> {
        (head < self.size).then(|| self.at + HEADER + 8 * usize::from(head))
    }

    fn get(&self, head: u16) -> u64 {
        self.place(head).map_or(0, |at| load(&self.memory, at))
    }

    fn set(&self, head: u16, when: u64) {
        if let Some(at) = self.place(head) {
            store(&self.memory, at, when);
        }
    }
}
