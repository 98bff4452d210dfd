//! A split virtqueue (virtio 1.2 §2.7) as a device works it.
//!
//! `virtio-queue` keeps where a queue stands, checks its layout and switches kicks. What happens with each request is
//! done here, by few accesses to guest memory: entries are read one by one, but the driver's index only when all before it
//! have been taken, and ours is written once a pass. One thread owns a ring.

use std::collections::VecDeque;
use std::io;
use std::mem::{replace, take};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guest_memory::{AccessError, MapCache, View};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::chain::{Limits, Table, head_at, resolve};
use crate::heads::HeadSet;
use crate::ledger::Left;
use crate::tables::{look_ahead, table_of, tables_ahead};
use crate::{Fault, GuestFault, Ledger, Request, indices};

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

/// How many chains are taken from a ring at once if parts of them may have to be copied: one call of the hypervisor
/// then serves them all.
const BATCH: u16 = 32;

/// A request that was pushed, and that the driver is not to know of before its memory, or that of one pushed earlier, has
/// been copied to it.
struct Finished {
    request: Request,
    len: u32,
}

/// One queue, with its own look at guest memory.
pub struct Ring {
    queue: Queue,
    view: View,
    max_chain_bytes: u64,
    /// Taken from the ring, and not asked for yet.
    batch: VecDeque<Request>,
    in_flight: HeadSet,
    /// What a former process had in flight, and is to be taken again before anything else.
    replay: VecDeque<u16>,
    ledger: Option<Ledger>,
    finished: Vec<Finished>,
    /// Given back, for the chains to come.
    spare: Vec<Request>,
    /// The driver's index as it was last read (§2.7.6): up to there chains are available.
    available: u16,
    /// What the driver was last asked about (§2.7.7.2).
    told: u16,
    starved: bool,
    more: bool,
    /// Kicks are asked for when the pass ends.
    listens: bool,
    /// The most requests of a pass.
    pub(crate) portion: u16,
    pub(crate) popped: u64,
    pub(crate) pushed: u64,
    /// The used ring has elements that its index does not show yet.
    unpublished: bool,
    unannounced: bool,
}

impl Ring {
    /// Takes a queue into service.
    ///
    /// # Errors
    /// Its size or an alignment is not allowed, part of it is no memory of the guest that the device may reach, or the
    /// host has no room for it.
    pub fn new(setup: &RingSetup, cache: &Arc<MapCache>) -> Result<Self, Fault> {
        let queue = checked_queue(setup)?;
        let mut view = View::new(Arc::clone(cache));
        for (start, len) in areas(setup) {
            view.keep(GuestAddress(start), len).map_err(unreachable)?;
        }
        if !queue.is_valid(&view) || !areas_are_mapped(setup, &view) {
            return Err(match view.take_failure() {
                Some(error @ (AccessError::NoGrantSource { .. } | AccessError::Busy | AccessError::Host(_))) => {
                    unreachable(error)
                }
                _ => GuestFault::Setup("a ring lies outside the guest's memory").into(),
            });
        }
        // What the checks met is dealt with.
        drop(view.take_failure());
        Ok(Self::with_queue(queue, view, setup.max_chain_bytes))
    }

    /// Takes a queue into service that is kept account of in `ledger`: where a former process left it, if there was one.
    ///
    /// # Errors
    /// As [`Ring::new`]; or the driver has written where only the device may.
    pub fn recorded(setup: &RingSetup, cache: &Arc<MapCache>, mut ledger: Ledger) -> Result<Self, Fault> {
        let mut ring = Self::new(setup, cache)?;
        let used_ring = ring.queue.used_ring();
        // Behind flags: the index, and behind that the elements, of two words each.
        let shown: u16 = ring.view.get(used_ring.wrapping_add(2)).map(u16::from_le).map_err(used_ring_fault)?;
        let element = |index: u16| {
            let slot = u64::from(index.checked_rem(setup.size)?);
            ring.view.get::<u32>(used_ring.wrapping_add(4 + 8 * slot)).ok().map(u32::from_le)
        };
        match ledger.resume(setup.size, shown, element)? {
            None => ledger.begin(setup.position.next_used),
            Some(left) => ring.carry_on(left),
        }
        ring.ledger = Some(ledger);
        Ok(ring)
    }

    fn carry_on(&mut self, Left { next_used, in_flight }: Left) {
        // There are no more of them than entries, of which there are at most 32,768.
        let looked_at = u16::try_from(in_flight.len()).unwrap_or(u16::MAX);
        let next_avail = next_used.wrapping_add(looked_at);
        self.queue.set_next_used(next_used);
        self.queue.set_next_avail(next_avail);
        (self.told, self.available) = (next_used, next_avail);
        self.replay = in_flight.into();
    }

