//! Every order of events between lanes, the thread of register accesses, and whoever changes configuration space: `make
//! models`. What the guest does of its own is in here, everything else is the real code.
#![allow(clippy::unwrap_used, reason = "a model reports by panicking")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use std::sync::atomic::{self, AtomicUsize};

use guest_memory::{Budget, MapCache, MapError, Mapping, PageSource};
use io_bus::{Device, Written};
use loom::sync::Mutex;
use loom::sync::atomic::AtomicU32;
use loom::thread;
use virtio_backend::{Backend, Fault, Identity, Record, Signals, Worker};

use crate::features::Features;
use crate::interrupt::{Cause, Interrupt};
use crate::registers::CONFIG_START;
use crate::state::State;
use crate::status::Status;
use crate::{InterruptLine, Transport};

const USED_BUFFER: u32 = Cause::UsedBuffer as u32;
const CONFIG: u32 = Cause::Config as u32;

/// The guest's interrupt controller: edges wait there to be taken. What was done before an edge is seen by who takes it, as
/// the hypervisor stands between.
#[derive(Default)]
struct Line(AtomicU32);

impl InterruptLine for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.fetch_add(1, AcqRel);
        Ok(())
    }
}

/// What lanes have done, and what a driver has found of it.
struct Driver {
    line: Arc<Line>,
    interrupt: Interrupt,
    used: AtomicU32,
    configuration: AtomicU32,
    found: [atomic::AtomicU32; 2],
}

impl Driver {
    fn new() -> Arc<Self> {
        let line = Arc::<Line>::default();
        let interrupt = Interrupt::new(Arc::clone(&line) as Arc<dyn InterruptLine>, Arc::default());
        let (used, configuration) = (AtomicU32::new(0), AtomicU32::new(0));
        Arc::new(Self { line, interrupt, used, configuration, found: Default::default() })
    }

    /// The handler, if an edge waits: acknowledges, and looks only then (§4.2.3.4).
    fn handle(&self, acknowledge: impl Fn(u32, &dyn Fn(u32))) {
        if self.line.0.swap(0, AcqRel) == 0 {
            return;
        }
        let [used, configuration] = &self.found;
        acknowledge(self.interrupt.status(), &|bits| {
            self.interrupt.acknowledge(bits);
            if bits & USED_BUFFER != 0 {
                used.store(self.used.load(Relaxed), Relaxed);
            }
            if bits & CONFIG != 0 {
                configuration.store(self.configuration.load(Relaxed), Relaxed);
            }
        });
    }
}

/// Whatever happens while the driver handles interrupts, it has found everything when no edge waits any more.
fn nothing_is_lost(acknowledge: fn(u32, &dyn Fn(u32))) {
    loom::model(move || {
        let driver = Driver::new();
        let lane = thread::spawn({
            let driver = Arc::clone(&driver);
            move || {
                for index in 1..=2 {
                    driver.used.store(index, Relaxed);
                    driver.interrupt.assert(Cause::UsedBuffer);
                }
            }
        });
        let operator = thread::spawn({
            let driver = Arc::clone(&driver);
            move || {
                driver.configuration.store(1, Relaxed);
                driver.interrupt.assert(Cause::Config);
            }
        });

        driver.handle(acknowledge);
        lane.join().unwrap();
        operator.join().unwrap();
        // A handler may cause one interrupt more, by what it left.
        (0..3).for_each(|_| driver.handle(acknowledge));

        let found = driver.found.each_ref().map(|found| found.load(Relaxed));
        assert_eq!(found, [2, 1]);
        assert_eq!(driver.interrupt.status(), 0);
    });
}

#[test]
fn no_interrupt_is_lost_to_a_driver_that_acknowledges_what_it_read() {
    nothing_is_lost(|status, acknowledge| acknowledge(status));
}

#[test]
fn no_interrupt_is_lost_to_a_driver_that_acknowledges_bit_by_bit() {
    nothing_is_lost(|status, acknowledge| {
        [USED_BUFFER, CONFIG].into_iter().filter(|bit| status & bit != 0).for_each(acknowledge);
    });
}

#[test]
fn no_interrupt_is_lost_to_a_driver_that_leaves_a_bit_for_the_next_one() {
    nothing_is_lost(|status, acknowledge| {
        let first = if status & CONFIG != 0 { CONFIG } else { status };
        acknowledge(first);
    });
}

/// Without queues, so without lanes; its configuration are two words that belong together.
struct Twofold {
    identity: Identity,
    /// Held by who changes them until the generation tells of it, and by who reads one.
    words: Mutex<[u32; 2]>,
}

impl Twofold {
    fn new() -> Arc<Self> {
        let identity = Identity {
            device_id: 4,
            features: 0,
            queue_sizes: Vec::new(),
            lanes: Vec::new(),
            config_len: 8,
            max_chain_bytes: 0,
        };
        Arc::new(Self { identity, words: Mutex::new([0; 2]) })
    }

