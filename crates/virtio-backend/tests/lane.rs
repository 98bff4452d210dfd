//! A lane's life: what wakes it, what it tells the driver, and how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]

use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest_memory::{Access, Budget, MapCache};
use rustix::event::{EventfdFlags, eventfd};
use testkit::driver::{Descriptor, RawQueue};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{
    Backend, Counters, Fault, Identity, Lane, LaneSetup, QueueSetup, Ring, RingPosition, RingSetup, Signals, Wake,
    Worker,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BASE: u64 = 0x4000_0000;
const SIZE: u16 = 8;
const PATIENCE: Duration = Duration::from_secs(20);

/// What a lane said, in order.
#[derive(Debug, PartialEq)]
enum Said {
    Used(Vec<usize>),
    NeedsReset(String),
    Ended(Vec<RingPosition>),
}

struct Ears {
    say: Mutex<Sender<Said>>,
    is_cheap: bool,
}

impl Signals for Ears {
    fn used(&self, queues: &[usize]) {
        self.say.lock().unwrap().send(Said::Used(queues.to_vec())).unwrap();
    }

    fn is_cheap(&self) -> bool {
        self.is_cheap
    }

    fn config_changed(&self) {}

    fn needs_reset(&self, fault: &Fault) {
        self.say.lock().unwrap().send(Said::NeedsReset(fault.to_string())).unwrap();
    }
}

/// A device of two queues in one lane, whose worker does what the test says.
struct Device {
    identity: Identity,
    behaviour: Behaviour,
    source: OwnedFd,
}

#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Echo,
    HoldUntilDrained,
    /// Echoes, and looks on for a long time.
    LookOn,
    Panic,
    RefuseToStart,
}

impl Backend for Device {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn start(&self, _lane: usize, _features: u64) -> io::Result<Box<dyn Worker>> {
        match self.behaviour {
            Behaviour::RefuseToStart => Err(io::Error::other("no luck")),
            behaviour => Ok(Box::new(TestWorker { behaviour, source: self.source.try_clone()?, held: Vec::new() })),
        }
    }
}

struct TestWorker {
    behaviour: Behaviour,
    source: OwnedFd,
    held: Vec<(usize, virtio_backend::Request)>,
}

impl Worker for TestWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        assert!(self.behaviour != Behaviour::Panic, "told to");
        // A source serves both queues in one pass.
        let queues = match wake {
            Wake::Queue(queue) => queue..queue + 1,
            Wake::Source(_) => 0..rings.len(),
        };
        for (index, ring) in rings.iter_mut().enumerate().filter(|(index, _)| queues.contains(index)) {
            let held = &mut self.held;
            let hold = self.behaviour == Behaviour::HoldUntilDrained;
            ring.serve(|ring, request| {
                if hold {
                    held.push((index, request));
                    return Ok(());
                }
                ring.push(request, 0)
            })?;
        }
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.source.as_fd()]
    }

    fn polls_for(&self) -> Duration {
        if self.behaviour == Behaviour::LookOn { PATIENCE } else { Duration::ZERO }
    }

    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        for (index, request) in self.held.drain(..) {
            rings.get_mut(index).unwrap().push(request, 0)?;
        }
        Ok(())
    }
}

struct Rig {
    memory: FakeForeignMemory,
    cache: Arc<MapCache>,
    queues: [RawQueue; 2],
    kicks: Vec<Arc<EventFd>>,
    source: OwnedFd,
    counters: Arc<Counters>,
    heard: Receiver<Said>,
    say: Sender<Said>,
    telling_is_cheap: bool,
}

impl Rig {
    fn new() -> Self {
        Self::with_budget(Budget::default())
    }

