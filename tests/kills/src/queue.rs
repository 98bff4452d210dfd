//! The driver's side of a queue: a split virtqueue (virtio 1.2 §2.7) with the requests of §5.2.6 in it.
//!
//! Unlike a driver that trusts its device, this one leaves a pattern wherever the device has nothing to write at the moment,
//! and looks whether it is still there.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use anyhow::{Result, ensure};
use guest_memory::{Mapping, SharedMemory};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{AtomicAccess, Bytes};

use crate::layout::{
    AVAILABLE, BASE, DATA, DATA_BYTES, DESCRIPTORS, HEADER, HEADERS, PARTS, QUEUE_BYTES, QUEUE_SIZE, SEGMENT, SLOTS,
    STATUS, TABLE, TABLES, USED,
};

/// What lies where the device has nothing to write.
const UNTOUCHED: [u8; DATA_BYTES] = [0xa5; DATA_BYTES];

/// No device writes this as a status.
const UNANSWERED: u8 = 0xff;

/// What was agreed on for a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX.
    pub(crate) event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub(crate) indirect: bool,
}

/// What is behind a request's header.
pub(crate) enum Body<'a> {
    /// Nothing.
    Empty,
    /// So many bytes for the device to fill.
    Filled(usize),
    /// What is to be on the disk.
    Given(&'a [u8]),
    /// So many sectors, with these flags (`struct virtio_blk_discard_write_zeroes`).
    Segment { sectors: u32, flags: u32 },
}

/// A queue, and which of its slots are the device's.
pub(crate) struct Queue {
    memory: Arc<SharedMemory>,
    /// Bytes from the start of the memory.
    start: usize,
    features: RingFeatures,
    /// Of each slot that is in flight: bytes that the device is to write, the status included.
    in_flight: Vec<Option<u32>>,
    /// Requests made available, for how many of them a kick was thought of, and how many came back, modulo 2^16.
    available: u16,
    told: u16,
    used: u16,
}

impl Queue {
    /// The queue of this index, not in use.
    pub(crate) fn new(memory: Arc<SharedMemory>, index: u16) -> Self {
        let in_flight = vec![None; SLOTS.into()];
        let (start, features) = (usize::from(index) * QUEUE_BYTES, RingFeatures::default());
        let mut queue = Self { memory, start, features, in_flight, available: 0, told: 0, used: 0 };
        queue.renew(features);
        queue
    }

    /// Takes all requests back and empties the rings, as a driver does when it has reset the device.
    pub(crate) fn renew(&mut self, features: RingFeatures) {
        (self.features, self.available, self.told, self.used) = (features, 0, 0, 0);
        self.in_flight.fill(None);
        self.write(0, &[0; DATA]);
        for slot in 0..SLOTS {
            self.write(self.data(slot), &UNTOUCHED);
        }
    }

    /// Guest addresses of descriptor table, available ring and used ring.
    pub(crate) fn areas(&self) -> [u64; 3] {
        [DESCRIPTORS, AVAILABLE, USED].map(|at| self.address(at))
    }

    /// A slot that is not in flight, if there is one.
    pub(crate) fn free_slot(&self) -> Option<u16> {
        (0..SLOTS).zip(&self.in_flight).find(|(_, in_flight)| in_flight.is_none()).map(|(slot, _)| slot)
    }

