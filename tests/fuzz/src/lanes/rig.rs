//! A device, its guest's memory, and all of its lanes on the calling thread.

use std::ops::Range;
use std::sync::Arc;

use guest_memory::MapCache;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_backend::{Backend, ConfigSpace, Fault, Ring, RingPosition, RingSetup, Wake, Worker, features};

use super::Buffer;
use super::moves::Wild;
use crate::chain::{Chain, are_tangled, untouched_memory_is_untouched};
use crate::guest::{BASE, INDIRECT, Memory, NEXT, Raw, WRITE, u16_at, u32_at};

/// Bytes of the guest's memory.
pub(crate) const SIZE: usize = 0x3_0000;

/// Entries of each queue.
pub(crate) const QUEUE: u16 = 16;

// Offsets: a page for each queue, then the indirect tables, then what chains describe.
const AVAILABLE: usize = 0x400;
const USED: usize = 0x800;
const TABLES: usize = 0x8000;
pub(crate) const DATA: usize = 0x1_0000;
const QUEUES_MOST: usize = TABLES / 0x1000;

/// Bytes of the used ring, `avail_event` included.
const USED_LEN: usize = 4 + 8 * QUEUE as usize + 2;

/// How often a pass looks for more at the host's end.
const LOOKS: usize = 8;

/// Offset of an indirect table of 32 descriptors, of which there are 16.
pub(crate) fn table(number: u8) -> usize {
    TABLES + usize::from(number % 16) * 32 * 16
}

/// The device before its driver.
pub(crate) struct Rig {
    pub(crate) memory: Memory,
    cache: Arc<MapCache>,
    backend: Arc<dyn Backend>,
    config: ConfigSpace,
    /// None if the device needs a reset.
    lanes: Option<Vec<Lane>>,
    queues: Vec<Queue>,
    /// The next free byte for what is honest.
    free: usize,
    is_honest: bool,
    /// The device was given its own rings to write to: nothing can be said of it.
    is_tangled: bool,
}

struct Lane {
    worker: Box<dyn Worker>,
    rings: Vec<Ring>,
    queues: Range<usize>,
}

/// One queue as the judge sees it.
#[derive(Default)]
struct Queue {
    /// Taken by the device, and not given back.
    held: Vec<Chain>,
    used: u16,
    /// The next free descriptor.
    slot: u16,
    /// What was given back, and not looked at by a driver: head and length.
    came_back: Vec<(u16, usize)>,
}

impl Rig {
    /// The device with a driver that has accepted nothing but what it has to.
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Self {
        let (memory, cache) = Memory::new(SIZE);
        let config = ConfigSpace::new(Arc::clone(&backend));
        assert!(backend.identity().queue_sizes.len() <= QUEUES_MOST);
        let mut rig = Self {
            memory,
            cache,
            backend,
            config,
            lanes: None,
            queues: Vec::new(),
            free: DATA,
            is_honest: true,
            is_tangled: false,
        };
        rig.reset(0);
        rig
    }

    /// The queue that a number stands for.
    pub(super) fn queue_of(&self, number: u8) -> usize {
        usize::from(number) % self.queues.len()
    }

    pub(super) fn make(&mut self, wild: Wild) {
        self.is_honest &= matches!(wild, Wild::Kick { .. } | Wild::ReadConfig { .. } | Wild::WriteConfig { .. });
        match wild {
            Wild::Descriptor { queue, slot, descriptor } => {
                let start = 0x1000 * self.queue_of(queue);
                self.memory.put(start + 16 * usize::from(slot % QUEUE as u8), descriptor.raw());
            }
            Wild::Indirect { table: number, slot, descriptor } => {
                self.memory.put(table(number) + 16 * usize::from(slot % 32), descriptor.raw());
            }
            Wild::Publish { queue, head } => self.publish(self.queue_of(queue), u16::from(head % (QUEUE as u8 + 2))),
            Wild::Jump { queue, by } => {
                let at = 0x1000 * self.queue_of(queue) + AVAILABLE + 2;
                self.memory.write(at, &self.memory.u16_at(at).wrapping_add(by).to_le_bytes());
            }
            Wild::Scribble { at, value } => self.memory.write(at as usize % SIZE, &value.to_le_bytes()),
            Wild::Kick { queue } => self.kick(self.queue_of(queue)),
            Wild::WriteConfig { offset, data, len } => {
                self.config.write(offset.into(), &data[..usize::from(len % 9)]).expect("no panic");
            }
            Wild::ReadConfig { offset, len } => {
                self.config.read(offset.into(), &mut vec![0xee; len.into()]).expect("no panic");
            }
            Wild::Reset { features } => self.reset(features),
        }
    }