    fn change(&self, signals: &dyn Signals) {
        let mut words = self.words.lock().unwrap();
        *words = [1; 2];
        signals.config_changed();
        drop(words);
    }
}

impl Backend for Twofold {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let words = *self.words.lock().unwrap();
        data.copy_from_slice(&words[offset / 4].to_le_bytes());
    }

    fn start(&self, _lane: usize, _features: u64) -> io::Result<Box<dyn Worker>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A guest without memory.
struct NoPages;

impl PageSource for NoPages {
    fn map(&self, _frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        Err(MapError::Busy)
    }
}

fn transport(backend: &Arc<Twofold>) -> (Arc<Transport>, Arc<Line>) {
    let line = Arc::<Line>::default();
    let cache = MapCache::new(NoPages, Budget::default());
    let backend = Arc::clone(backend) as Arc<dyn Backend>;
    let transport = Transport::new(backend, Arc::clone(&line) as Arc<dyn InterruptLine>, cache, "model").unwrap();
    (transport, line)
}

fn read(transport: &Transport, offset: u64) -> u32 {
    let mut word = [0; 4];
    transport.read(offset, &mut word);
    u32::from_le_bytes(word)
}

fn write(transport: &Transport, offset: u64, value: u32) {
    assert!(matches!(transport.write(offset, &value.to_le_bytes()), Written::Now));
}

const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const STATUS: u64 = 0x070;
const CONFIG_GENERATION: u64 = 0x0fc;

#[test]
fn spec_4_2_2_1_words_of_two_configurations_are_not_taken_for_one() {
    loom::model(|| {
        let backend = Twofold::new();
        let (transport, _line) = transport(&backend);
        let operator = thread::spawn({
            let (backend, transport) = (Arc::clone(&backend), Arc::clone(&transport));
            move || backend.change(&*transport.state)
        });

        let before = read(&transport, CONFIG_GENERATION);
        let words = [0, 4].map(|word| read(&transport, CONFIG_START + word));
        let after = read(&transport, CONFIG_GENERATION);

        assert!(before != after || words[0] == words[1], "{words:?} in generation {before}");
        operator.join().unwrap();
    });
}

#[test]
fn a_change_of_configuration_is_told_of_whether_it_comes_before_driver_ok_or_after() {
    loom::model(|| {
        let backend = Twofold::new();
        let (transport, line) = transport(&backend);
        write(&transport, STATUS, 1 | 2);
        write(&transport, DRIVER_FEATURES_SEL, 1);
        write(&transport, DRIVER_FEATURES, 1);
        write(&transport, STATUS, 1 | 2 | 8);
        let operator = thread::spawn({
            let transport = Arc::clone(&transport);
            move || transport.state.config_changed()
        });

        write(&transport, STATUS, 1 | 2 | 4 | 8);

        operator.join().unwrap();
        assert_eq!(read(&transport, STATUS), 1 | 2 | 4 | 8);
        assert_eq!((transport.state.interrupt.status(), line.0.load(SeqCst)), (CONFIG, 1));
    });
}

/// How a lane's life goes on after its device was told to stop.
fn resets_are_answered_once_when_the_lane_has_ended(lane: fn(&State)) {
    // Nothing in it is read in this model.
    let record = Record::new().unwrap();
    loom::model(move || {
        let backend = Twofold::new();
        let interrupt = Interrupt::new(Arc::<Line>::default(), Arc::default());
        let state = State::new("model".to_owned(), backend.identity(), Features::new(0), interrupt, record.transport());
        let mut registers = state.registers();
        registers.status = Status::RUNNING;
        let run = state.begin_run(&mut registers);
        drop(registers);
        let touched = Arc::new(AtomicU32::new(0));
        let lane = thread::spawn({
            let (state, touched) = (Arc::clone(&state), Arc::clone(&touched));
            move || {
                lane(&state);
                touched.store(1, Relaxed);
                drop(run);
            }
        });

        let answers = Arc::<AtomicUsize>::default();
        for written in [state.reset(), state.reset(), state.remove()] {
            let (state, touched, answers) = (Arc::clone(&state), Arc::clone(&touched), Arc::clone(&answers));
            let answer = move || {
                assert_eq!(touched.load(Relaxed), 1, "answered while a lane has guest memory");
                assert_eq!((state.registers().status.bits(), state.interrupt.status()), (0, 0));
                answers.fetch_add(1, SeqCst);
            };
            match written {
                Written::Now => answer(),
                Written::Later(deferral) => deferral.then(answer),
            }
        }

        lane.join().unwrap();
        assert_eq!(answers.load(SeqCst), 3);
    });
}

#[test]
fn a_reset_is_answered_once_when_a_lane_ends_meanwhile() {
    resets_are_answered_once_when_the_lane_has_ended(|state| state.used(&[0]));
}

#[test]
fn a_reset_is_answered_once_when_a_lane_faults_meanwhile() {
    resets_are_answered_once_when_the_lane_has_ended(|state| state.needs_reset(&Fault::Bug("a model".to_owned())));
}
