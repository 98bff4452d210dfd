//! The registers as virtio 1.2 §4.2.2 has them, written down once more and in another way: by what each write does to a
//! plain struct. Lanes are not in it: whether a device with these queues can run is a question of their numbers.

use testkit::device::{CONFIG, FEATURE};

use super::{RAM, RAM_LEN};

/// The largest size of each queue of the device.
const SIZES: [u32; QUEUES] = [16, 8];
pub(super) const QUEUES: usize = 2;

/// Status.
pub(super) const STATUS: u64 = 0x70;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
pub(super) const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

const VERSION_1: u64 = 1 << 32;
const RING_RESET: u64 = 1 << 40;
/// What the device works with: its own, indirect descriptors, event indexes.
pub(super) const GOOD: u64 = VERSION_1 | RING_RESET | 1 << 28 | 1 << 29 | FEATURE;
/// What it offers, one of which it does not work with.
const OFFERED: u64 = GOOD | testkit::device::UNWELCOME_FEATURE;

#[derive(Clone, Copy, Debug)]
struct Queue {
    size: u32,
    /// Descriptors, available ring, used ring.
    areas: [u64; 3],
    ready: bool,
}

/// Whether a device can work a queue that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Sound,
    /// It breaks the device.
    Broken,
    /// It lies where something else lies, or has: the device may find there what it cannot work with.
    Murky,
}

#[derive(Debug)]
pub(super) struct Model {
    status: u32,
    device_sel: u32,
    driver_sel: u32,
    accepted: u64,
    beyond: bool,
    queue_sel: u32,
    queues: [Queue; QUEUES],
    interrupt: u32,
    generation: u32,
    untold: bool,
    config: Vec<u8>,
    murky: bool,
    /// There are lanes.
    running: bool,
    /// A queue whose reset was asked for, and has yet to end.
    pub(super) is_resetting: Option<usize>,
}

impl Queue {
    const fn new(index: usize) -> Self {
        Self { size: SIZES[index], areas: [0; 3], ready: false }
    }

    /// Its areas: start, length, alignment.
    fn spans(&self) -> [(u64, u64, u64); 3] {
        let size = u64::from(self.size);
        let [descriptors, available, used] = self.areas;
        [(descriptors, 16 * size, 16), (available, 6 + 2 * size, 2), (used, 6 + 8 * size, 4)]
    }

    /// What comes of the queue with this index.
    fn judge((index, queue): (usize, &Self)) -> Verdict {
        let fits = |(start, len, alignment): (u64, u64, u64)| {
            start % alignment == 0 && start >= RAM && start.checked_add(len).is_some_and(|end| end <= RAM + RAM_LEN)
        };
        let is_possible = queue.size.is_power_of_two() && queue.size <= SIZES[index];
        if !is_possible || !queue.spans().into_iter().all(fits) {
            Verdict::Broken
        } else if queue.areas == own_pages(index) {
            Verdict::Sound
        } else {
            Verdict::Murky
        }
    }
}