    /// What was taken is finished or given up, and the device starts anew with these of the features that it offers.
    pub(crate) fn reset(&mut self, wanted: u64) {
        self.stop();
        let offered = features::offered(self.backend.identity().features);
        let mut accepted = wanted & offered | features::VERSION_1;
        if !self.backend.accepts(accepted) {
            accepted = features::VERSION_1;
        }
        assert!(self.backend.accepts(accepted), "a device refuses a driver that wants nothing");
        self.memory.write(0, &[0; DATA]);
        self.memory.write(DATA, &[0xee; SIZE - DATA]);
        self.backend.negotiated(accepted);
        let identity = self.backend.identity();
        let lanes = identity.lanes.iter().enumerate().map(|(index, queues)| Lane {
            worker: self.backend.start(index, accepted).expect("the host gives what a worker needs"),
            rings: queues.clone().map(|queue| self.ring(queue, accepted & features::EVENT_IDX != 0)).collect(),
            queues: queues.clone(),
        });
        self.lanes = Some(lanes.collect());
        self.queues = identity.queue_sizes.iter().map(|_| Queue::default()).collect();
        (self.free, self.is_honest, self.is_tangled) = (DATA, true, false);
    }

    fn ring(&self, queue: usize, event_idx: bool) -> Ring {
        let start = BASE + 0x1000 * queue as u64;
        let setup = RingSetup {
            size: QUEUE,
            max_size: self.backend.identity().queue_sizes[queue],
            desc_table: start,
            avail_ring: start + AVAILABLE as u64,
            used_ring: start + USED as u64,
            event_idx,
            position: RingPosition::default(),
            max_chain_bytes: self.backend.identity().max_chain_bytes,
        };
        Ring::new(&setup, &self.cache).expect("a sound queue")
    }

    /// The device finishes what it has.
    pub(crate) fn stop(&mut self) {
        for Lane { mut worker, mut rings, .. } in self.lanes.take().into_iter().flatten() {
            let drained = worker.drain(&mut rings).and_then(|()| rings.iter_mut().try_for_each(Ring::publish));
            assert!(!matches!(drained, Err(Fault::Bug(_) | Fault::Host { .. })), "{drained:?}");
        }
    }

