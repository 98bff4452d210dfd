//! What a process left of a device, and somebody has changed: words, notes, ledgers, and the rings beside them.
//!
//! A device was in use, or on its way there, when its process ended. Then its record is spoilt, and another process goes
//! on with it.
//!
//! - Whatever the record says, there is a device afterwards that answers, and can be reset and used.
//! - A driver that was using it, by a note that can still be read, never finds a fresh one. One of which nothing can be
//!   read needs a reset.
//! - The same record given up shows DEVICE_NEEDS_RESET, whatever is in it.

use std::io;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use guest_memory::{Budget, MapCache};
use rustix::io::{pread, pwrite};
use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::{Descriptor, RawQueue, Register, Registers, status};
use testkit::memory::FakeForeignMemory;
use virtio_backend::Record;
use virtio_mmio::{InterruptLine, Transport, Wreck};

const RAM: u64 = 0x4000_0000;
const RAM_LEN: u64 = 1 << 16;
const BUFFERS: u64 = RAM + 0x4000;
const VERSION_1: u64 = 1 << 32;
const SIZE: u16 = 16;

/// Where things are in a record: the word that says which side of the transport's note counts, its sides, the device's
/// note, the ledgers.
const MEMO: u64 = 4096;
const SIDES: [u64; 2] = [MEMO + 4096, MEMO + 4096 + (32 << 10)];
const LEDGERS: u64 = MEMO + 2 * (4096 + (64 << 10));