/// Where a queue's areas can be, and nothing else ever is.
pub(super) fn own_pages(queue: usize) -> [u64; 3] {
    [0, 1, 2].map(|area| RAM + (3 * queue as u64 + area) * 0x1000)
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            status: 0,
            device_sel: 0,
            driver_sel: 0,
            accepted: 0,
            beyond: false,
            queue_sel: 0,
            queues: [Queue::new(0), Queue::new(1)],
            interrupt: 0,
            generation: 0,
            untold: false,
            config: CONFIG.to_vec(),
            murky: false,
            running: false,
            is_resetting: None,
        }
    }

    pub(super) fn read(&self, offset: u64, width: usize) -> Vec<u8> {
        if offset >= 0x100 {
            let at = |nth: u64| usize::try_from(offset - 0x100).ok()?.checked_add(nth as usize);
            let byte = |nth| at(nth).and_then(|at| self.config.get(at)).copied().unwrap_or(0);
            return (0..width as u64).map(byte).collect();
        }
        match self.register(offset).filter(|_| width == 4) {
            Some(value) => value.to_le_bytes().to_vec(),
            None => vec![0; width],
        }
    }

    fn register(&self, offset: u64) -> Option<u32> {
        let queue = self.queues.get(self.queue_sel as usize);
        Some(match offset {
            0x00 => 0x7472_6976,
            0x04 => 2,
            0x08 => 42,
            0x0c => u32::from_le_bytes(*b"xvio"),
            0x10 if self.device_sel < 2 => (OFFERED >> (32 * self.device_sel)) as u32,
            0x34 => SIZES.get(self.queue_sel as usize).copied().unwrap_or(0),
            0x44 => queue.is_some_and(|queue| queue.ready).into(),
            0x60 => self.interrupt,
            STATUS => self.status,
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => self.generation,
            _ => return None,
        })
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= 0x100 {
            let start = (offset - 0x100) as usize;
            for (nth, byte) in data.iter().enumerate() {
                if let Some(field) = start.checked_add(nth).and_then(|at| self.config.get_mut(at)) {
                    *field = *byte;
                }
            }
            return;
        }
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            0x14 => self.device_sel = value,
            0x20 if self.status & FEATURES_OK == 0 => match self.driver_sel {
                0 => self.accepted = self.accepted >> 32 << 32 | u64::from(value),
                1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(value) << 32,
                _ => self.beyond |= value != 0,
            },
            0x24 => self.driver_sel = value,
            0x30 => self.queue_sel = value,
            0x38 => self.set_up(|queue| queue.size = if value > 0xffff { 0 } else { value }),
            0x44 => self.write_ready(value),
            0x64 => self.interrupt &= !value,
            STATUS => self.write_status(value),
            0x80..=0xa4 if matches!(offset & 0xf, 0 | 4) => self.set_up(|queue| {
                let area = &mut queue.areas[(offset as usize - 0x80) / 0x10];
                let shift = if offset & 4 == 0 { 0 } else { 32 };
                *area = *area & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }),
            0xc0 if value == 1 && self.can_reset_queues() => {
                self.is_resetting = Some(self.queue_sel as usize).filter(|queue| *queue < QUEUES);
            }
            _ => {}
        }
    }

    fn can_reset_queues(&self) -> bool {
        self.status & FEATURES_OK != 0 && self.accepted & RING_RESET != 0
    }

    fn set_up(&mut self, change: impl FnOnce(&mut Queue)) {
        let may = self.status & DRIVER_OK == 0 || self.can_reset_queues();
        if let Some(queue) = self.queues.get_mut(self.queue_sel as usize).filter(|queue| may && !queue.ready) {
            change(queue);
        }
    }

    fn write_ready(&mut self, value: u32) {
        match value {
            1 => self.set_up(|queue| queue.ready = true),
            0 => {
                if let Some(queue) = self.queues.get_mut(self.queue_sel as usize) {
                    queue.ready = false;
                }
            }
            _ => {}
        }
    }

    /// §2.1 and §3.1.1: bits in their order, none without those before it, none once the device is given up.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            let (generation, config) = (self.generation, std::mem::take(&mut self.config));
            *self = Self { generation, config, ..Self::new() };
            return;
        }
        let is_hopeless = self.status & (NEEDS_RESET | FAILED) != 0;
        let before = self.status;
        for (bit, after) in [(ACKNOWLEDGE, 0), (DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)] {
            let may = !is_hopeless && self.status & after == after && (bit != FEATURES_OK || self.is_acceptable());
            if value & bit != 0 && may {
                self.status |= bit;
            }
        }
        self.status |= value & FAILED;
        if self.status & !before & DRIVER_OK != 0 {
            self.running = true;
            self.interrupt |= if std::mem::take(&mut self.untold) { 2 } else { 0 };
        }
    }

    fn is_acceptable(&self) -> bool {
        self.accepted & !GOOD == 0 && self.accepted & VERSION_1 != 0 && !self.beyond
    }

    pub(super) fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.status & DRIVER_OK == 0 {
            self.untold = true;
        } else {
            self.interrupt |= 2;
        }
    }

    /// Another process goes on. What it does not know of interrupts it makes up for, and its device is another one.
    pub(super) fn follow(&mut self) {
        self.generation = self.generation.wrapping_add(2);
        self.config = CONFIG.to_vec();
        self.interrupt = if self.status & DRIVER_OK == 0 { 0 } else { 3 };
        self.running = self.status & DRIVER_OK != 0 && self.status & (NEEDS_RESET | FAILED) == 0;
    }

    /// Whether the device must be about to say that it needs a reset.
    pub(super) fn breaks(&mut self) -> bool {
        let mut verdicts = self.queues.iter().enumerate().filter(|(_, queue)| queue.ready).map(Queue::judge);
        self.murky |= self.running && verdicts.clone().any(|verdict| verdict == Verdict::Murky);
        self.running && verdicts.any(|verdict| verdict == Verdict::Broken)
    }

    /// Whether nothing can be said of the device until it is reset.
    pub(super) fn is_murky(&self) -> bool {
        self.murky
    }

    pub(super) fn broke(&mut self) {
        self.running = false;
        if self.status & NEEDS_RESET == 0 {
            self.status |= NEEDS_RESET;
            self.interrupt |= 2;
        }
    }

    pub(super) fn was_reset(&mut self, queue: usize) {
        self.queues[queue] = Queue::new(queue);
    }
}