    fn with_budget(budget: Budget) -> Self {
        let memory = FakeForeignMemory::new(&[(BASE, 1 << 20)]);
        let (say, heard) = channel();
        Self {
            cache: MapCache::new(memory.clone(), budget),
            queues: [0, 0x1000].map(|offset| RawQueue::new(memory.clone(), BASE + offset, SIZE)),
            memory,
            kicks: (0..2).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).collect(),
            source: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
            counters: Arc::default(),
            heard,
            say,
            telling_is_cheap: false,
        }
    }

    fn setup(&self, queue: usize) -> QueueSetup {
        let kick = Arc::clone(&self.kicks[queue]);
        let queue = &self.queues[queue];
        let ring = RingSetup { max_chain_bytes: 1 << 17, ..queue.ring_setup() };
        QueueSetup { ring, ledger: None, kick }
    }

    fn setup_with(&self, queue: usize, change: impl FnOnce(&mut RingSetup)) -> QueueSetup {
        let mut setup = self.setup(queue);
        change(&mut setup.ring);
        setup
    }

    fn start(&self, behaviour: Behaviour) -> Lane {
        self.start_with(behaviour, self.both())
    }

    /// Starts an echoing lane, and waits until it has made the passes that no event asks for.
    fn start_settled(&self, queues: Vec<Option<QueueSetup>>) -> Lane {
        let unasked = queues.iter().flatten().count() as u64;
        let lane = self.start_with(Behaviour::Echo, queues);
        wait_until(|| self.counters.passes.load(Relaxed) >= unasked);
        lane
    }

    fn both(&self) -> Vec<Option<QueueSetup>> {
        vec![Some(self.setup(0)), Some(self.setup(1))]
    }

    fn start_with(&self, behaviour: Behaviour, queues: Vec<Option<QueueSetup>>) -> Lane {
        let identity = Identity {
            device_id: 42,
            features: 0,
            queue_sizes: vec![SIZE; 4],
            // The lane under test is the device's second one.
            lanes: vec![0..2, 2..4],
            config_len: 0,
            max_chain_bytes: 1 << 17,
        };
        let source = self.source.try_clone().unwrap();
        let say = self.say.clone();
        Lane::spawn(LaneSetup {
            name: "lane".into(),
            backend: Arc::new(Device { identity, behaviour, source }),
            index: 1,
            features: 0,
            cache: Arc::clone(&self.cache),
            queues,
            signals: Arc::new(Ears { say: Mutex::new(self.say.clone()), is_cheap: self.telling_is_cheap }),
            counters: Arc::clone(&self.counters),
            ended: Box::new(move |positions| say.send(Said::Ended(positions)).unwrap()),
        })
        .unwrap()
    }

    fn offer(&self, queue: usize, head: u16) {
        self.offer_at(queue, head, BASE + 0x8000);
    }

    fn offer_at(&self, queue: usize, head: u16, address: u64) {
        self.queues[queue].write_chain(head, &[Descriptor::writable(address, 64)]);
        self.queues[queue].publish(head);
    }

    fn hear(&self) -> Said {
        self.heard.recv_timeout(PATIENCE).expect("the lane says something")
    }
}

#[test]
fn what_was_offered_before_the_lane_listened_is_served() {
    let rig = Rig::new();
    rig.offer(0, 0);
    let _lane = rig.start(Behaviour::Echo);
    assert_eq!(rig.hear(), Said::Used(vec![2]), "numbered over the whole device");
}

#[test]
fn each_kick_makes_a_pass_that_is_announced_once() {
    let rig = Rig::new();
    let _lane = rig.start_settled(rig.both());
    for round in 0..3u16 {
        rig.offer(1, 2 * round % SIZE);
        rig.offer(1, 2 * round % SIZE + 1);
        rig.kicks[1].write(1).unwrap();
        assert_eq!(rig.hear(), Said::Used(vec![3]));
        rig.queues[1].wait_used(2 * round + 2);
    }
    assert_eq!(rig.counters.completions.load(Relaxed), 6);
    assert_eq!(rig.counters.notifications.load(Relaxed), 3);
}

