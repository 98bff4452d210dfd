//! `virtio_queue::Queue` over a view of foreign memory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod fixture;

use fixture::{BANK, chunk, contents, guest, tight_guest};
use guest_memory::{Access, AccessError, Buffers, View};
use testkit::memory::FakeForeignMemory;
use virtio_queue::{Queue, QueueT};

const SIZE: u16 = 8;
const TABLE: u64 = BANK;
const AVAILABLE: u64 = BANK + 0x1000;
const USED: u64 = BANK + 0x2000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver: writes descriptors and the available ring with the guest's own CPU.
struct Driver {
    guest: FakeForeignMemory,
    index: u16,
}

impl Driver {
    /// Offers a chain made of (address, length, flags); descriptors from 0 on.
    fn offer(&mut self, chain: &[(u64, u32, u16)]) {
        for (i, &(address, len, flags)) in (0_u16..).zip(chain) {
            let last = usize::from(i) + 1 == chain.len();
            let at = TABLE + u64::from(i) * 16;
            self.guest.store(at, address);
            self.guest.store(at + 8, len);
            self.guest.store(at + 12, if last { flags } else { flags | NEXT });
            self.guest.store(at + 14, i + 1);
        }
        self.guest.store(AVAILABLE + 4 + u64::from(self.index % SIZE) * 2, 0_u16);
        self.index = self.index.wrapping_add(1);
        self.guest.store(AVAILABLE + 2, self.index);
    }

    fn used(&self) -> u16 {
        self.guest.load(USED + 2)
    }
}

fn queue() -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    let halves = |address: u64| (u32::try_from(address).ok(), Some(0));
    let (low, high) = halves(TABLE);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(AVAILABLE);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(USED);
    queue.set_used_ring_address(low, high);
    queue.set_ready(true);
    queue
}

/// Takes a chain and pins it: what the driver lets us read, and what we write.
fn take(queue: &mut Queue, view: &View) -> Option<(u16, Buffers, Buffers)> {
    let chain = queue.pop_descriptor_chain(view)?;
    let head = chain.head_index();
    let (mut readable, mut writable) = (Buffers::new(), Buffers::new());
    for descriptor in chain {
        let side = if descriptor.is_write_only() { &mut writable } else { &mut readable };
        view.pin(&[(descriptor.addr(), descriptor.len().try_into().unwrap())], Access::Write, side).unwrap();
    }
    Some((head, readable, writable))
}

#[test]
fn chains_are_taken_and_returned_without_a_mapping_call_each() {
    let (guest, cache, mut view) = guest(1 << 20);
    let mut driver = Driver { guest: guest.clone(), index: 0 };
    let mut queue = queue();
    assert!(queue.is_valid(&view));

    for round in 0..1000_u32 {
        let data = chunk(2) - 2048;
        guest.store(BANK + 0x4000, round);
        driver.offer(&[(BANK + 0x4000, 16, 0), (data, 4096, WRITE), (BANK + 0x5000, 1, WRITE)]);
        view.quiesce();
        let (head, readable, writable) = take(&mut queue, &view).unwrap();
        assert_eq!(contents(&readable)[..4], round.to_le_bytes());
        assert_eq!(writable.write(0, &vec![u8::try_from(round % 256).unwrap(); 4097]), 4097);
        queue.add_used(&view, head, 4097).unwrap();
        assert_eq!(guest.load::<u8>(data + 4095), u8::try_from(round % 256).unwrap());
    }

    assert_eq!(driver.used(), 1000);
    assert_eq!(guest.counts().calls, 3, "the rings' chunk and the two of the data");
    let stats = cache.stats();
    assert!(stats.hits > 10_000 && stats.misses == 3, "{stats:?}");
}

#[test]
fn the_rings_follow_an_invalidation() {
    let (guest, cache, mut view) = guest(1 << 20);
    let mut driver = Driver { guest: guest.clone(), index: 0 };
    let mut queue = queue();
    driver.offer(&[(BANK + 0x4000, 16, 0)]);
    take(&mut queue, &view).unwrap();

    // The guest moves its rings to other pages at the same addresses.
    for page in [TABLE, AVAILABLE, USED] {
        let mut contents = [0; 4096];
        guest.read(page, &mut contents);
        guest.replace(page, &contents);
    }
    cache.invalidate();
    driver.offer(&[(BANK + 0x4000, 8, 0)]);
    view.quiesce();

    let (head, readable, _) = take(&mut queue, &view).expect("seen in the new page");
    assert_eq!(readable.len(), 8);
    queue.add_used(&view, head, 0).unwrap();
    assert_eq!(driver.used(), 1);
    drop(readable);
    assert_eq!(guest.counts().orphans, 0);
}

#[test]
fn a_chain_that_ends_early_for_want_of_budget_says_so() {
    let (guest, _cache, view) = tight_guest(1 << 20, 2, 2);
    let mut driver = Driver { guest, index: 0 };
    let mut queue = queue();
    let _in_flight = fixture::pin(&view, chunk(5), 1).unwrap();
    // An indirect table where there is no room to map it: the library ends the chain as if it were complete.
    driver.offer(&[(chunk(3), 32, 4)]);

    let chain = queue.pop_descriptor_chain(&view).unwrap();

    assert_eq!(chain.count(), 0);
    assert!(matches!(view.take_failure(), Some(AccessError::Busy)));
}
