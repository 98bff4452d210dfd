//! One queue: requests of the guest's ring go onto the shadow ring, and come back.
//!
//! A request's readable bytes are copied in, and of its writable bytes what the backend says it wrote is copied out.
//! Each descriptor of the guest's is one for the backend: some backends count them.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use range_alloc::RangeAllocator;
use smallvec::SmallVec;
use virtio_backend::{Bell, Fault, Request, Ring};

use crate::counters::Counters;
use crate::layout::{ALIGNMENT, DESCRIPTOR, LARGE, Layout, PAGE};
use crate::memory::Bounce;
use crate::shadow::{Buffer, IndexJumped, ShadowRing, Slots};
use crate::trouble::Trouble;
use crate::wire::ConnectionError;

/// So many of the last writable bytes go in with a request and come out with it, whatever the backend says it wrote.
/// There the status of a request stands that has failed and of which nothing else was written: a backend that shares
/// the guest's memory can forget to count it, and many do.
const TAIL: usize = 8;

/// A queue in service at the backend.
pub(crate) struct Queue {
    ring: ShadowRing,
    /// The pages that are free of those that are for its data.
    pages: RangeAllocator<u32>,
    /// The backend takes tables of descriptors.
    indirect: bool,
    /// What the backend has, by the slot of its first descriptor.
    in_flight: Vec<Option<Carried>>,
    carried: usize,
    /// Requests given to the backend so far.
    given: u64,
    /// There was no room for a request, and nothing has come back since.
    full: bool,
    /// Bytes of memory in use.
    in_use: u64,
    kick: Bell,
    counters: Arc<Counters>,
}

/// A request that the backend has.
struct Carried {
    request: Request,
    slots: Slots,
    pages: Range<u32>,
    /// Where each of its buffers is in the memory.
    places: Places,
    /// How many requests the backend was given before it.
    number: u64,
}

type Places = SmallVec<[usize; 4]>;