#[test]
fn a_driver_that_is_cheap_to_tell_hears_of_some_while_others_are_under_way() {
    const MANY: u16 = 32;
    for (telling_is_cheap, announcements) in [(false, 1), (true, 3)] {
        let rig = Rig { telling_is_cheap, ..Rig::new() };
        let queue = RawQueue::new(rig.memory.clone(), BASE + 0x4000, MANY);
        for head in 0..20 {
            queue.write_chain(head, &[Descriptor::writable(BASE + 0x8000, 64)]);
            queue.publish(head);
        }
        let setup = rig.setup_with(0, |ring| {
            (ring.size, ring.max_size) = (MANY, MANY);
            (ring.desc_table, ring.avail_ring, ring.used_ring) =
                (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        });
        let lane = rig.start_with(Behaviour::Echo, vec![Some(setup)]);
        queue.wait_used(20);
        lane.stop();
        let told = iter::from_fn(|| Some(rig.hear())).take_while(|said| !matches!(said, Said::Ended(_))).count();
        assert_eq!(told, announcements, "20 requests, cheap: {telling_is_cheap}");
    }
}

#[test]
fn when_a_pass_ends_kicks_are_asked_for_again() {
    let rig = Rig::new();
    let setups = vec![Some(rig.setup(0)), Some(rig.setup_with(1, |ring| ring.event_idx = true))];
    let _lane = rig.start_settled(setups);
    for queue in 0..2 {
        rig.offer(queue, 0);
        rig.kicks[queue].write(1).unwrap();
        assert!(matches!(rig.hear(), Said::Used(_)));
    }
    assert_eq!(rig.queues[0].used_flags(), 0, "by flag");
    assert_eq!((rig.queues[1].avail_event(), rig.queues[1].used_flags()), (1, 0), "by event index");
}

#[test]
fn a_lane_that_looks_on_needs_no_kicks_asks_for_none_and_still_obeys() {
    let rig = Rig::new();
    let lane = rig.start_with(Behaviour::LookOn, rig.both());
    // It is woken twice within the time that it may look on.
    for round in 0..2 {
        rig.offer(0, round);
        rig.kicks[0].write(1).unwrap();
        rig.queues[0].wait_used(round + 1);
    }
    for queue in 0..2 {
        rig.offer(queue, 4);
    }
    rig.queues[0].wait_used(3);
    rig.queues[1].wait_used(1);
    assert_eq!([0, 1].map(|queue| rig.queues[queue].used_flags()), [1, 1], "no kicks, please");

    lane.stop();
    while !matches!(rig.hear(), Said::Ended(_)) {}
}

#[test]
fn a_source_wakes_the_worker_and_both_queues_are_announced_together() {
    let rig = Rig::new();
    let _lane = rig.start_settled(rig.both());
    rig.offer(0, 0);
    rig.offer(1, 0);
    rustix::io::write(&rig.source, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(rig.hear(), Said::Used(vec![2, 3]));
}

#[test]
fn spec_2_7_7_a_driver_that_wants_no_interrupt_gets_none() {
    let rig = Rig::new();
    let lane = rig.start_settled(rig.both());
    rig.queues[0].set_avail_flags(1);
    rig.offer(0, 0);
    rig.kicks[0].write(1).unwrap();
    rig.queues[0].wait_used(1);
    lane.stop();
    assert!(matches!(rig.hear(), Said::Ended(_)), "and nothing before");
}

#[test]
fn spec_2_7_7_with_event_index_an_interrupt_comes_when_its_index_is_used() {
    let rig = Rig::new();
    rig.queues[0].set_used_event(1);
    let _lane = rig.start_settled(vec![Some(rig.setup_with(0, |ring| ring.event_idx = true)), None]);
    rig.offer(0, 0);
    rig.kicks[0].write(1).unwrap();
    rig.queues[0].wait_used(1);
    assert!(rig.heard.try_recv().is_err(), "the first was not asked for");
    rig.offer(0, 1);
    rig.kicks[0].write(1).unwrap();
    assert_eq!(rig.hear(), Said::Used(vec![2]));
}

/// The same numbers each time: xorshift.
fn noise() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(0x9e37_79b9_7f4a_7c15u64), |last| {
        let mut next = *last;
        next ^= next << 13;
        next ^= next >> 7;
        Some(next ^ (next << 17))
    })
}