    fn publish(&mut self, queue: usize, head: u16) {
        let ring = 0x1000 * queue + AVAILABLE;
        let index = self.memory.u16_at(ring + 2);
        self.memory.write(ring + 4 + 2 * usize::from(index % QUEUE), &head.to_le_bytes());
        self.memory.write(ring + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Makes a chain available of `bytes` to be read and `room` to be written, if there is place for it; says where its
    /// room is.
    pub(crate) fn offer(&mut self, queue: usize, bytes: &[u8], room: usize, buffer: Buffer) -> Option<(u16, usize)> {
        let data = self.free;
        let mut parts = cut(data, bytes.len(), buffer.cuts % 4, 0);
        let at = data + bytes.len() + 16;
        parts.extend(cut(at, room, buffer.cuts / 4 % 4, WRITE));
        // A table of its own, as chains that wait need theirs.
        let table = (at + room + 16).next_multiple_of(16);
        let end = if buffer.indirect { table + 16 * parts.len() } else { table };
        let slots = if buffer.indirect { 1 } else { parts.len() as u16 };
        let slot = self.queues[queue].slot;
        let waiting = self.memory.u16_at(0x1000 * queue + AVAILABLE + 2).wrapping_sub(self.queues[queue].used);
        let is_too_much = (bytes.len() + room) as u64 > self.backend.identity().max_chain_bytes || end > SIZE;
        if parts.is_empty() || slot + slots > QUEUE || is_too_much || waiting >= QUEUE || self.lanes.is_none() {
            return None;
        }
        self.memory.write(data, bytes);
        let start = 0x1000 * queue;
        let (place, first) = match buffer.indirect {
            true => (table, 0),
            false => (start + 16 * usize::from(slot), slot),
        };
        for (number, &(at, len, flags)) in parts.iter().enumerate() {
            let next = first + number as u16 + 1;
            let flags = if number + 1 < parts.len() { flags | NEXT } else { flags };
            self.memory.put(place + 16 * number, Raw { addr: BASE + at as u64, len: len as u32, flags, next });
        }
        if buffer.indirect {
            let len = 16 * parts.len() as u32;
            self.memory
                .put(start + 16 * usize::from(slot), Raw { addr: BASE + place as u64, len, flags: INDIRECT, next: 0 });
        }
        self.publish(queue, slot);
        self.queues[queue].slot += slots;
        self.free = end;
        Some((slot, at))
    }

    /// What has come back of a queue since this was last asked: heads, and how many bytes were written.
    pub(crate) fn take_back(&mut self, queue: usize) -> Vec<(u16, usize)> {
        std::mem::take(&mut self.queues[queue].came_back)
    }

    /// Whether the device has not stopped.
    pub(crate) fn is_well(&self) -> bool {
        self.lanes.is_some()
    }

    /// The device hears of a queue, and looks at its host's end.
    pub(crate) fn kick(&mut self, queue: usize) {
        let Some(mut lanes) = self.lanes.take() else { return };
        let lane = lanes.iter_mut().find(|lane| lane.queues.contains(&queue)).expect("each queue has a lane");
        let outcome = self.pass(lane, queue);
        match outcome {
            Ok(()) => self.lanes = Some(lanes),
            Err(Fault::Guest(fault)) => assert!(!self.is_honest, "an honest driver is blamed: {fault:?}"),
            Err(fault) => panic!("nobody but the driver can be at fault: {fault:?}"),
        }
    }

    fn pass(&mut self, lane: &mut Lane, queue: usize) -> Result<(), Fault> {
        let before = self.memory.snapshot();
        let offered: Vec<Vec<Chain>> =
            lane.queues.clone().zip(&lane.rings).map(|(queue, ring)| offered(&before, queue, ring)).collect();
        let from: Vec<u16> = lane.rings.iter().map(|ring| ring.position().next_avail).collect();
        let outcome = lane.work(queue);
        let after = self.memory.snapshot();
        let is_ring = |part: &Range<usize>| part.start < TABLES;
        self.is_tangled |= offered.iter().any(|chains| are_tangled(chains, is_ring));
        if self.is_tangled {
            return outcome;
        }
        let mut may_change = Vec::new();
        for ((queue, ring), (chains, from)) in lane.queues.clone().zip(&lane.rings).zip(offered.iter().zip(from)) {
            let taken = usize::from(ring.position().next_avail.wrapping_sub(from)).min(chains.len());
            may_change.push(0x1000 * queue + USED..0x1000 * queue + USED + USED_LEN);
            // Where the driver is at fault, one more may have been begun with.
            let held = &mut self.queues[queue].held;
            held.extend(chains[..taken].iter().cloned());
            may_change.extend(held.iter().flat_map(|chain| chain.writable.iter().cloned()));
            self.queues[queue].judge(&after[0x1000 * queue..][..0x1000]);
        }
        untouched_memory_is_untouched(&before, &after, may_change.into_iter());
        outcome
    }
}

impl Lane {
    fn work(&mut self, queue: usize) -> Result<(), Fault> {
        let Self { worker, rings, queues } = self;
        worker.work(Wake::Queue(queue - queues.start), rings)?;
        rings.iter_mut().try_for_each(Ring::publish)?;
        for _ in 0..LOOKS {
            let ready = ready(&**worker);
            if ready.is_empty() {
                break;
            }
            for source in ready {
                worker.work(Wake::Source(source), rings)?;
            }
            rings.iter_mut().try_for_each(Ring::publish)?;
        }
        Ok(())
    }
}

impl Queue {
    /// What the used ring, in the page of this queue, says has come back.
    fn judge(&mut self, page: &[u8]) {
        let used = u16_at(page, USED + 2);
        assert!(used.wrapping_sub(self.used) <= QUEUE, "the used index went from {} to {used}", self.used);
        while self.used != used {
            let at = USED + 4 + 8 * usize::from(self.used % QUEUE);
            let (head, len) = (u32_at(page, at), u32_at(page, at + 4) as usize);
            let Some(place) = self.held.iter().position(|chain| u32::from(chain.head) == head) else {
                panic!("chain {head} comes back and was not given");
            };
            let chain = self.held.remove(place);
            let room = chain.writable_len();
            assert!(len <= room, "chain {head} has room for {room} bytes, and {len} are said to be written");
            self.came_back.push((chain.head, len));
            self.used = self.used.wrapping_add(1);
        }
        if self.held.is_empty() && u16_at(page, AVAILABLE + 2) == used {
            self.slot = 0;
        }
    }
}

/// The chains that a device can take, those of a ring that is overfull among them.
fn offered(memory: &[u8], queue: usize, ring: &Ring) -> Vec<Chain> {
    let start = 0x1000 * queue;
    let next = ring.position().next_avail;
    let count = u16_at(memory, start + AVAILABLE + 2).wrapping_sub(next).min(QUEUE);
    let slots = (0..count).map(|at| usize::from(next.wrapping_add(at) % QUEUE));
    let head = |slot| u16_at(memory, start + AVAILABLE + 4 + 2 * slot);
    slots.map(|slot| Chain::walk(memory, start..start + 16 * usize::from(QUEUE), head(slot))).collect()
}

/// The sources that have something.
fn ready(worker: &dyn Worker) -> Vec<usize> {
    let sources = worker.sources();
    let mut polled: Vec<_> = sources.iter().map(|source| PollFd::new(source, PollFlags::IN)).collect();
    if polled.is_empty() {
        return Vec::new();
    }
    poll(&mut polled, Some(&Timespec::default())).expect("the host polls");
    (0..polled.len()).filter(|at| !polled[*at].revents().is_empty()).collect()
}

/// A part of a chain in up to `cuts` + 1 descriptors: offset, length and flags of each.
fn cut(at: usize, len: usize, cuts: u8, flags: u16) -> Vec<(usize, usize, u16)> {
    let piece = (len / (usize::from(cuts) + 1)).max(1);
    (0..len).step_by(piece).map(|start| (at + start, piece.min(len - start), flags)).collect()
}
