//! A split virtqueue (virtio 1.2 §2.7) as its driver works it, in memory that the device may write to at any time.
//!
//! Of what stands there nothing is believed but the used ring, entry by entry, and each entry only if it can be.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use smallvec::SmallVec;
use virtio_backend::Fault;
use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

use crate::layout::{DESCRIPTOR, RingPlaces};
use crate::memory::{Bounce, address};

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    /// Where it is in the memory.
    pub(crate) at: usize,
    pub(crate) len: u32,
    /// The device may write to it.
    pub(crate) writable: bool,
}

/// The slots of a chain's descriptors, its head first.
pub(crate) type Slots = SmallVec<[u16; 4]>;

/// An entry of the used ring, as the device wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) id: u32,
    pub(crate) len: u32,
}

/// The used index says of more chains that they are done than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexJumped;

/// The driver's side of a ring.
pub(crate) struct ShadowRing {
    places: RingPlaces,
    size: u16,
    event_idx: bool,
    /// Slots of the descriptor table that no chain has.
    free: Vec<u16>,
    /// Chains made available, modulo 2^16.
    available: u16,
    /// How many of them the device has been told of.
    published: u16,
    /// Chains that came back.
    used: u16,
}

impl ShadowRing {
    /// An empty ring in memory that is zero.
    pub(crate) fn new(places: RingPlaces, size: u16, event_idx: bool) -> Self {
        Self { places, size, event_idx, free: (0..size).rev().collect(), available: 0, published: 0, used: 0 }
    }

    /// Takes so many slots of the descriptor table, at least one; `None` if there are fewer.
    pub(crate) fn reserve(&mut self, slots: usize) -> Option<Slots> {
        let left = self.free.len().checked_sub(slots)?;
        Some(self.free.drain(left..).rev().collect())
    }

    /// Gives slots back, of a chain that is done or never was.
    pub(crate) fn release(&mut self, slots: Slots) {
        self.free.extend(slots.into_iter().rev());
    }

    /// Writes a chain into slots that were reserved for it, one for each buffer, and makes it available.
    pub(crate) fn add(&mut self, memory: &Bounce, slots: &Slots, buffers: &[Buffer]) -> Result<(), Fault> {
        let links = slots.iter().skip(1).map(|next| Some(*next)).chain([None]);
        for ((slot, next), buffer) in slots.iter().zip(links).zip(buffers) {
            let at = self.places.descriptors + DESCRIPTOR * usize::from(*slot);
            memory.write(at, &descriptor(buffer, next))?;
        }
        self.make_available(memory, slots)
    }

    /// As [`add`](Self::add), by a table of descriptors at `table` and one slot.
    pub(crate) fn add_indirect(
        &mut self,
        memory: &Bounce,
        slots: &Slots,
        table: usize,
        buffers: &[Buffer],
    ) -> Result<(), Fault> {
        let last = buffers.len().saturating_sub(1);
        for (index, buffer) in buffers.iter().enumerate() {
            let next = u16::try_from(index + 1).ok().filter(|_| index < last);
            memory.write(table + DESCRIPTOR * index, &descriptor(buffer, next))?;
        }
        let len = u32::try_from(DESCRIPTOR * buffers.len()).unwrap_or(u32::MAX);
        let table = raw(table, len, VRING_DESC_F_INDIRECT, 0);
        for slot in slots {
            memory.write(self.places.descriptors + DESCRIPTOR * usize::from(*slot), &table)?;
        }
        self.make_available(memory, slots)
    }

    fn make_available(&mut self, memory: &Bounce, slots: &Slots) -> Result<(), Fault> {
        let head = slots.first().copied().unwrap_or_default();
        let entry = self.places.available + 4 + 2 * usize::from(self.available % self.size);
        memory.store(entry, head.to_le(), Relaxed)?;
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    /// Chains made available so far, modulo 2^16.
    pub(crate) fn available(&self) -> u16 {
        self.available
    }

    /// Tells the device of what was made available since the last call. Returns whether it wants a kick for it.
    pub(crate) fn publish(&mut self, memory: &Bounce) -> Result<bool, Fault> {
        if self.published == self.available {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.published, self.available);
        memory.store(self.places.available + 2, self.available.to_le(), Release)?;
        // The index must be visible before the device's wish is read, or both may wait (§2.7.13.4.1).
        fence(SeqCst);
        if self.event_idx {
            let event = self.places.used + 4 + 8 * usize::from(self.size);
            let event = u16::from_le(memory.load(event, Relaxed)?);
            return Ok(self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before));
        }
        let flags = u16::from_le(memory.load(self.places.used, Relaxed)?);
        Ok(u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0)
    }

