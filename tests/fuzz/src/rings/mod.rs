//! A split ring of any contents, beside a walker of our own that does not know the real one.
//!
//! The driver writes descriptors, indirect tables, indexes and bytes anywhere; the device takes requests, puts one back,
//! gives them back in any order, and shows what it gave back. Between two of these steps nobody writes, so what each step
//! should do is known.
//!
//! - What is taken is the next chain, byte by byte, piece by piece; or there is none; or the driver is at fault.
//! - Only what was given for writing is written. The used ring holds what was given back, in its order.
//! - A device that dies with requests in its hands finds the same ones again, first.

mod walker;

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use guest_memory::MapCache;
use virtio_backend::{Fault, Record, Request, Ring, RingPosition, RingSetup};

use crate::chain::meet;
use crate::guest::{BASE, INDIRECT, Memory, NEXT, Raw, WRITE, u16_at, u32_at};
use walker::{Found, Walker};

/// Bytes of the guest's memory.
const SIZE: usize = 0x8000;

// Offsets. Tables and data have the rest.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x400;
const USED: usize = 0x800;
const USED_LEN: usize = 6 + 8 * MAX_SIZE as usize;
const TABLES: usize = 0x1000;
const DATA: usize = 0x2000;

/// The most entries that the device offers, and bytes that a chain may describe.
const MAX_SIZE: u16 = 16;
const MAX_BYTES: u64 = 0x3000;