#[test]
fn d13_whatever_the_driver_says_of_interrupts_its_requests_come_back() {
    let rig = Rig::new();
    let setups = vec![Some(rig.setup_with(0, |ring| ring.event_idx = true)), Some(rig.setup(1))];
    let lane = rig.start_settled(setups);
    for (round, noise) in (0..200u16).zip(noise()) {
        rig.queues[0].set_used_event(noise as u16);
        rig.queues[1].set_avail_flags((noise >> 16) as u16);
        for queue in 0..2 {
            rig.offer(queue, round % SIZE);
            rig.kicks[queue].write(1).unwrap();
        }
        for queue in &rig.queues {
            queue.wait_used(round + 1);
        }
    }
    lane.stop();
    let last = std::iter::repeat_with(|| rig.hear()).find(|said| !matches!(said, Said::Used(_)));
    let stood = RingPosition { next_avail: 200, next_used: 200 };
    assert_eq!(last, Some(Said::Ended(vec![stood, stood])));
}

#[test]
fn d14_a_ring_that_another_vcpu_keeps_rewriting_costs_its_device_at_most() {
    for seed in 0..50 {
        let rig = Rig::new();
        let lane = rig.start(Behaviour::Echo);
        let queue = &rig.queues[0];
        for noise in noise().skip(seed * 1000).take(300) {
            let [slot, head, flags, next] = [0, 16, 32, 48].map(|shift| (noise >> shift) as u16);
            let address = if flags & 8 == 0 { BASE + 0x8000 + (noise >> 52) } else { noise };
            let descriptor = Descriptor { addr: address, len: u32::from(head), flags: flags & 7, next: next % 16 };
            queue.write_descriptor(slot % SIZE, descriptor);
            queue.publish(head % (SIZE + 1));
            rig.kicks[0].write(1).unwrap();
        }
        lane.stop();
        // It ends, of itself or because it was told to; a panic would say that it is a bug.
        let said: Vec<_> =
            std::iter::repeat_with(|| rig.hear()).take_while(|said| !matches!(said, Said::Ended(_))).collect();
        assert!(!said.iter().any(|said| matches!(said, Said::NeedsReset(words) if words.contains("bug"))), "{said:?}");
    }
}

#[test]
fn stopping_finishes_what_is_in_flight_and_tells_where_the_queues_stand() {
    let rig = Rig::new();
    rig.offer(0, 0);
    rig.offer(0, 1);
    let lane = rig.start(Behaviour::HoldUntilDrained);
    wait_until(|| rig.counters.requests.load(Relaxed) == 2);
    lane.stop();
    assert_eq!(rig.hear(), Said::Used(vec![2]));
    let stood = RingPosition { next_avail: 2, next_used: 2 };
    assert_eq!(rig.hear(), Said::Ended(vec![stood, RingPosition::default()]));
    rig.cache.sweep();
    rig.cache.invalidate();
    rig.cache.sweep();
    assert_eq!(rig.memory.counts().live, 0, "no guest memory is held");
}

#[test]
fn dropping_a_lane_stops_it() {
    let rig = Rig::new();
    drop(rig.start(Behaviour::Echo));
    assert!(matches!(rig.hear(), Said::Ended(_)));
}

#[test]
fn a_queue_is_taken_out_of_service_and_back_while_the_other_goes_on() {
    let rig = Rig::new();
    let lane = rig.start_settled(rig.both());
    let (told, done) = channel();
    lane.reset_queue(0, Box::new(move |_position| told.send(()).unwrap()));
    done.recv_timeout(PATIENCE).unwrap();

    rig.offer(0, 0);
    rig.kicks[0].write(1).unwrap();
    rig.offer(1, 0);
    rig.kicks[1].write(1).unwrap();
    assert_eq!(rig.hear(), Said::Used(vec![3]));
    assert_eq!(rig.queues[0].used_idx(), 0);

    lane.enable_queue(0, rig.setup(0));
    assert_eq!(rig.hear(), Said::Used(vec![2]), "what waited is found without a kick");
}

#[test]
fn a_queue_taken_out_of_service_tells_where_it_stands() {
    let rig = Rig::new();
    (0..3).for_each(|head| rig.offer(0, head));
    let lane = rig.start(Behaviour::HoldUntilDrained);
    wait_until(|| rig.counters.requests.load(Relaxed) == 3);
    let (tell, told) = channel();
    lane.reset_queue(0, Box::new(move |position| tell.send(position).unwrap()));
    let stands = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(stands, RingPosition { next_avail: 3, next_used: 3 }, "after what was in flight");
}