    /// How many entries of the used ring are new; `in_flight` chains are with the device.
    pub(crate) fn fresh(&self, memory: &Bounce, in_flight: usize) -> Result<Result<u16, IndexJumped>, Fault> {
        let index = u16::from_le(memory.load(self.places.used + 2, Acquire)?);
        let fresh = index.wrapping_sub(self.used);
        Ok(if usize::from(fresh) <= in_flight { Ok(fresh) } else { Err(IndexJumped) })
    }

    /// Takes the next entry of the used ring, which is [`fresh`](Self::fresh).
    pub(crate) fn take_used(&mut self, memory: &Bounce) -> Result<Used, Fault> {
        let at = self.places.used + 4 + 8 * usize::from(self.used % self.size);
        let id = u32::from_le(memory.load(at, Relaxed)?);
        let len = u32::from_le(memory.load(at + 4, Relaxed)?);
        self.used = self.used.wrapping_add(1);
        Ok(Used { id, len })
    }

    /// Asks to be told of the next chain that is done. What is done already has to be looked for once more.
    pub(crate) fn ask_for_calls(&self, memory: &Bounce) -> Result<(), Fault> {
        if self.event_idx {
            let event = self.places.available + 4 + 2 * usize::from(self.size);
            memory.store(event, self.used.to_le(), Relaxed)?;
        }
        fence(SeqCst);
        Ok(())
    }
}

fn descriptor(buffer: &Buffer, next: Option<u16>) -> [u8; DESCRIPTOR] {
    let follows = if next.is_some() { VRING_DESC_F_NEXT } else { 0 };
    let writable = if buffer.writable { VRING_DESC_F_WRITE } else { 0 };
    raw(buffer.at, buffer.len, follows | writable, next.unwrap_or_default())
}