    /// A queue that is not in service: it never has a request.
    pub fn idle(cache: &Arc<MapCache>) -> Self {
        Self::with_queue(Queue::default(), View::new(Arc::clone(cache)), 0)
    }

    fn with_queue(queue: Queue, view: View, max_chain_bytes: u64) -> Self {
        Self {
            batch: VecDeque::new(),
            in_flight: HeadSet::new(queue.size()),
            replay: VecDeque::new(),
            ledger: None,
            finished: Vec::new(),
            spare: Vec::new(),
            available: queue.next_avail(),
            told: queue.next_used(),
            starved: false,
            listens: false,
            portion: queue.size(),
            // What came before the lane listened for kicks has no event of its own.
            more: queue.ready(),
            queue,
            view,
            max_chain_bytes,
            popped: 0,
            pushed: 0,
            unpublished: false,
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
        let next = match self.batch.pop_front() {
            Some(request) => Some(request),
            None => {
                self.view.quiesce();
                match self.next_request() {
                    Ok(next) => next,
                    Err(fault) => return self.put_off_or_fail(fault),
                }
            }
        };
        next.map(|request| self.hand_out(request)).transpose()
    }

    fn hand_out(&mut self, request: Request) -> Result<Request, Fault> {
        let head = request.head;
        if !self.in_flight.insert(head) {
            return Err(GuestFault::Chain { head, what: "is in flight already" }.into());
        }
        if let Some(ledger) = &mut self.ledger {
            ledger.take(head, !request.is_replay);
        }
        self.popped += 1;
        tracing::trace!(name: "ring.pop", head);
        Ok(request)
    }

    /// Tells apart what the driver did wrong from what only the mappings of the moment did not allow: of the latter the
    /// view knows.
    fn put_off_or_fail(&mut self, fault: GuestFault) -> Result<Option<Request>, Fault> {
        match self.view.take_failure().as_ref().or(fault.cause()) {
            Some(AccessError::Busy) => {
                self.starved = true;
                self.view.flush();
                Ok(None)
            }
            Some(AccessError::Host(error)) => Err(host_fault(error)),
            _ => Err(fault.into()),
        }
    }

    fn next_request(&mut self) -> Result<Option<Request>, GuestFault> {
        if self.view.cache().reaches_grants() { self.next_batch() } else { self.next_chain() }
    }

    /// Takes as many chains as there are, up to [`BATCH`], and keeps all but the first of them for later.
    fn next_batch(&mut self) -> Result<Option<Request>, GuestFault> {
        let start = self.queue.next_avail();
        let (chains, tables) = if self.replay.is_empty() {
            let chains = look_ahead(&self.queue, &self.view, BATCH).map_err(GuestFault::Ring)?;
            (chains.into(), tables_ahead(&self.queue, &self.view, chains))
        } else {
            let chains = self.replay.iter().take(BATCH.into());
            (chains.len(), chains.filter_map(|&head| table_of(&self.queue, &self.view, head)).collect())
        };
        // What cannot be read there is met again when its chain is walked.
        drop(self.view.take_failure());
        self.view.copy_tables(&tables).map_err(GuestFault::Unreachable)?;
        while self.batch.len() < chains {
            match self.next_chain() {
                Ok(Some(request)) => self.batch.push_back(request),
                Ok(None) => break,
                Err(fault) if self.batch.is_empty() => return Err(fault),
                // It is met again, after those before it.
                Err(_) => {
                    drop(self.view.take_failure());
                    break;
                }
            }
        }
        if let Err(error) = self.view.copy_in(self.batch.iter().map(|request| &request.readable)) {
            let again = self.batch.drain(..).rev().filter(|request| request.is_replay);
            again.for_each(|request| self.replay.push_front(request.head));
            self.queue.set_next_avail(start);
            return Err(GuestFault::Unreachable(error));
        }
        Ok(self.batch.pop_front())
    }

    fn next_chain(&mut self) -> Result<Option<Request>, GuestFault> {
        if let Some(&head) = self.replay.front() {
            let request = self.resolve(head, true)?;
            self.replay.pop_front();
            return Ok(Some(request));
        }
        let position = self.queue.next_avail();
        if position == self.available && !self.look_for_more(position)? {
            return self.nothing_there();
        }
        let Some(head) = head_at(&self.queue, &self.view, position) else { return self.nothing_there() };
        let request = self.resolve(head, false)?;
        self.queue.set_next_avail(position.wrapping_add(1));
        Ok(Some(request))
    }

    fn resolve(&mut self, head: u16, is_replay: bool) -> Result<Request, GuestFault> {
        let mut request = self.spare.pop().unwrap_or_else(Request::new);
        (request.head, request.is_replay) = (head, is_replay);
        // Linux fills indirect tables up to what configuration space allows, be the queue smaller (§2.7.5.3.1 or not):
        // what a device says there fits its largest queue, and that is what holds.
        let limits = Limits { descriptors: self.queue.max_size().into(), bytes: self.max_chain_bytes };
        resolve(&mut request, Table::of(&self.queue), &self.view, limits)?;
        Ok(request)
    }

    /// Whether the driver has made chains available since it was last looked.
    fn look_for_more(&mut self, position: u16) -> Result<bool, GuestFault> {
        let available = self.queue.avail_idx(&self.view, Ordering::Acquire).map_err(GuestFault::Ring)?.0;
        let ahead = indices::ahead(available, position, self.queue.size());
        let ahead = ahead.ok_or(GuestFault::Ring(virtio_queue::Error::InvalidAvailRingIndex))?;
        self.available = available;
        Ok(ahead > 0)
    }

    /// Of a ring that cannot be read the view knows why.
    fn nothing_there(&self) -> Result<Option<Request>, GuestFault> {
        self.view.take_failure().map_or(Ok(None), |source| Err(GuestFault::Unreadable(source)))
    }

    /// Puts back the request taken last, untouched, to be taken again later.
    pub fn unpop(&mut self, request: Request) {
        self.in_flight.remove(request.head);
        self.popped = self.popped.saturating_sub(1);
        if let Some(ledger) = self.ledger.as_ref().filter(|_| !request.is_replay) {
            ledger.put_back(request.head);
        }
        if self.view.cache().reaches_grants() {
            self.batch.push_front(request);
        } else if request.is_replay {
            self.replay.push_front(request.head);
            self.recycle(request);
        } else {
            self.queue.go_to_previous_position();
            self.recycle(request);
        }
    }

    /// Lets go of a request's memory, and keeps the rest for one to come.
    fn recycle(&mut self, mut request: Request) {
        if request.is_small() && self.spare.len() < usize::from(self.queue.size()) {
            request.clear();
            self.spare.push(request);
        }
    }

    /// Gives a request back to the driver, with `written` bytes filled from the start of its
    /// writable part. The driver knows of it when the pass ends. Its memory is let go before; if some of it has to be copied
    /// to the driver, that is done together with what else is pushed in this pass.
    ///
    /// # Errors
    /// The used ring cannot be written; or the request is not one of this ring's, a bug.
    pub fn push(&mut self, request: Request, written: usize) -> Result<(), Fault> {
        let (head, len) = (request.head, u32::try_from(written.min(request.writable.len())).unwrap_or(u32::MAX));
        if !self.in_flight.remove(head) {
            return Err(Fault::Bug(format!("chain {head} pushed though not in flight")));
        }
        // Nothing overtakes what waits to be copied: what was received is in the order of the used ring.
        if request.writable.is_to_be_stored() || !self.finished.is_empty() {
            self.finished.push(Finished { request, len });
            return Ok(());
        }
        self.recycle(request);
        self.add_used(head, len)
    }

    /// Puts an element into the used ring (§2.7.8), whose index the driver is shown by [`publish`](Self::publish).
    fn add_used(&mut self, head: u16, len: u32) -> Result<(), Fault> {
        let next = self.queue.next_used();
        let slot = u64::from(next) % u64::from(self.queue.size().max(1));
        // Behind flags and index, two words each: which chain, and how much was written.
        let at = self.queue.used_ring().wrapping_add(4 + 8 * slot);
        let element = u64::from(head) | u64::from(len) << 32;
        self.view.put(at, element.to_le()).map_err(used_ring_fault)?;
        self.queue.set_next_used(next.wrapping_add(1));
        if let Some(ledger) = &mut self.ledger {
            ledger.give_back(head);
        }
        tracing::trace!(name: "ring.push", head, len);
        self.pushed += 1;
        self.unpublished = true;
        self.unannounced = true;
        Ok(())
    }

    /// Copies to the driver what has to be, in one call, and shows it the requests given back. The lane does so at the end
    /// of each pass.
    ///
    /// # Errors
    /// The driver took the memory back, or the host failed.
    pub fn publish(&mut self) -> Result<(), Fault> {
        if !self.finished.is_empty() {
            self.store_finished()?;
        }
        if take(&mut self.unpublished) {
            let index = GuestAddress(self.queue.used_ring().wrapping_add(2));
            let next = self.queue.next_used().to_le();
            self.view.store(next, index, Ordering::Release).map_err(used_ring_fault)?;
            if let Some(ledger) = &mut self.ledger {
                ledger.shown(self.queue.next_used());
            }
        }
        Ok(())
    }

    fn store_finished(&mut self) -> Result<(), Fault> {
        let written = self.finished.iter().map(|Finished { request, len }| (&request.writable, *len as usize));
        match self.view.copy_out(written) {
            Ok(()) => {}
            Err(AccessError::Busy) => {
                self.starved = true;
                return Ok(());
            }
            Err(error) => return Err(unreachable(error)),
        }
        let mut finished = take(&mut self.finished);
        for Finished { request, len } in finished.drain(..) {
            let head = request.head;
            self.recycle(request);
            self.add_used(head, len)?;
        }
        // For the next pass to need no memory.
        self.finished = finished;
        Ok(())
    }

    /// Takes every request there is and hands it to `take`; a pass takes no more than the queue's size, and fewer where
    /// telling the driver [is cheap](crate::Signals::is_cheap), so that it and a lane's other queues have their turn. Kicks
    /// are off from here to the end of the pass.
    ///
    /// # Errors
    /// As [`Ring::pop`], and what `take` returns.
    pub fn serve(&mut self, mut take: impl FnMut(&mut Self, Request) -> Result<(), Fault>) -> Result<(), Fault> {
        self.decline_kicks()?;
        self.ask_for_kicks();
        for _ in 0..self.portion {
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
        if take(&mut self.listens) && !self.starved && !self.more {
            self.more = self.queue.enable_notification(&self.view).map_err(GuestFault::Ring)?;
        }
        Ok(())
    }

    /// Whether there is something to take, or to find wrong.
    pub(crate) fn has_available(&self) -> bool {
        let available = || self.queue.avail_idx(&self.view, Ordering::Relaxed);
        self.queue.ready() && available().map_or(true, |index| index.0 != self.queue.next_avail())
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
        // No more than there are entries, of which there are at most 32,768. What a former process had in flight lies before
        // all that it had not looked at.
        let kept = self.batch.iter().filter(|request| !request.is_replay).count();
        let kept = u16::try_from(kept).unwrap_or(u16::MAX);
        RingPosition { next_avail: self.queue.next_avail().wrapping_sub(kept), next_used: self.queue.next_used() }
    }

    /// Whether the driver wants to hear of what was pushed since the last call (§2.7.7).
    ///
    /// # Errors
    /// The ring cannot be read.
    pub(crate) fn take_due(&mut self) -> Result<bool, Fault> {
        if !take(&mut self.unannounced) {
            return Ok(false);
        }
        // The used index must be visible before what the driver wants is read, or both sides may wait.
        fence(Ordering::SeqCst);
        let (before, now) = (replace(&mut self.told, self.queue.next_used()), self.queue.next_used());
        let avail_ring = self.queue.avail_ring();
        let load = |at: u64| self.view.load::<u16>(GuestAddress(avail_ring.wrapping_add(at)), Ordering::Relaxed);
        let asked = if self.queue.event_idx_enabled() {
            // Behind the entries: the index with which it wants to hear (§2.7.7.2), passed since it was last asked?
            let event = load(4 + 2 * u64::from(self.queue.size()));
            event.map(|event| indices::passes(u16::from_le(event), before, now))
        } else {
            load(0).map(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        };
        Ok(asked.map_err(|error| GuestFault::Ring(virtio_queue::Error::GuestMemory(error)))?)
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
        take(&mut self.starved) | take(&mut self.more)
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

/// The three areas, the event fields at their ends included.
fn areas(setup: &RingSetup) -> [(u64, usize); 3] {
    let size = usize::from(setup.size);
    [(setup.desc_table, 16 * size), (setup.avail_ring, 6 + 2 * size), (setup.used_ring, 6 + 8 * size)]
}

fn areas_are_mapped(setup: &RingSetup, view: &View) -> bool {
    areas(setup).into_iter().all(|(start, len)| view.check_range(GuestAddress(start), len, Permissions::ReadWrite))
}

fn used_ring_fault(error: GuestMemoryError) -> Fault {
    GuestFault::Ring(virtio_queue::Error::GuestMemory(error)).into()
}

/// Memory that is granted, or is not, cannot be reached.
fn unreachable(error: AccessError) -> Fault {
    match error {
        AccessError::Host(error) => host_fault(&error),
        AccessError::Busy => Fault::Host { doing: "reaching guest memory", source: io::Error::other(error) },
        error => GuestFault::Unreachable(error).into(),
    }
}

fn host_fault(error: &Arc<io::Error>) -> Fault {
    let source = io::Error::new(error.kind(), Arc::clone(error));
    Fault::Host { doing: "reaching guest memory", source }
}
