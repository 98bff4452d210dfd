//! A split virtqueue (virtio 1.2 §2.7) as a device works it.
//!
//! `virtio-queue` does the ring arithmetic; this module adds the checks that it leaves to its user,
//! resolves chains into [`Request`]s, and keeps which heads are in flight. One thread owns a ring.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guest_memory::{AccessError, MapCache, View};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::{Fault, GuestFault, Request};

/// Where a queue lies and how it is worked, as the driver set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSetup {
    /// Entries: a power of two, at most `max_size`.
    pub size: u16,
    /// The most entries the device offered.
    pub max_size: u16,
    /// Guest address of the descriptor table, 16-byte aligned.
    pub desc_table: u64,
    /// Guest address of the available ring, 2-byte aligned.
    pub avail_ring: u64,
    /// Guest address of the used ring, 4-byte aligned.
    pub used_ring: u64,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Where to carry on; zero for a fresh queue.
    pub position: RingPosition,
    /// The most bytes a chain may describe.
    pub max_chain_bytes: u64,
}

/// How far a queue has been worked, counted modulo 2^16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingPosition {
    /// The next entry of the available ring to look at.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

/// One queue, with its own look at guest memory.
pub struct Ring {
    queue: Queue,
    view: View,
    max_chain_bytes: u64,
    in_flight: HeadSet,
    starved: bool,
    more: bool,
    /// Kicks are asked for when the pass ends.
    listens: bool,
    pub(crate) popped: u64,
    pub(crate) pushed: u64,
    unannounced: bool,
}

impl Ring {
    /// Takes a queue into service.
    ///
    /// # Errors
    /// Its size or an alignment is not allowed, or part of it is not in guest memory.
    pub fn new(setup: &RingSetup, cache: &Arc<MapCache>) -> Result<Self, GuestFault> {
        let queue = checked_queue(setup)?;
        let view = View::new(Arc::clone(cache));
        if !queue.is_valid(&view) || !areas_are_mapped(setup, &view) {
            return Err(GuestFault::Setup("a ring lies outside the guest's memory"));
        }
        // What the checks met is dealt with.
        drop(view.take_failure());
        Ok(Self::with_queue(queue, view, setup.max_chain_bytes))
    }

    /// A queue that is not in service: it never has a request.
    pub fn idle(cache: &Arc<MapCache>) -> Self {
        Self::with_queue(Queue::default(), View::new(Arc::clone(cache)), 0)
    }

    fn with_queue(queue: Queue, view: View, max_chain_bytes: u64) -> Self {
        Self {
            in_flight: HeadSet::new(queue.size()),
            starved: false,
            listens: false,
            // What came before the lane listened for kicks has no event of its own.
            more: queue.ready(),
            queue,
            view,
            max_chain_bytes,
            popped: 0,
            pushed: 0,
            unannounced: false,
        }
    }

    /// Takes the next request, if there is one.
    ///
    /// `None` also when the map cache has no room for its buffers: the lane then tries again soon.
    ///
    /// # Errors
    /// The ring or the chain is malformed. Nothing of the chain has been touched then.
    pub fn pop(&mut self) -> Result<Option<Request>, Fault> {
        if !self.queue.ready() {
            return Ok(None);
        }
        self.view.quiesce();
        self.pop_chain().or_else(|fault| self.put_off_or_fail(fault))
    }

    /// Tells apart what the driver did wrong from what only the mappings of the moment did not allow:
    /// `virtio-queue` ends a chain silently in both cases.
    fn put_off_or_fail(&mut self, fault: GuestFault) -> Result<Option<Request>, Fault> {
        let cause = match (self.view.take_failure(), &fault) {
            (Some(swallowed), _) => Some(swallowed),
            (None, GuestFault::Memory { source, .. } | GuestFault::Unreadable(source)) => Some(source.clone()),
            (None, _) => None,
        };
        match cause {
            Some(AccessError::Busy) => {
                self.starved = true;
                self.view.flush();
                Ok(None)
            }
            Some(AccessError::Host(error)) => {
                let source = io::Error::new(error.kind(), error);
                Err(Fault::Host { doing: "mapping guest memory", source })
            }
            _ => Err(fault.into()),
        }
    }