#[derive(Arbitrary, Debug)]
struct Setting {
    /// Entries: a power of two.
    size: u8,
    event_idx: bool,
    /// Where both sides begin to count.
    start: u16,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A sound chain in descriptors of its own, and made available.
    Offer {
        slot: u8,
        pieces: [Option<Piece>; 3],
        indirect: bool,
    },
    Descriptor {
        at: Table,
        slot: u8,
        piece: Piece,
        flags: u8,
        next: u8,
    },
    Publish {
        head: u8,
    },
    Jump {
        by: u16,
    },
    Scribble {
        at: u16,
        value: u64,
    },
    Pop,
    Unpop,
    Push {
        which: u8,
        written: u16,
        byte: u8,
    },
    Show,
    Die,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Table {
    Queue,
    Indirect(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Piece {
    place: Place,
    len: u16,
    /// The length is what the place's kind makes of it, or this.
    odd_len: Option<u32>,
    writable: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Data(u16),
    Table(u8),
    Memory(u16),
    Any(u64),
}

impl Piece {
    fn raw(&self) -> Raw {
        let (addr, len) = match self.place {
            Place::Data(at) => (BASE + DATA as u64 + u64::from(at) % (SIZE - DATA) as u64, u32::from(self.len % 600)),
            Place::Table(number) => (BASE + table(number) as u64, u32::from(self.len % 34) * 16),
            Place::Memory(at) => (BASE + u64::from(at) % SIZE as u64, self.len.into()),
            Place::Any(addr) => (addr, self.len.into()),
        };
        let flags = if self.writable { WRITE } else { 0 };
        Raw { addr, len: self.odd_len.unwrap_or(len), flags, next: 0 }
    }
}

fn table(number: u8) -> usize {
    TABLES + usize::from(number % 4) * 0x200
}

struct Machine {
    memory: Memory,
    cache: Arc<MapCache>,
    setup: RingSetup,
    record: Record,
    ring: Option<Ring>,
    walker: Walker,
    held: Vec<(Request, Found)>,
    /// The one that was taken last is the last of these.
    is_last: bool,
    /// What the used ring should have, from the index on that was last shown: head and length.
    given_back: Vec<(u16, u32)>,
    shown: u16,
}

/// Makes a ring of `bytes`, and works it.
///
/// # Panics
/// What is taken from it or put there is not what it should be.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let Ok(setting) = Setting::arbitrary(&mut source) else { return };
    let mut machine = Machine::new(&setting);
    while !source.is_empty() && machine.ring.is_some() {
        let Ok(step) = Step::arbitrary(&mut source) else { break };
        machine.make(step);
    }
}

impl Machine {
    fn new(setting: &Setting) -> Self {
        let (memory, cache) = Memory::new(SIZE);
        memory.write(DATA, &[0xee; SIZE - DATA]);
        for index in [AVAILABLE + 2, USED + 2] {
            memory.write(index, &setting.start.to_le_bytes());
        }
        let position = RingPosition { next_avail: setting.start, next_used: setting.start };
        let setup = RingSetup {
            size: 1 << (setting.size % 5),
            max_size: MAX_SIZE,
            desc_table: BASE + DESCRIPTORS as u64,
            avail_ring: BASE + AVAILABLE as u64,
            used_ring: BASE + USED as u64,
            event_idx: setting.event_idx,
            position,
            max_chain_bytes: MAX_BYTES,
        };
        let record = Record::new().unwrap();
        let walker = Walker::new(setting.start, setup.size);
        let mut machine = Self {
            memory,
            cache,
            setup,
            record,
            ring: None,
            walker,
            held: Vec::new(),
            is_last: false,
            given_back: Vec::new(),
            shown: setting.start,
        };
        machine.ring = Some(machine.open().expect("a sound ring"));
        machine
    }

    fn open(&self) -> Result<Ring, Fault> {
        let ledger = self.record.ledgers(&[MAX_SIZE]).unwrap().remove(0);
        Ring::recorded(&self.setup, &self.cache, ledger)
    }

    fn ring(&mut self) -> &mut Ring {
        self.ring.as_mut().unwrap()
    }

    fn make(&mut self, step: Step) {
        match step {
            Step::Offer { slot, pieces, indirect } => self.offer(slot, &pieces, indirect),
            Step::Descriptor { at, slot, piece, flags, next } => {
                let raw = Raw { flags: u16::from(flags % 8), next: u16::from(next % 20), ..piece.raw() };
                let start = match at {
                    Table::Queue => DESCRIPTORS,
                    Table::Indirect(number) => table(number),
                };
                self.memory.put(start + 16 * usize::from(slot % 32), raw);
            }
            Step::Publish { head } => self.publish(u16::from(head % 20)),
            Step::Jump { by } => self.set_available(self.memory.u16_at(AVAILABLE + 2).wrapping_add(by)),
            Step::Scribble { at, value } => {
                // The used ring is the device's: what a driver's scribbles there are good for is another target's to say.
                let at = usize::from(at) % SIZE;
                if !meet(&(at..at + 8), &(USED..USED + USED_LEN)) {
                    self.memory.write(at, &value.to_le_bytes());
                }
            }
            Step::Pop => self.pop(),
            Step::Unpop => self.unpop(),
            Step::Push { which, written, byte } => self.push(which, written.into(), byte),
            Step::Show => self.show(),
            Step::Die => self.die(),
        }
    }

    fn offer(&mut self, slot: u8, pieces: &[Option<Piece>; 3], indirect: bool) {
        let head = u16::from(slot) % self.setup.size;
        let mut pieces: Vec<_> = pieces.iter().flatten().map(Piece::raw).collect();
        pieces.sort_by_key(|piece| piece.flags & WRITE);
        let (start, first, room) = match indirect {
            true => (table(slot), 0, pieces.len()),
            false => (DESCRIPTORS + 16 * usize::from(head), head, usize::from(self.setup.size - head)),
        };
        pieces.truncate(room);
        let last = pieces.len().saturating_sub(1);
        for (number, piece) in pieces.iter().enumerate() {
            let flags = if number < last { piece.flags | NEXT } else { piece.flags };
            self.memory.put(start + 16 * number, Raw { flags, next: first + number as u16 + 1, ..*piece });
        }
        if indirect {
            let len = 16 * pieces.len() as u32;
            self.memory.put(
                DESCRIPTORS + 16 * usize::from(head),
                Raw { addr: BASE + start as u64, len, flags: INDIRECT, next: 0 },
            );
        }
        self.publish(head);
    }

    fn publish(&mut self, head: u16) {
        let index = self.memory.u16_at(AVAILABLE + 2);
        self.memory.write(AVAILABLE + 4 + 2 * usize::from(index % self.setup.size), &head.to_le_bytes());
        self.set_available(index.wrapping_add(1));
    }

    fn set_available(&mut self, index: u16) {
        self.memory.write(AVAILABLE + 2, &index.to_le_bytes());
    }

    fn pop(&mut self) {
        let before = self.memory.snapshot();
        let expected = self.walker.next(&before);
        match (self.ring().pop(), expected) {
            (Ok(Some(request)), Ok(Some(found))) => {
                compare(&request, &found, &before);
                // A driver that has the device write to its own ring gets what it deserves, and no account is kept of it.
                if found.writable.iter().any(|part| meet(part, &(USED..USED + USED_LEN))) {
                    self.ring = None;
                    return;
                }
                self.held.push((request, found));
                self.is_last = true;
            }
            (Ok(None), Ok(None)) => {}
            // Which of two mistakes is met first is no matter.
            (Err(Fault::Guest(_)), Err(_)) => self.ring = None,
            (taken, expected) => panic!("taken is {taken:?}, and there is {expected:?}"),
        }
        assert!(before == self.memory.snapshot(), "taking a request writes to memory");
    }

    fn unpop(&mut self) {
        let Some((request, found)) = self.held.pop_if(|_| self.is_last) else { return };
        self.is_last = false;
        self.walker.put_back(found.head, request.is_replay());
        self.ring().unpop(request);
    }

    fn push(&mut self, which: u8, written: usize, byte: u8) {
        if self.held.is_empty() {
            return;
        }
        let (request, found) = self.held.remove(usize::from(which) % self.held.len());
        self.is_last = false;
        let mut expected = self.memory.snapshot();
        let written = written % (request.writable.len() + 1);
        assert_eq!(request.writable.write(0, &vec![byte; written]), written);
        let mut left = written;
        for part in &found.writable {
            let here = part.len().min(left);
            expected[part.start..part.start + here].fill(byte);
            left -= here;
        }
        assert!(expected == self.memory.snapshot(), "what was written is not what was given for it");
        self.ring().push(request, written).expect("it is in flight");
        self.walker.give_back(found.head);
        self.given_back.push((found.head, written as u32));
    }

    fn show(&mut self) {
        self.ring().publish().expect("the used ring can be written");
        let memory = self.memory.snapshot();
        let shown = u16_at(&memory, USED + 2);
        assert_eq!(shown.wrapping_sub(self.shown), self.given_back.len() as u16, "chains that came back");
        let count = self.given_back.len();
        for (nth, (head, len)) in self.given_back.drain(..).enumerate() {
            // Of more than the ring holds, those at first are gone.
            if nth + usize::from(self.setup.size) < count {
                continue;
            }
            let slot = self.shown.wrapping_add(nth as u16) % self.setup.size;
            let at = USED + 4 + 8 * usize::from(slot);
            assert_eq!((u32_at(&memory, at), u32_at(&memory, at + 4)), (head.into(), len));
        }
        self.shown = shown;
        self.walker.show();
    }

    /// Another process goes on, for which what was given back and not shown is in flight.
    fn die(&mut self) {
        self.held.clear();
        self.given_back.clear();
        self.is_last = false;
        self.ring = None;
        if !self.walker.is_sloppy {
            self.walker.start_again();
            self.ring = Some(self.open().expect("the ring is where it was"));
        }
    }
}

fn compare(request: &Request, found: &Found, memory: &[u8]) {
    assert_eq!(request.head(), found.head);
    let mut bytes = vec![0; request.readable.len()];
    request.readable.read(0, &mut bytes);
    let expected: Vec<u8> = found.readable.iter().flat_map(|part| &memory[part.clone()]).copied().collect();
    assert!(bytes == expected, "what is to be read of chain {} is something else", found.head);
    let lengths = |parts: &[std::ops::Range<usize>]| parts.iter().map(|part| part.len()).collect::<Vec<_>>();
    assert_eq!(request.readable_lengths().collect::<Vec<_>>(), lengths(&found.readable));
    assert_eq!(request.writable_lengths().collect::<Vec<_>>(), lengths(&found.writable));
}