impl Queue {
    pub(crate) fn new(
        ring: ShadowRing,
        layout: &Layout,
        index: u16,
        size: u16,
        indirect: bool,
        kick: Bell,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            ring,
            pages: RangeAllocator::new(layout.data(index)),
            indirect,
            in_flight: (0..size).map(|_| None).collect(),
            carried: 0,
            given: 0,
            full: false,
            in_use: 0,
            kick,
            counters,
        }
    }

    /// Gives the backend what waits and then what the guest's ring has, as far as there is room. What there is no room
    /// for waits for something to come back, and nothing is tried again before.
    pub(crate) fn serve(
        &mut self,
        memory: &Bounce,
        ring: &mut Ring,
        waiting: &mut VecDeque<Request>,
    ) -> Result<(), Fault> {
        if self.full {
            return Ok(());
        }
        ring.decline_kicks()?;
        while let Some(request) = waiting.pop_front() {
            if let Some(request) = self.give(memory, request)? {
                waiting.push_front(request);
                return Ok(());
            }
        }
        for _ in 0..ring.size() {
            let Some(request) = ring.pop()? else { break };
            if let Some(request) = self.give(memory, request)? {
                ring.unpop(request);
                return Ok(());
            }
        }
        ring.ask_for_kicks();
        Ok(())
    }

    /// Tells the backend, if it wants to be told, of what it was given since the last call.
    pub(crate) fn publish(&mut self, memory: &Bounce) -> Result<(), Fault> {
        if self.ring.publish(memory)? {
            self.kick.ring();
            self.counters.backend_kicks.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Gives a request to the backend, or back if there is no room.
    fn give(&mut self, memory: &Bounce, request: Request) -> Result<Option<Request>, Fault> {
        let descriptors = lengths(&request).count();
        let by_table = self.indirect && descriptors > 1;
        let table = if by_table { DESCRIPTOR * descriptors } else { 0 };
        let (mut places, pages) = arrange(lengths(&request), table);
        let Some(slots) = self.ring.reserve(if by_table { 1 } else { descriptors }) else {
            return Ok(Some(self.put_off(request)));
        };
        let Ok(pages) = self.pages.allocate_range(pages) else {
            self.ring.release(slots);
            return Ok(Some(self.put_off(request)));
        };
        let start = pages.start as usize * PAGE;
        places.iter_mut().for_each(|place| *place += start);
        let carried = Carried { request, slots, pages, places, number: self.given };
        carried.copy_in(memory)?;
        let buffers = carried.buffers();
        if by_table {
            self.ring.add_indirect(memory, &carried.slots, start, &buffers)?;
        } else {
            self.ring.add(memory, &carried.slots, &buffers)?;
        }
        self.carry(carried)?;
        Ok(None)
    }

    fn put_off(&mut self, request: Request) -> Request {
        self.full = true;
        self.counters.waits_for_memory.fetch_add(1, Relaxed);
        request
    }

    fn carry(&mut self, carried: Carried) -> Result<(), Fault> {
        let bytes = bytes_of(&carried.pages);
        self.counters.bytes_in.fetch_add(carried.request.readable.len() as u64, Relaxed);
        self.counters.memory_in_use.fetch_add(bytes, Relaxed);
        self.in_use += bytes;
        self.given += 1;
        self.carried += 1;
        let head = carried.slots.first().copied().map(usize::from);
        let place = head.and_then(|head| self.in_flight.get_mut(head)).filter(|place| place.is_none());
        *place.ok_or_else(|| Fault::Bug("a slot was given out twice".to_owned()))? = Some(carried);
        Ok(())
    }

    /// Gives the guest what the backend is done with, until there is nothing new and the backend will call for more.
    pub(crate) fn collect(&mut self, memory: &Bounce, ring: &mut Ring) -> Result<(), Trouble> {
        loop {
            self.ring.ask_for_calls(memory)?;
            let fresh = self.ring.fresh(memory, self.carried)?;
            let fresh = fresh.map_err(|IndexJumped| ConnectionError::Lied("it is done with more than it was given"))?;
            if fresh == 0 {
                return Ok(());
            }
            for _ in 0..fresh {
                let used = self.ring.take_used(memory)?;
                let place = usize::try_from(used.id).ok().and_then(|id| self.in_flight.get_mut(id));
                let carried = place.and_then(Option::take);
                let carried = carried.ok_or(ConnectionError::Lied("it is done with what it was not given"))?;
                self.finish(memory, ring, carried, used.len as usize)?;
            }
        }
    }

    fn finish(&mut self, memory: &Bounce, ring: &mut Ring, carried: Carried, written: usize) -> Result<(), Fault> {
        let whole = carried.request.writable.len();
        let written = written.min(whole);
        carried.copy_out(memory, 0..written)?;
        carried.copy_out(memory, written.max(whole.saturating_sub(TAIL))..whole)?;
        let Carried { request, slots, pages, .. } = carried;
        let bytes = bytes_of(&pages);
        self.counters.bytes_out.fetch_add(written as u64, Relaxed);
        self.counters.memory_in_use.fetch_sub(bytes, Relaxed);
        self.in_use -= bytes;
        self.pages.free_range(pages);
        self.ring.release(slots);
        self.carried -= 1;
        self.full = false;
        ring.push(request, written)
    }

    /// Whether the backend has taken a request that it is not done with, given that it has stopped before entry `base`
    /// of the available ring.
    pub(crate) fn is_at_work(&self, base: u16) -> bool {
        let untaken = u64::from(self.ring.available().wrapping_sub(base));
        self.in_flight.iter().flatten().any(|carried| self.given - carried.number > untaken)
    }

    /// Ends it, with what the backend has not finished, in the order in which it was given.
    pub(crate) fn into_unfinished(mut self) -> VecDeque<Request> {
        let mut unfinished: Vec<_> = mem::take(&mut self.in_flight).into_iter().flatten().collect();
        unfinished.sort_by_key(|carried| carried.number);
        unfinished.into_iter().map(|carried| carried.request).collect()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.counters.memory_in_use.fetch_sub(self.in_use, Relaxed);
    }
}

impl Carried {
    fn buffers(&self) -> SmallVec<[Buffer; 4]> {
        let readable = self.request.readable_lengths().len();
        let buffers = lengths(&self.request).zip(&self.places).enumerate();
        // A descriptor's length has 32 bits.
        let len_of = |len| u32::try_from(len).unwrap_or(u32::MAX);
        buffers.map(|(index, (len, at))| Buffer { at: *at, len: len_of(len), writable: index >= readable }).collect()
    }

    fn copy_in(&self, memory: &Bounce) -> Result<(), Fault> {
        let mut done = 0;
        for (len, at) in self.request.readable_lengths().zip(&self.places) {
            self.request.readable.read_volatile(done, memory.slice(*at, len)?);
            done += len;
        }
        let writable = self.request.writable.len();
        for (offset, at, len) in self.writable_pieces(writable.saturating_sub(TAIL)..writable) {
            self.request.writable.read_volatile(offset, memory.slice(at, len)?);
        }
        Ok(())
    }

    fn copy_out(&self, memory: &Bounce, range: Range<usize>) -> Result<(), Fault> {
        for (offset, at, len) in self.writable_pieces(range) {
            self.request.writable.write_volatile(offset, memory.slice(at, len)?);
        }
        Ok(())
    }

    /// The buffers that a range of the writable bytes lies in: for each where its part of the range starts there, where
    /// that is in the memory, and how many bytes it has.
    fn writable_pieces(&self, range: Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> {
        let places = self.places.iter().skip(self.request.readable_lengths().len());
        let mut end = 0;
        self.request.writable_lengths().zip(places).filter_map(move |(len, at)| {
            let start = end;
            end = start + len;
            let from = range.start.max(start);
            let until = range.end.min(end);
            (from < until).then(|| (from, at + (from - start), until - from))
        })
    }
}

fn lengths(request: &Request) -> impl Iterator<Item = usize> + Clone {
    request.readable_lengths().chain(request.writable_lengths())
}

/// Where buffers of these lengths go, from the start of their pages, behind a table of `table` bytes; and how many
/// pages that takes. Small ones go together, and each large one starts a page, as backends want it that do direct I/O.
fn arrange(lengths: impl Iterator<Item = usize> + Clone, table: usize) -> (Places, u32) {
    let padded = |len: usize| len.next_multiple_of(ALIGNMENT);
    let (mut small, mut large) = (table, table);
    large += lengths.clone().filter(|len| *len < LARGE).map(padded).sum::<usize>();
    let places = lengths.map(|len| {
        if len < LARGE {
            let at = small;
            small += padded(len);
            at
        } else {
            let at = large.next_multiple_of(PAGE);
            large = at + len;
            at
        }
    });
    let places = places.collect();
    (places, u32::try_from(large.div_ceil(PAGE).max(1)).unwrap_or(u32::MAX))
}

fn bytes_of(pages: &Range<u32>) -> u64 {
    u64::from(pages.end - pages.start) * PAGE as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(lengths: &[usize], table: usize) -> (Vec<usize>, u32) {
        let (places, pages) = arrange(lengths.iter().copied(), table);
        (places.to_vec(), pages)
    }

    #[test]
    fn a_disks_request_takes_a_page_beside_its_data() {
        assert_eq!(arranged(&[16, 4096, 1], 48), (vec![48, 4096, 64], 2));
        assert_eq!(arranged(&[16, 4096, 4096, 512, 1], 0), (vec![0, 4096, 8192, 12288, 16], 4));
    }

    #[test]
    fn small_buffers_take_one_page() {
        assert_eq!(arranged(&[24, 1, 511], 0), (vec![0, 32, 48], 1));
        assert_eq!(arranged(&[0], 0), (vec![0], 1));
    }

    #[test]
    fn the_longest_chain_has_room_however_it_is_cut() {
        let (queue_size, queues) = (64, 2);
        let layout = Layout::new(queues, queue_size, 2 * Layout::least_memory(queues, queue_size)).unwrap();
        let bytes = usize::try_from(layout.longest_chain()).unwrap();
        let share = layout.data(0).len();
        let n = usize::from(queue_size);
        let small = 511;
        for first in [1, 16, small, 512, 513, 4097] {
            let mut cut = vec![first; n - 1];
            cut.push(bytes - first * (n - 1));
            let (_, pages) = arranged(&cut, 16 * cut.len());
            assert!(pages as usize <= share, "{first}: {pages} of {share}");
        }
    }
}