    fn pop_chain(&mut self) -> Result<Option<Request>, GuestFault> {
        let position = self.queue.next_avail();
        // Linux fills indirect tables up to what configuration space allows, be the queue smaller (§2.7.5.3.1 or not):
        // what a device says there fits its largest queue, and that is what holds.
        let limit = usize::from(self.queue.max_size());
        let Some(mut chain) = self.queue.iter(&self.view).map_err(GuestFault::Ring)?.next() else {
            return self.nothing_there();
        };
        let resolved = resolve(&mut chain, &self.view, limit, self.max_chain_bytes);
        let request = resolved.inspect_err(|_| self.queue.set_next_avail(position))?;
        if !self.in_flight.insert(request.head) {
            return Err(GuestFault::Chain { head: request.head, what: "is in flight already" });
        }
        self.popped += 1;
        tracing::trace!(name: "ring.pop", head = request.head);
        Ok(Some(request))
    }

    /// The iterator ends alike where there is nothing and where the ring cannot be read; of the latter
    /// the view knows.
    fn nothing_there(&self) -> Result<Option<Request>, GuestFault> {
        self.view.take_failure().map_or(Ok(None), |source| Err(GuestFault::Unreadable(source)))
    }

    /// Puts back the request taken last, untouched, to be taken again later.
    pub fn unpop(&mut self, request: Request) {
        self.in_flight.remove(request.head);
        self.queue.go_to_previous_position();
        self.popped -= 1;
    }

    /// Gives a request back to the driver, with `written` bytes filled from the start of its
    /// writable part. Its memory is let go before the driver can know.
    ///
    /// # Errors
    /// The used ring cannot be written; or the request is not one of this ring's, a bug.
    pub fn push(&mut self, request: Request, written: usize) -> Result<(), Fault> {
        let head = request.head;
        let len = u32::try_from(written.min(request.writable.len())).unwrap_or(u32::MAX);
        drop(request);
        if !self.in_flight.remove(head) {
            return Err(Fault::Bug(format!("chain {head} pushed though not in flight")));
        }
        self.queue.add_used(&self.view, head, len).map_err(GuestFault::Ring)?;
        tracing::trace!(name: "ring.push", head, len);
        self.pushed += 1;
        self.unannounced = true;
        Ok(())
    }

    /// Takes every request there is and hands it to `take`; a pass takes no more than the queue's size,
    /// so that a lane's other queues have their turn. Kicks are off from here to the end of the pass.
    ///
    /// # Errors
    /// As [`Ring::pop`], and what `take` returns.
    pub fn serve(&mut self, mut take: impl FnMut(&mut Self, Request) -> Result<(), Fault>) -> Result<(), Fault> {
        self.decline_kicks()?;
        self.ask_for_kicks();
        for _ in 0..self.queue.size() {
            let Some(request) = self.pop()? else { return Ok(()) };
            take(self, request)?;
        }
        self.more = true;
        Ok(())
    }

    /// Tells the driver not to kick for this queue: its buffers are taken when the device has a use for
    /// them. A driver may kick all the same.
    ///
    /// # Errors
    /// The ring cannot be written.
    pub fn decline_kicks(&mut self) -> Result<(), Fault> {
        if self.queue.ready() {
            self.queue.disable_notification(&self.view).map_err(GuestFault::Ring)?;
        }
        Ok(())
    }

    /// Asks the driver, when the pass ends, to kick once it makes buffers available; buffers that came meanwhile make
    /// another pass. For a device that has found the queue empty and needs more. [`serve`](Self::serve) asks by itself.
    pub fn ask_for_kicks(&mut self) {
        self.listens = self.queue.ready();
    }

    /// Ends a pass: asks for kicks if they are wanted again. What came meanwhile makes another pass.
    ///
    /// # Errors
    /// The ring cannot be read or written.
    pub(crate) fn end_pass(&mut self) -> Result<(), Fault> {
        // With more to do soon there is no need to be told.
        if std::mem::take(&mut self.listens) && !self.starved && !self.more {
            self.more = self.queue.enable_notification(&self.view).map_err(GuestFault::Ring)?;
        }
        Ok(())
    }

    /// Requests taken and not yet pushed back.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Entries in the queue; 0 if it is not in service.
    pub fn size(&self) -> u16 {
        if self.queue.ready() { self.queue.size() } else { 0 }
    }