#[test]
fn a_queue_put_back_into_service_with_another_kick_is_woken_by_that_alone() {
    let rig = Rig::new();
    let lane = rig.start_settled(rig.both());
    let (tell, told) = channel();
    lane.reset_queue(0, Box::new(move |_position| tell.send(()).unwrap()));
    told.recv_timeout(PATIENCE).unwrap();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let passes = rig.counters.passes.load(Relaxed);
    lane.enable_queue(0, QueueSetup { kick: kick.clone(), ..rig.setup(0) });
    wait_until(|| rig.counters.passes.load(Relaxed) > passes);

    rig.offer(0, 0);
    rig.kicks[0].write(1).unwrap();
    // The other queue's answer shows that the lane has had its look at all that woke it.
    rig.offer(1, 0);
    rig.kicks[1].write(1).unwrap();
    assert_eq!(rig.hear(), Said::Used(vec![3]), "the old kick wakes nobody");
    kick.write(1).unwrap();
    assert_eq!(rig.hear(), Said::Used(vec![2]));
}

#[test]
fn a_queue_that_cannot_be_taken_back_into_service_ends_the_lane() {
    let rig = Rig::new();
    let lane = rig.start(Behaviour::Echo);
    lane.enable_queue(0, rig.setup_with(0, |ring| ring.size = 3));
    assert!(matches!(rig.hear(), Said::NeedsReset(_)));
    assert!(matches!(rig.hear(), Said::Ended(_)));
}

#[test]
fn a_panic_is_our_bug_and_ends_the_lane_alone() {
    let rig = Rig::new();
    let _lane = rig.start(Behaviour::Panic);
    let Said::NeedsReset(words) = rig.hear() else { panic!("a fault comes first") };
    assert!(words.contains("bug") && words.contains("told to"), "{words}");
    assert!(matches!(rig.hear(), Said::Ended(_)));
    assert_eq!(rig.counters.faults.load(Relaxed), 1);
}

#[test]
fn a_device_that_the_host_does_not_let_start_says_so() {
    let rig = Rig::new();
    let _lane = rig.start(Behaviour::RefuseToStart);
    assert_eq!(rig.hear(), Said::NeedsReset("The host failed the device: starting the device".into()));
    assert!(matches!(rig.hear(), Said::Ended(_)));
}

#[test]
fn c19_a_ring_outside_of_memory_needs_a_reset() {
    let rig = Rig::new();
    let _lane = rig.start_with(Behaviour::Echo, vec![Some(rig.setup_with(0, |ring| ring.used_ring = 0x1000)), None]);
    assert!(matches!(rig.hear(), Said::NeedsReset(_)));
    assert!(matches!(rig.hear(), Said::Ended(_)));
}

#[test]
fn b06_a_starved_queue_is_tried_again_without_a_kick() {
    // Room for the two rings' chunk and one more, which a buffer of its own takes first.
    let rig = Rig::with_budget(Budget { kept: 1 << 17, at_most: 1 << 17 });
    let mut elsewhere = guest_memory::Buffers::new();
    let view = guest_memory::View::new(Arc::clone(&rig.cache));
    view.pin(&[(vm_memory::GuestAddress(BASE + 0x4_0000), 64)], Access::Write, &mut elsewhere).unwrap();
    drop(view);
    rig.offer_at(0, 0, BASE + 0x2_0000);
    let _lane = rig.start(Behaviour::Echo);
    wait_until(|| rig.counters.starved.load(Relaxed) > 0);
    assert_eq!(rig.queues[0].used_idx(), 0);

    drop(elsewhere);

    assert_eq!(rig.hear(), Said::Used(vec![2]));
}

#[test]
fn memory_is_let_go_of_on_demand() {
    let rig = Rig::new();
    rig.offer(0, 0);
    let lane = rig.start_settled(rig.both());
    assert_eq!(rig.hear(), Said::Used(vec![2]));
    rig.cache.invalidate();
    lane.release_memory();
    wait_until(|| {
        rig.cache.sweep();
        rig.memory.counts().live == 0
    });
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it never came about");
        std::thread::yield_now();
    }
}