    /// Requests that the device has.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.iter().flatten().count()
    }

    /// Fills a free slot with a request and makes it available.
    ///
    /// # Errors
    /// The device has written to the slot since it gave it back.
    pub(crate) fn submit(&mut self, slot: u16, kind: u32, sector: u64, body: &Body<'_>) -> Result<()> {
        self.check_untouched(slot)?;
        let (header, data) = (self.header(slot), self.data(slot));
        self.store(header, kind);
        self.store(header + 8, sector);
        self.store(header + STATUS, UNANSWERED);
        let mut parts = vec![(header, 16, 0)];
        let mut written = 1;
        match *body {
            Body::Empty => {}
            // In two pieces: how a buffer is cut means nothing.
            Body::Filled(len) => {
                written += u32::try_from(len)?;
                parts.extend([(data, len / 2, VRING_DESC_F_WRITE), (data + len / 2, len / 2, VRING_DESC_F_WRITE)]);
            }
            Body::Given(bytes) => {
                self.write(data, bytes);
                parts.push((data, bytes.len(), 0));
            }
            Body::Segment { sectors, flags } => {
                self.store(header + SEGMENT, sector);
                self.store(header + SEGMENT + 8, u64::from(flags) << 32 | u64::from(sectors));
                parts.push((header + SEGMENT, 16, 0));
            }
        }
        parts.push((header + STATUS, 1, VRING_DESC_F_WRITE));
        self.describe(slot, &parts);
        if let Some(place) = self.in_flight.get_mut(usize::from(slot)) {
            *place = Some(written);
        }
        self.store(AVAILABLE + 4 + 2 * usize::from(self.available % QUEUE_SIZE), slot * PARTS);
        self.available = self.available.wrapping_add(1);
        self.release(AVAILABLE + 2, self.available);
        Ok(())
    }

    fn describe(&self, slot: u16, parts: &[(usize, usize, u32)]) {
        let first = usize::from(slot * PARTS);
        let table = TABLES + TABLE * usize::from(slot);
        let (place, number) = if self.features.indirect { (table, 0) } else { (DESCRIPTORS + 16 * first, first) };
        for (index, &(at, len, flags)) in parts.iter().enumerate() {
            let next = if index + 1 < parts.len() { number + index + 1 } else { 0 };
            let flags = if next == 0 { flags } else { flags | VRING_DESC_F_NEXT };
            self.descriptor(place + 16 * index, at, len, flags, next);
        }
        if self.features.indirect {
            self.descriptor(DESCRIPTORS + 16 * first, table, 16 * parts.len(), VRING_DESC_F_INDIRECT, 0);
        }
    }

    fn descriptor(&self, place: usize, at: usize, len: usize, flags: u32, next: usize) {
        self.store(place, self.address(at));
        self.store(place + 8, len as u64 | u64::from(flags) << 32 | (next as u64) << 48);
    }

    /// Whether the device wants a kick for what was made available since the last call.
    pub(crate) fn wants_kick(&mut self) -> bool {
        if self.told == self.available {
            return false;
        }
        let before = std::mem::replace(&mut self.told, self.available);
        // The index must be visible before the device's wish is read, or both may wait (§2.7.13.4.1).
        fence(SeqCst);
        if self.features.event_idx {
            let event: u16 = self.load(USED + 4 + 8 * usize::from(QUEUE_SIZE));
            return self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before);
        }
        self.load::<u16>(USED) & 1 == 0
    }

    /// Takes back a request that is done: its slot.
    ///
    /// # Errors
    /// It was not asked for, or was answered before; or the answer is another than "done".
    pub(crate) fn take(&mut self) -> Result<Option<u16>> {
        let shown = self.shown();
        if shown == self.used {
            return Ok(None);
        }
        ensure!(
            usize::from(shown.wrapping_sub(self.used)) <= self.in_flight(),
            "{} requests are in flight, and the used ring goes from {} to {shown}",
            self.in_flight(),
            self.used,
        );
        let at = USED + 4 + 8 * usize::from(self.used % QUEUE_SIZE);
        let (head, len): (u32, u32) = (self.load(at), self.load(at + 4));
        let slot = u16::try_from(head).ok().filter(|head| head % PARTS == 0).map(|head| head / PARTS);
        let asked = slot.and_then(|slot| Some((slot, self.in_flight.get_mut(usize::from(slot))?.take()?)));
        let Some((slot, expected)) = asked else {
            anyhow::bail!("The used ring has head {head} at {}, which is not in flight", self.used);
        };
        let status: u8 = self.load(self.header(slot) + STATUS);
        ensure!(status == 0, "Head {head} was answered with status {status}");
        ensure!(len == expected, "Head {head} was answered with {len} bytes written, not {expected}");
        self.used = self.used.wrapping_add(1);
        Ok(Some(slot))
    }

    /// The index of the used ring as the device shows it.
    pub(crate) fn shown(&self) -> u16 {
        shown(&self.memory, self.start)
    }

    /// How many requests came back, modulo 2^16.
    pub(crate) fn used(&self) -> u16 {
        self.used
    }

    /// Bytes that the device has put into a slot.
    pub(crate) fn data_of(&self, slot: u16, len: usize) -> Vec<u8> {
        self.read(self.data(slot), len)
    }

    /// Makes a slot that came back one that is not to be written to.
    pub(crate) fn put_away(&self, slot: u16) {
        self.store(self.header(slot) + STATUS, UNANSWERED);
        self.write(self.data(slot), &UNTOUCHED);
    }

    fn check_untouched(&self, slot: u16) -> Result<()> {
        let status: u8 = self.load(self.header(slot) + STATUS);
        // Zero: it has not been used since the queue is.
        let is_clean = [0, UNANSWERED].contains(&status) && self.read(self.data(slot), DATA_BYTES) == UNTOUCHED;
        ensure!(is_clean, "The device has written to a request that it had given back, in slot {slot}");
        Ok(())
    }

    /// Asks to be called for the next request that is done. Returns whether there is one already, for which no call may
    /// come.
    pub(crate) fn ask_for_calls(&self) -> bool {
        if self.features.event_idx {
            self.store(AVAILABLE + 4 + 2 * usize::from(QUEUE_SIZE), self.used);
        }
        fence(SeqCst);
        self.shown() != self.used
    }

    /// Where it stands, for people.
    pub(crate) fn state(&self) -> String {
        let event: u16 = self.load(USED + 4 + 8 * usize::from(QUEUE_SIZE));
        let flags: u16 = self.load(USED);
        format!(
            "{} in flight, available index {}, used index {} of which {} were taken, kicks wanted at {event} (flags {flags}), {:?}",
            self.in_flight(),
            self.available,
            self.shown(),
            self.used,
            self.features,
        )
    }

    fn header(&self, slot: u16) -> usize {
        HEADERS + HEADER * usize::from(slot)
    }

    fn data(&self, slot: u16) -> usize {
        DATA + DATA_BYTES * usize::from(slot)
    }

    fn address(&self, at: usize) -> u64 {
        BASE + (self.start + at) as u64
    }

    fn load<T: AtomicAccess>(&self, at: usize) -> T {
        self.memory.memory().load(self.start + at, Relaxed).expect("the queue's own, and aligned")
    }

    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        self.memory.memory().store(value, self.start + at, Relaxed).expect("the queue's own, and aligned");
    }

    fn release(&self, at: usize, value: u16) {
        self.memory.memory().store(value, self.start + at, Release).expect("the queue's own, and aligned");
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.memory().read_slice(&mut bytes, self.start + at).expect("the queue's own");
        bytes
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.memory().write_slice(bytes, self.start + at).expect("the queue's own");
    }
}

/// The index of each queue's used ring, for who has the memory and not the queues.
pub(crate) fn used_indexes(memory: &SharedMemory) -> Vec<u16> {
    (0..usize::from(crate::layout::QUEUES)).map(|index| shown(memory, index * QUEUE_BYTES)).collect()
}

fn shown(memory: &SharedMemory, start: usize) -> u16 {
    memory.memory().load(start + USED + 2, Acquire).expect("the queue's own, and aligned")
}
