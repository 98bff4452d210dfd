//! A lane that goes on where one ended in the midst of its work.

use std::iter;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use guest_memory::{Budget, MapCache};
use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::{Descriptor, RawQueue};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Fault, Lane, LaneSetup, QueueSetup, Record, RingPosition, RingSetup, Signals};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BASE: u64 = 0x4000_0000;
const BUFFERS: u64 = BASE + 0x8_0000;
/// Of the two queues.
const SIZES: [u16; 2] = [64, 8];

/// Hears what a lane says.
#[derive(Default)]
struct Ears {
    is_cheap: bool,
    used: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Signals for Ears {
    fn used(&self, _queues: &[usize]) {
        self.used.fetch_add(1, SeqCst);
    }

    fn is_cheap(&self) -> bool {
        self.is_cheap
    }

    fn config_changed(&self) {}

    fn needs_reset(&self, fault: &Fault) {
        self.faults.lock().unwrap().push(fault.to_string());
    }
}

/// Two queues, and the record of who works them.
struct Rig {
    memory: FakeForeignMemory,
    cache: Arc<MapCache>,
    queues: [RawQueue; 2],
    record: Record,
    event_idx: bool,
}

impl Rig {
    fn new(event_idx: bool) -> Self {
        let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
        let cache = MapCache::new(memory.clone(), Budget::default());
        let queues = [0, 1].map(|nth| RawQueue::new(memory.clone(), BASE + 0x1000 * nth as u64, SIZES[nth]));
        Self { memory, cache, queues, record: Record::new().unwrap(), event_idx }
    }

    /// A lane over both queues, and what tells that it has ended.
    fn start(&self, device: &Arc<TestDevice>, ears: &Arc<Ears>) -> (Lane, Receiver<Vec<RingPosition>>) {
        let ledgers = self.record.ledgers(&SIZES).unwrap();
        let queues = self.queues.iter().zip(ledgers).map(|(queue, ledger)| {
            let ring = RingSetup { event_idx: self.event_idx, ..queue.ring_setup() };
            let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()) as Arc<dyn AsRawFd + Send + Sync>;
            Some(QueueSetup { ring, ledger: Some(ledger), kick })
        });
        let (say, ended) = channel();
        let lane = Lane::spawn(LaneSetup {
            name: "lane".into(),
            backend: Arc::clone(device) as _,
            index: 0,
            features: 0,
            cache: Arc::clone(&self.cache),
            queues: queues.collect(),
            signals: Arc::clone(ears) as _,
            counters: Arc::default(),
            ended: Box::new(move |positions| say.send(positions).unwrap()),
        });
        (lane.unwrap(), ended)
    }

    fn offer(&self, queue: usize, head: u16) {
        self.queues[queue].write_chain(head, &[Descriptor::writable(BUFFERS, 64)]);
        self.queues[queue].publish(head);
    }

    /// A lane takes all there is, and panics with it in its hands.
    fn abandon(&self, count: u64) {
        let (device, ears) = (device(Behaviour::PanicInDrain), Arc::<Ears>::default());
        let (lane, ended) = self.start(&device, &ears);
        eventually("the lane takes all there is", || device.held.load(SeqCst) == count);
        lane.stop();
        ended.recv().unwrap();
        assert_eq!(ears.faults.lock().unwrap().len(), 1, "a panic");
    }
}

fn device(behaviour: Behaviour) -> Arc<TestDevice> {
    Arc::new(TestDevice::with_lanes(behaviour, &SIZES, iter::once(0..2).collect()))
}

fn used_heads(queue: &RawQueue, indices: std::ops::Range<u16>) -> Vec<u32> {
    indices.map(|index| queue.used(index).id).collect()
}

#[test]
fn what_a_lane_held_when_it_ended_is_served_by_the_next_in_its_order() {
    for (event_idx, is_cheap) in [(false, false), (true, false), (false, true), (true, true)] {
        let rig = Rig::new(event_idx);
        // In another order than that of their numbers, and more than a portion.
        let heads: Vec<u16> = (0..40).rev().collect();
        heads.iter().for_each(|&head| rig.offer(0, head));
        (0..3).for_each(|head| rig.offer(1, head));
        rig.abandon(43);
        assert_eq!([0, 1].map(|queue| rig.queues[queue].used_idx()), [0, 0]);
        // These nobody has seen.
        (40..50).for_each(|head| rig.offer(0, head));

        let ears = Arc::new(Ears { is_cheap, ..Ears::default() });
        let (_lane, _ended) = rig.start(&device(Behaviour::Echo), &ears);
        rig.queues[0].wait_used(50);
        rig.queues[1].wait_used(3);
        let expected: Vec<u32> = heads.into_iter().chain(40..50).map(u32::from).collect();
        assert_eq!(used_heads(&rig.queues[0], 0..50), expected);
        assert_eq!(used_heads(&rig.queues[1], 0..3), [0, 1, 2]);
        eventually("the driver is told", || ears.used.load(SeqCst) > 0);
        assert!(ears.faults.lock().unwrap().is_empty());
    }
}

#[test]
fn a_lane_that_goes_on_asks_for_kicks_again() {
    for event_idx in [false, true] {
        let rig = Rig::new(event_idx);
        (0..4).for_each(|head| rig.offer(0, head));
        rig.abandon(4);
        // As of a lane that was killed within a pass: no kicks, please.
        rig.memory.store(rig.queues[0].used_ring(), 1u16);
        let (_lane, _ended) = rig.start(&device(Behaviour::Echo), &Arc::default());
        rig.queues[0].wait_used(4);
        eventually("kicks are asked for", || match event_idx {
            true => rig.queues[0].avail_event() == 4,
            false => rig.queues[0].used_flags() == 0,
        });
    }
}

#[test]
fn lane_after_lane_panics_and_what_they_held_is_still_served() {
    let rig = Rig::new(false);
    for round in 0..5 {
        rig.offer(0, 2 * round);
        rig.offer(1, round);
        rig.abandon(2 * (u64::from(round) + 1));
    }
    let (_lane, _ended) = rig.start(&device(Behaviour::Echo), &Arc::default());
    rig.queues[0].wait_used(5);
    rig.queues[1].wait_used(5);
    assert_eq!(used_heads(&rig.queues[0], 0..5), [0, 2, 4, 6, 8]);
    assert_eq!(used_heads(&rig.queues[1], 0..5), [0, 1, 2, 3, 4]);
}

#[test]
fn a_queue_whose_index_the_guest_has_changed_meanwhile_needs_a_reset() {
    let rig = Rig::new(false);
    rig.offer(0, 0);
    rig.abandon(1);
    rig.memory.store(rig.queues[0].used_ring() + 2, 1000u16);
    let ears = Arc::<Ears>::default();
    let (_lane, ended) = rig.start(&device(Behaviour::Echo), &ears);
    ended.recv().unwrap();
    assert_eq!(ears.faults.lock().unwrap().len(), 1);
}