fn raw(at: usize, len: u32, flags: u32, next: u16) -> [u8; DESCRIPTOR] {
    let value = u128::from(address(at)) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
    value.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    const SIZE: u16 = 8;

    struct Rig {
        memory: Bounce,
        places: RingPlaces,
        ring: ShadowRing,
    }

    impl Rig {
        fn new(event_idx: bool) -> Self {
            let layout = Layout::new(1, SIZE, Layout::least_memory(1, SIZE)).unwrap();
            let places = layout.ring(0);
            Self { memory: Bounce::new(layout.len()).unwrap(), places, ring: ShadowRing::new(places, SIZE, event_idx) }
        }

        fn add(&mut self, buffers: &[Buffer]) -> Slots {
            let slots = self.ring.reserve(buffers.len()).unwrap();
            self.ring.add(&self.memory, &slots, buffers).unwrap();
            slots
        }

        /// Address, length, flags and next of a descriptor.
        fn descriptor(&self, slot: u16) -> (u64, u32, u16, u16) {
            let at = self.places.descriptors + 16 * usize::from(slot);
            let load = |offset| self.memory.load::<u16>(at + offset, Relaxed).unwrap();
            let (address, len) = (self.memory.load(at, Relaxed).unwrap(), self.memory.load(at + 8, Relaxed).unwrap());
            (address, len, load(12), load(14))
        }

        fn available(&self, entry: u16) -> u16 {
            self.memory.load(self.places.available + 4 + 2 * usize::from(entry), Relaxed).unwrap()
        }

        fn use_up_to(&self, index: u16) {
            self.memory.store(self.places.used + 2, index, Release).unwrap();
        }
    }

    fn buffer(at: usize, len: u32, writable: bool) -> Buffer {
        Buffer { at, len, writable }
    }

    #[test]
    fn a_chain_lies_as_the_specification_has_it() {
        let mut rig = Rig::new(false);
        let slots = rig.add(&[buffer(0x1000, 16, false), buffer(0x2000, 512, true), buffer(0x3000, 1, true)]);

        assert!(rig.ring.publish(&rig.memory).unwrap());

        assert_eq!(rig.descriptor(slots[0]), (address(0x1000), 16, 1, slots[1]));
        assert_eq!(rig.descriptor(slots[1]), (address(0x2000), 512, 3, slots[2]));
        assert_eq!(rig.descriptor(slots[2]), (address(0x3000), 1, 2, 0));
        assert_eq!(rig.available(0), slots[0]);
        assert_eq!(rig.memory.load::<u16>(rig.places.available + 2, Relaxed).unwrap(), 1);
    }

    #[test]
    fn slots_run_out_and_come_back() {
        let mut rig = Rig::new(false);
        let three = rig.add(&[buffer(0x1000, 1, false); 3]);
        let five = rig.add(&[buffer(0x1000, 1, false); 5]);
        assert_eq!(rig.ring.reserve(1), None);

        rig.ring.release(three.clone());

        assert_eq!(rig.ring.reserve(4), None);
        let again = rig.ring.reserve(3).unwrap();
        assert!(again.iter().all(|slot| three.contains(slot) && !five.contains(slot)));
    }

    #[test]
    fn the_device_is_kicked_only_if_it_wants_to_be() {
        let mut rig = Rig::new(false);
        assert!(!rig.ring.publish(&rig.memory).unwrap(), "nothing is there");
        rig.add(&[buffer(0x1000, 1, false)]);
        rig.memory.store(rig.places.used, 1u16, Relaxed).unwrap();
        assert!(!rig.ring.publish(&rig.memory).unwrap());
        rig.add(&[buffer(0x1000, 1, false)]);
        rig.memory.store(rig.places.used, 0u16, Relaxed).unwrap();
        assert!(rig.ring.publish(&rig.memory).unwrap());
    }

    #[test]
    fn with_event_index_the_device_is_kicked_when_its_mark_is_passed() {
        let mut rig = Rig::new(true);
        let mark = rig.places.used + 4 + 8 * usize::from(SIZE);
        rig.memory.store(mark, 1u16, Relaxed).unwrap();
        let kicks: Vec<_> = (0..3)
            .map(|_| {
                rig.add(&[buffer(0x1000, 1, false)]);
                rig.ring.publish(&rig.memory).unwrap()
            })
            .collect();
        assert_eq!(kicks, [false, true, false]);
    }

    #[test]
    fn g09_an_index_that_jumps_is_found_out_also_backwards() {
        let mut rig = Rig::new(false);
        rig.add(&[buffer(0x1000, 1, false)]);
        for index in [2, 9, 0x8000, u16::MAX] {
            rig.use_up_to(index);
            assert_eq!(rig.ring.fresh(&rig.memory, 1).unwrap(), Err(IndexJumped), "{index}");
        }
        rig.use_up_to(1);
        assert_eq!(rig.ring.fresh(&rig.memory, 1).unwrap(), Ok(1));
    }

    #[test]
    fn indices_count_on_past_their_end() {
        let mut rig = Rig::new(true);
        for round in 0..70_000u32 {
            let slots = rig.add(&[buffer(0x1000, 1, true)]);
            rig.ring.publish(&rig.memory).unwrap();
            let entry = rig.places.used + 4 + 8 * (round as usize % usize::from(SIZE));
            rig.memory.store(entry, u32::from(slots[0]), Relaxed).unwrap();
            rig.memory.store(entry + 4, round, Relaxed).unwrap();
            rig.use_up_to(u16::try_from((round + 1) % 0x1_0000).unwrap());

            assert_eq!(rig.ring.fresh(&rig.memory, 1).unwrap(), Ok(1));
            assert_eq!(rig.ring.take_used(&rig.memory).unwrap(), Used { id: slots[0].into(), len: round });
            rig.ring.release(slots);
        }
    }

    #[test]
    fn a_table_holds_a_chain_in_one_slot() {
        let mut rig = Rig::new(false);
        let slots = rig.ring.reserve(1).unwrap();
        let table = 0x4000;
        let buffers = [buffer(0x1000, 16, false), buffer(0x2000, 512, true)];
        rig.ring.add_indirect(&rig.memory, &slots, table, &buffers).unwrap();
        assert_eq!(rig.descriptor(slots[0]), (address(table), 32, 4, 0));
        let first: u64 = rig.memory.load(table, Relaxed).unwrap();
        let second: u16 = rig.memory.load(table + 16 + 12, Relaxed).unwrap();
        assert_eq!((first, second), (address(0x1000), 2));
    }
}