    /// How far the queue has been worked.
    pub fn position(&self) -> RingPosition {
        RingPosition { next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    /// Whether the driver wants to hear of what was pushed since the last call (§2.7.7).
    ///
    /// # Errors
    /// The ring cannot be read.
    pub(crate) fn take_due(&mut self) -> Result<bool, Fault> {
        if !std::mem::take(&mut self.unannounced) {
            return Ok(false);
        }
        let asked = if self.queue.event_idx_enabled() {
            self.queue.needs_notification(&self.view)
        } else {
            self.interrupt_flag_is_clear()
        };
        Ok(asked.map_err(GuestFault::Ring)?)
    }

    /// Without event index, the driver's flag decides (§2.7.7.2); `virtio-queue` leaves it to us.
    fn interrupt_flag_is_clear(&self) -> Result<bool, virtio_queue::Error> {
        // The used index must be visible before the flag is read, or both sides may wait.
        fence(Ordering::SeqCst);
        let flags: u16 = self
            .view
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// The map cache had no room: worth another pass soon, of which no event may tell.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved
    }

    /// The last pass ended before the queue was empty.
    pub(crate) fn has_more(&self) -> bool {
        self.more
    }

    /// Whether a pass is due that no event tells of.
    pub(crate) fn take_unasked(&mut self) -> bool {
        std::mem::take(&mut self.starved) | std::mem::take(&mut self.more)
    }

    /// Lets go of all guest memory that no request holds.
    pub(crate) fn release_memory(&mut self) {
        self.view.flush();
    }
}

fn checked_queue(setup: &RingSetup) -> Result<Queue, GuestFault> {
    if setup.size == 0 || !setup.size.is_power_of_two() || setup.size > setup.max_size {
        return Err(GuestFault::Setup("its size is not a power of two within the offered maximum"));
    }
    Queue::try_from(QueueState {
        max_size: setup.max_size,
        next_avail: setup.position.next_avail,
        next_used: setup.position.next_used,
        event_idx_enabled: setup.event_idx,
        size: setup.size,
        ready: true,
        desc_table: setup.desc_table,
        avail_ring: setup.avail_ring,
        used_ring: setup.used_ring,
    })
    .map_err(GuestFault::Ring)
}

/// Whether every byte of the three areas is there, the event fields at their ends included.
fn areas_are_mapped(setup: &RingSetup, view: &View) -> bool {
    let size = usize::from(setup.size);
    [(setup.desc_table, 16 * size), (setup.avail_ring, 6 + 2 * size), (setup.used_ring, 6 + 8 * size)]
        .into_iter()
        .all(|(start, len)| view.check_range(GuestAddress(start), len, Permissions::ReadWrite))
}

/// Walks a chain, checking it as §2.7.4 and §2.7.5 want it, and pins what it describes.
///
/// The iterator ends a malformed chain as silently as a good one; only a good one ends on a
/// descriptor without NEXT.
fn resolve(
    chain: &mut virtio_queue::DescriptorChain<&View>,
    view: &View,
    max_descriptors: usize,
    max_bytes: u64,
) -> Result<Request, GuestFault> {
    let head = chain.head_index();
    let malformed = |what| GuestFault::Chain { head, what };
    let mut request = Request {
        head,
        readable: Default::default(),
        writable: Default::default(),
        lengths: Default::default(),
        readable_descriptors: 0,
    };
    let (mut descriptors, mut bytes, mut unfinished, mut in_writable_part) = (0, 0u64, true, false);
    for descriptor in chain {
        descriptors += 1;
        bytes += u64::from(descriptor.len());
        unfinished = descriptor.has_next();
        if descriptors > max_descriptors {
            return Err(malformed("has more descriptors than the largest queue"));
        }
        // Before anything is mapped: a 4 GiB descriptor costs nothing.
        if bytes > max_bytes {
            return Err(malformed("describes more bytes than the device allows"));
        }
        if in_writable_part && !descriptor.is_write_only() {
            return Err(malformed("has a readable descriptor behind a writable one"));
        }
        in_writable_part = descriptor.is_write_only();
        request.lengths.push(descriptor.len());
        request.readable_descriptors += usize::from(!in_writable_part);
        let buffers = if in_writable_part { &mut request.writable } else { &mut request.readable };
        view.pin(descriptor.addr(), usize::try_from(descriptor.len()).unwrap_or(usize::MAX), buffers)
            .map_err(|source| GuestFault::Memory { head, source })?;
    }
    if unfinished {
        return Err(malformed("loops, leaves its table or cannot be read"));
    }
    Ok(request)
}

/// Which heads the device holds: a driver that offers one twice would have its first buffers taken
/// from under the kernel.
struct HeadSet {
    words: Vec<u64>,
    len: usize,
}

impl HeadSet {
    fn new(size: u16) -> Self {
        Self { words: vec![0; usize::from(size).div_ceil(64)], len: 0 }
    }

    fn word(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        Some((self.words.get_mut(usize::from(head / 64))?, 1 << (head % 64)))
    }

    /// False if it was there already, or cannot be.
    fn insert(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.word(head) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// False if it was not there.
    fn remove(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.word(head) else { return false };
        let was_there = *word & bit != 0;
        *word &= !bit;
        self.len -= usize::from(was_there);
        was_there
    }

    fn len(&self) -> usize {
        self.len
    }
}