/// A change of a record, or of memory.
#[derive(Arbitrary, Debug)]
enum Change {
    /// A word at one of the places where there is something.
    Word {
        place: Place,
        at: u16,
        value: Word,
    },
    Byte {
        place: Place,
        at: u16,
        byte: u8,
    },
    /// A number in the note becomes another.
    Number {
        nth: u8,
        value: Word,
    },
    /// The note is this.
    Note(Vec<u8>),
    /// What the guest has in its used ring.
    Used {
        at: u8,
        value: u32,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Header,
    Memo,
    Note,
    Ledger,
    Any(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Word {
    Small(u8),
    Bit(u8),
    Any(u64),
}

/// How far the driver had come.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Before {
    steps: u8,
    requests: u8,
    /// Some of these are in flight.
    held: bool,
}

impl Place {
    fn offset(self, at: u16) -> u64 {
        let at = u64::from(at);
        match self {
            Self::Header => at % 16,
            Self::Memo => MEMO + at % 8,
            Self::Note => SIDES[1] + at % 600,
            Self::Ledger => LEDGERS + at % 512,
            Self::Any(more) => (u64::from(more) + at) % (16 << 20),
        }
    }
}

impl Word {
    fn number(self) -> u64 {
        match self {
            Self::Small(value) => value.into(),
            Self::Bit(bit) => 1 << (bit % 64),
            Self::Any(value) => value,
        }
    }
}

struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Spoils a record as `bytes` say.
///
/// # Panics
/// A driver finds a device that it must not find.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let Ok(before) = Before::arbitrary(&mut source) else { return };
    let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
    let queue = RawQueue::new(memory.clone(), RAM, SIZE);
    let record = Record::new().unwrap();
    use_device(before, &memory, &queue, &record);
    while !source.is_empty() {
        let Ok(change) = Change::arbitrary(&mut source) else { break };
        change.make(&record, &queue, &memory);
    }
    // What the next process is handed is a descriptor.
    let handed = rustix::io::dup(&record).unwrap();
    let Ok(record) = Record::of(handed) else { return };
    let noted = Noted::read(&record);
    follow(noted, &memory, &queue, &record);
}

/// A process that serves the device to a driver, and ends as one that is killed: its record is as it left it.
fn use_device(before: Before, memory: &FakeForeignMemory, queue: &RawQueue, record: &Record) {
    // Two processes never have one record. This one's is a copy's original that nobody looks at any more.
    let behaviour = if before.held { Behaviour::Hold } else { Behaviour::Echo };
    let device = Arc::new(TestDevice::new(behaviour));
    let cache = MapCache::new(memory.clone(), Budget::default());
    let transport =
        Transport::recorded(Arc::clone(&device) as _, Arc::new(NoLine), cache, "before", record.clone()).unwrap();
    match before.steps % 4 {
        0 => {}
        1 => transport.add_status(status::ACKNOWLEDGE),
        2 => drop(transport.negotiate(VERSION_1)),
        _ => {
            transport.bring_up(VERSION_1, queue);
            let requests = u16::from(before.requests) % SIZE;
            for head in 0..requests {
                let (to_read, to_write) = (BUFFERS + 64 * u64::from(head), BUFFERS + 0x2000 + 64 * u64::from(head));
                // One descriptor each: as many requests as there are entries.
                let piece =
                    if head % 2 == 0 { Descriptor::readable(to_read, 16) } else { Descriptor::writable(to_write, 16) };
                queue.write_chain(head, &[piece]);
                queue.publish(head);
            }
            transport.notify(0);
            match before.held {
                true => eventually("requests are held", || {
                    device.held.load(std::sync::atomic::Ordering::SeqCst) == u64::from(requests)
                }),
                false => drop(queue.wait_used(requests)),
            }
        }
    }
    // Killed: nothing of what it does now is in the record or in the guest's memory any more.
    let left = testkit::record::left_behind(record);
    let mut rings = vec![0; queue.bytes()];
    memory.read(RAM, &mut rings);
    device.gate.open();
    let (done, end) = std::sync::mpsc::channel();
    transport.stop().then(move || done.send(()).unwrap_or_default());
    end.recv_timeout(std::time::Duration::from_secs(20)).expect("the process before ends");
    drop(transport);
    memory.write(RAM, &rings);
    copy(&left, record);
}

/// Puts one record's contents into the other: those pages that either has.
fn copy(from: &Record, to: &Record) {
    let mut page = [0; 4096];
    for at in (0..LEDGERS + 4096).step_by(page.len()) {
        pread(from, &mut page, at).unwrap();
        pwrite(to, &page, at).unwrap();
    }
}

impl Change {
    fn make(self, record: &Record, queue: &RawQueue, memory: &FakeForeignMemory) {
        let put = |bytes: &[u8], at: u64| {
            pwrite(record, bytes, at.min((16 << 20) - bytes.len() as u64)).unwrap();
        };
        match self {
            Self::Word { place, at, value } => put(&value.number().to_le_bytes(), place.offset(at) & !7),
            Self::Byte { place, at, byte } => put(&[byte], place.offset(at)),
            Self::Number { nth, value } => {
                let note = Noted::text(record);
                let places: Vec<_> = number_places(&note);
                if let Some((start, end)) = places.get(usize::from(nth) % places.len().max(1)) {
                    let number = value.number().to_string();
                    put_note(record, &[&note[..*start], number.as_bytes(), &note[*end..]].concat());
                }
            }
            Self::Note(note) => put_note(record, &note),
            Self::Used { at, value } => {
                let at = queue.used_ring() + u64::from(at % 130) / 4 * 4;
                memory.write(at, &value.to_le_bytes());
            }
        }
    }
}

/// Where the numbers of a text are.
fn number_places(text: &[u8]) -> Vec<(usize, usize)> {
    let is_digit = |at: usize| text.get(at).is_some_and(u8::is_ascii_digit);
    let starts = (0..text.len()).filter(|at| is_digit(*at) && (*at == 0 || !is_digit(at - 1)));
    starts.map(|start| (start, (start..).find(|at| !is_digit(*at)).unwrap_or(text.len()))).collect()
}

fn word(record: &Record, at: u64) -> u64 {
    let mut bytes = [0; 8];
    pread(record, &mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// Puts a note where the one is that counts.
fn put_note(record: &Record, note: &[u8]) {
    let side = SIDES[(word(record, MEMO) & 1) as usize];
    let note = &note[..note.len().min((32 << 10) - 8)];
    pwrite(record, &(note.len() as u64).to_le_bytes(), side).unwrap();
    pwrite(record, note, side + 8).unwrap();
}

/// What the note of the transport says, read in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    Nothing,
    /// Status, by the look of it.
    Status(u64),
    Nonsense,
}

impl Noted {
    fn text(record: &Record) -> Vec<u8> {
        let side = SIDES[(word(record, MEMO) & 1) as usize];
        let len = word(record, side).min((32 << 10) - 8);
        let mut text = vec![0; len as usize];
        pread(record, &mut text, side + 8).unwrap();
        text
    }

    fn read(record: &Record) -> Self {
        if word(record, MEMO) == 0 {
            return Self::Nothing;
        }
        let too_long = word(record, SIDES[(word(record, MEMO) & 1) as usize]) > (32 << 10) - 8;
        let value = serde_json::from_slice::<serde_json::Value>(&Self::text(record)).ok().filter(|_| !too_long);
        match value.and_then(|value| value.get("status")?.as_u64()) {
            Some(status) => Self::Status(status),
            None => Self::Nonsense,
        }
    }
}

fn follow(noted: Noted, memory: &FakeForeignMemory, queue: &RawQueue, record: &Record) {
    let wreck = Wreck::new(record, Arc::new(NoLine));
    assert_ne!(wreck.status() & status::DEVICE_NEEDS_RESET, 0, "a device that was given up seems well");
    let device = Arc::new(TestDevice::new(Behaviour::Echo));
    let cache = MapCache::new(memory.clone(), Budget::default());
    let transport = Transport::recorded(device, Arc::new(NoLine), cache, "after", record.clone()).unwrap();
    let shown = transport.status();
    match noted {
        Noted::Nothing => assert_eq!(shown, 0),
        Noted::Nonsense => assert_ne!(shown & status::DEVICE_NEEDS_RESET, 0, "{shown:#x}"),
        Noted::Status(status) if status & u64::from(status::DRIVER_OK) != 0 => {
            assert_ne!(shown & status::DRIVER_OK, 0, "{shown:#x}, and {status:#x} is noted");
        }
        Noted::Status(_) => {}
    }
    transport.reset();
    assert_eq!(transport.status(), 0);
    queue.clear();
    transport.bring_up(VERSION_1, queue);
    memory.write(BUFFERS, b"well");
    queue.write_chain(0, &[Descriptor::readable(BUFFERS, 4), Descriptor::writable(BUFFERS + 64, 4)]);
    queue.publish(0);
    transport.notify(0);
    assert_eq!(queue.wait_used(1).len, 4);
    let mut echo = [0; 4];
    memory.read(BUFFERS + 64, &mut echo);
    assert_eq!(&echo, b"well");
    assert_eq!(transport.read(Register::DeviceId), 42);
}
