//! Driver and lane each go to sleep on the other's word, over real memory: no kick and no interrupt is lost (virtio 1.2
//! §2.7.7, §2.7.10). `make miri` runs this with many orders of events, and with memory as weak as the language allows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use guest_memory::{AnonymousMapping, Budget, MapCache, Mapping, PlainMemory};
use vm_memory::Bytes;

use crate::{Ring, RingPosition, RingSetup, indices};

const BASE: u64 = 0x4000_0000;
const SIZE: u16 = 2;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;

/// Buffers that go back and forth, one after the other.
const BUFFERS: u16 = if cfg!(miri) { 4 } else { 1000 };

/// Whoever sleeps longer than this will not wake: minutes for a test that takes a moment.
const FOR_EVER: Duration = Duration::from_secs(120);

/// The driver's side, which has the same memory.
struct Driver {
    memory: Arc<AnonymousMapping>,
    event_idx: bool,
    kick: Sender<()>,
    interrupt: Receiver<()>,
}

impl Driver {
    fn load(&self, at: usize) -> u16 {
        u16::from_le(self.memory.memory().load(at, Ordering::Acquire).unwrap())
    }

    fn store(&self, value: u16, at: usize) {
        self.memory.memory().store(value.to_le(), at, Ordering::Release).unwrap();
    }

    /// One readable buffer of one byte, with each head.
    fn describe_buffers(&self) {
        for head in 0..usize::from(SIZE) {
            self.memory.memory().write_obj((BASE + 0x3000).to_le(), 16 * head).unwrap();
            self.memory.memory().write_obj(1_u32.to_le(), 16 * head + 8).unwrap();
        }
    }

    /// Makes the `nth` buffer available, and kicks if the device asks for that.
    fn offer(&self, nth: u16) {
        self.store(nth % SIZE, AVAIL + 4 + 2 * usize::from(nth % SIZE));
        self.store(nth.wrapping_add(1), AVAIL + 2);
        fence(Ordering::SeqCst);
        let is_asked = if self.event_idx {
            let event = self.load(USED + 4 + 8 * usize::from(SIZE));
            indices::passes(event, nth, nth.wrapping_add(1))
        } else {
            self.load(USED) & 1 == 0
        };
        if is_asked {
            // The lane may have found the last one by itself and be gone.
            let _ = self.kick.send(());
        }
    }

    /// Sleeps until the `nth` buffer is used.
    fn wait(&self, nth: u16) {
        // The event is the entry that is waited for; without event indices each one interrupts.
        self.store(nth, AVAIL + 4 + 2 * usize::from(SIZE));
        fence(Ordering::SeqCst);
        while self.load(USED + 2) == nth {
            self.interrupt.recv_timeout(FOR_EVER).expect("an interrupt");
        }
    }
}

/// What a lane does for a queue, until it has given back so many.
fn work(mut ring: Ring, kicks: Receiver<()>, interrupt: Sender<()>) {
    let mut done = 0;
    while done < BUFFERS {
        if !ring.take_unasked() {
            kicks.recv_timeout(FOR_EVER).expect("a kick");
        }
        ring.serve(|ring, request| {
            done += 1;
            ring.push(request, 0)
        })
        .unwrap();
        ring.publish().unwrap();
        ring.end_pass().unwrap();
        if ring.take_due().unwrap() {
            // The driver may have seen the last one and be gone.
            let _ = interrupt.send(());
        }
    }
}

fn nothing_is_lost(event_idx: bool) {
    let memory = Arc::new(AnonymousMapping::new(0x4000).unwrap());
    let source = PlainMemory::new([(BASE, Arc::clone(&memory) as Arc<dyn Mapping>)]).unwrap();
    let cache = MapCache::new(source, Budget::default());
    let setup = RingSetup {
        size: SIZE,
        max_size: SIZE,
        desc_table: BASE,
        avail_ring: BASE + AVAIL as u64,
        used_ring: BASE + USED as u64,
        event_idx,
        position: RingPosition::default(),
        max_chain_bytes: 16,
    };
    let ring = Ring::new(&setup, &cache).unwrap();
    let ((kick, kicks), (interrupts, interrupt)) = (channel(), channel());
    let driver = Driver { memory, event_idx, kick, interrupt };
    driver.describe_buffers();
    thread::scope(|scope| {
        scope.spawn(move || work(ring, kicks, interrupts));
        for nth in 0..BUFFERS {
            driver.offer(nth);
            driver.wait(nth);
        }
    });
}

#[test]
fn spec_2_7_7_no_kick_and_no_interrupt_is_lost_with_flags() {
    nothing_is_lost(false);
}

#[test]
fn spec_2_7_10_no_kick_and_no_interrupt_is_lost_with_event_indices() {
    nothing_is_lost(true);
}
