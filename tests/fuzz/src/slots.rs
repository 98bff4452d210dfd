//! Slots of the ioreq page with anything in them, before a pump.
//!
//! The guest has a device of plain memory in a window. Each round fills the slots of some vCPUs with requests, or with what
//! is none, signals some of them or one alone, and waits. Now and then the process that answers ends, with requests in its
//! hands, and another one goes on.
//!
//! - Every slot that is ready is answered, once; no other is touched. (`testkit` fails a state that goes backwards.)
//! - A read gives what the device has: nothing in the bits above its width, and all-ones where there is no device, or where
//!   what is asked for makes no sense. A write reaches the device whole, or not at all.
//! - Invalidations are counted, one by one.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Unstructured};
use io_bus::{Bus, Claim, Device, Space, Window, Written};
use ioreq::{Buffering, GuestRam, IoreqServer, MAX_COUNT, MappedWindow, NoRam, Pump};
use testkit::xen::{FakeChannels, FakeXen, Flags, Ioreq, STATE_INPROCESS, STATE_NONE, STATE_READY, STATE_RESPONSE};

const VCPUS: usize = 4;
const BASE: u64 = 0x0200_0000;
const LEN: usize = 0x40;

/// A page of guest memory, for operands.
const RAM: u64 = 0x4000_0000;
const RAM_LEN: usize = 64;

/// How many processes may follow each other.
const LIVES: usize = 3;

/// What happens in a round.
#[derive(Arbitrary, Debug)]
enum Round {
    /// These slots are filled, and some of those that are ready signal. One does in any case.
    Fill { slots: [Option<Slot>; VCPUS], signals: u8 },
    /// The process ends, and another one goes on with what it left.
    Follow { slots: [Option<Slot>; VCPUS] },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Slot {
    state: u8,
    addr: Addr,
    data: u64,
    in_ram: bool,
    count: Count,
    size: u8,
    odd_size: Option<u32>,
    kind: u8,
    read: bool,
    down: bool,
    pointer: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Addr {
    Window(u8),
    Near(u8),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Count {
    One,
    Few(u8),
    Any(u32),
}

impl Slot {
    fn request(&self) -> Ioreq {
        let addr = match self.addr {
            Addr::Window(at) => BASE + u64::from(at) % LEN as u64,
            Addr::Near(at) => BASE - 8 + u64::from(at),
            Addr::Any(addr) => addr,
        };
        let count = match self.count {
            Count::One => 1,
            Count::Few(count) => count.into(),
            Count::Any(count) => count,
        };
        let kind = match self.kind {
            0..128 => 1,
            128..160 => 8,
            kind => kind - 160,
        };
        Ioreq {
            addr,
            data: if self.in_ram { RAM + self.data % RAM_LEN as u64 } else { self.data },
            count,
            size: self.odd_size.unwrap_or(1 << (self.size % 4)),
            kind,
            flags: Flags { read: self.read, down: self.down, pointer: self.pointer },
        }
    }

    /// Mostly one that is to be answered.
    fn state(&self, taken: u8) -> u8 {
        match self.state {
            0..200 => taken,
            state => state % 4,
        }
    }
}

/// Bytes of a device, or of the guest's memory.
struct Cells<const N: usize>(Mutex<[u8; N]>);

impl Device for Cells<LEN> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Written {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Written::Now
    }
}

struct Ram {
    cells: Cells<RAM_LEN>,
    invalidations: AtomicU64,
}

impl GuestRam for Ram {
    fn invalidate(&self) {
        self.invalidations.fetch_add(1, SeqCst);
    }

    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), NoRam> {
        let start = ram_offset(gpa, data.len()).ok_or(NoRam(gpa))?;
        data.copy_from_slice(&self.cells.0.lock().unwrap()[start..][..data.len()]);
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), NoRam> {
        let start = ram_offset(gpa, data.len()).ok_or(NoRam(gpa))?;
        self.cells.0.lock().unwrap()[start..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn ram_offset(gpa: u64, len: usize) -> Option<usize> {
    let start = usize::try_from(gpa.checked_sub(RAM)?).ok()?;
    (start.checked_add(len)? <= RAM_LEN).then_some(start)
}

/// One process. Fields drop in order: the pump before the window, that before the server.
struct Process {
    _pump: Pump,
    channels: Arc<FakeChannels>,
    _window: MappedWindow,
    _claim: Claim,
    server: Arc<IoreqServer>,
}

struct Machine {
    process: Option<Process>,
    device: Arc<Cells<LEN>>,
    ram: Arc<Ram>,
    model: Model,
    lives: usize,
    xen: Arc<FakeXen>,
}

/// What device, memory and counter should be.
struct Model {
    device: [u8; LEN],
    ram: [u8; RAM_LEN],
    invalidations: u64,
}

/// Fills slots as `bytes` say.
///
/// # Panics
/// One of them was not answered as it should be.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let mut machine = Machine::new();
    while !source.is_empty() {
        let Ok(round) = Round::arbitrary(&mut source) else { break };
        match round {
            Round::Fill { slots, signals } => machine.fill(&slots, signals),
            Round::Follow { slots } => machine.follow(&slots),
        }
    }
}

impl Machine {
    fn new() -> Self {
        let xen = FakeXen::new(VCPUS as u32);
        let device = Arc::new(Cells(Mutex::new(std::array::from_fn(|at| at as u8))));
        let ram = Arc::new(Ram { cells: Cells(Mutex::new([7; RAM_LEN])), invalidations: AtomicU64::new(0) });
        let model = Model { device: std::array::from_fn(|at| at as u8), ram: [7; RAM_LEN], invalidations: 0 };
        let server = IoreqServer::create(xen.hypervisor(), Buffering::Off).unwrap();
        let mut machine = Self { process: None, device, ram, model, lives: 1, xen };
        machine.serve(server);
        // What a process takes over it has taken over then.
        machine.have_all_looked_at(0);
        machine
    }

    fn serve(&mut self, server: Arc<IoreqServer>) {
        let window = Window::new(Space::Mmio, BASE, LEN as u64).unwrap();
        let mapped = server.map(window).unwrap();
        let bus = Bus::new();
        let claim = bus.claim(window, Arc::clone(&self.device) as Arc<dyn Device>).unwrap();
        let channels = self.xen.channels();
        let events = Arc::clone(&channels);
        let pump = Pump::spawn(Arc::clone(&server), events as _, bus, Arc::clone(&self.ram) as _).unwrap();
        self.process = Some(Process { _pump: pump, channels, _window: mapped, _claim: claim, server });
    }

    /// A vCPU's request has the pump look at all others, too.
    fn have_all_looked_at(&self, vcpu: usize) {
        let slot = self.xen.slot(self.process().server.id(), vcpu);
        slot.put(Ioreq { addr: BASE, size: 1, ..Ioreq::default() }, STATE_READY);
        slot.signal();
        assert_eq!(slot.take_answer(), u64::from(self.model.device[0]));
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// Slots are filled first, and then signalled, so that one look may find any of them.
    fn fill(&mut self, slots: &[Option<Slot>; VCPUS], signals: u8) {
        let id = self.process().server.id();
        let filled: Vec<_> = slots.iter().enumerate().filter_map(|(vcpu, slot)| Some((vcpu, slot.as_ref()?))).collect();
        let states: Vec<_> = filled.iter().map(|(_, slot)| slot.state(STATE_READY)).collect();
        // One vCPU at a time: what they do to each other's registers has no order.
        for ((vcpu, slot), state) in filled.into_iter().zip(states) {
            let (raw, request) = (self.xen.slot(id, vcpu), slot.request());
            raw.put(request, state);
            if state == STATE_READY || signals & 1 << vcpu != 0 {
                raw.signal();
            }
            if state == STATE_READY {
                self.model.expect(&request, raw.take_answer());
            } else {
                self.have_all_looked_at((vcpu + 1) % VCPUS);
                assert_eq!(raw.get(), (state, request.data), "a slot that nobody asked with");
                raw.put(request, STATE_NONE);
            }
        }
        self.compare();
    }

    /// The next process finds slots that are ready, in the hands of the one before, or answered.
    fn follow(&mut self, slots: &[Option<Slot>; VCPUS]) {
        if self.lives == LIVES {
            return;
        }
        self.lives += 1;
        let id = self.process().server.id();
        let Some(process) = self.process.take() else { return };
        process.server.release();
        let channels = Arc::clone(&process.channels);
        drop(process);
        channels.close();
        // One alone has something to say, for the same reason as above.
        let found = slots.iter().enumerate().find_map(|(vcpu, slot)| Some((vcpu, slot.as_ref()?)));
        let found = found.map(|(vcpu, slot)| (vcpu, slot.request(), slot.state(STATE_INPROCESS)));
        if let Some((vcpu, request, state)) = found {
            self.xen.slot(id, vcpu).put(request, state);
        }
        self.serve(IoreqServer::attach(self.xen.hypervisor(), id, Buffering::Off).unwrap());
        if let Some((vcpu, request, state)) = found {
            let raw = self.xen.slot(id, vcpu);
            match state {
                STATE_READY | STATE_INPROCESS => self.model.expect(&request, raw.take_answer()),
                STATE_RESPONSE => assert_eq!(raw.take_answer(), request.data, "an answer that was given already"),
                _ => {}
            }
            self.have_all_looked_at((vcpu + 1) % VCPUS);
            let left = if state == STATE_NONE { (STATE_NONE, request.data) } else { (STATE_NONE, raw.get().1) };
            assert_eq!(raw.get(), left, "a slot that was answered, or that nobody asked with");
        } else {
            self.have_all_looked_at(0);
        }
        self.compare();
    }

    fn compare(&self) {
        assert_eq!(*self.device.0.lock().unwrap(), self.model.device, "the device's bytes");
        assert_eq!(*self.ram.cells.0.lock().unwrap(), self.model.ram, "the guest's memory");
        assert_eq!(self.ram.invalidations.load(SeqCst), self.model.invalidations);
    }
}

impl Model {
    /// Does what a request asks for, and compares what it was answered with.
    fn expect(&mut self, request: &Ioreq, answer: u64) {
        let given = self.perform(request);
        let expected = if request.flags.read && !request.flags.pointer { given } else { request.data };
        assert_eq!(answer, expected, "{request:x?}");
    }

    /// What a read gives.
    fn perform(&mut self, request: &Ioreq) -> u64 {
        let Ioreq { addr, data, count, size, kind, flags } = *request;
        let all_ones = match size {
            1 | 2 | 4 => (1 << (8 * size)) - 1,
            _ => u64::MAX,
        };
        if kind == 8 {
            self.invalidations += 1;
        }
        if !matches!(kind, 0..=2) || !matches!(size, 1 | 2 | 4 | 8) || !(1..=MAX_COUNT).contains(&count) {
            return all_ones;
        }
        let mut value = all_ones;
        for nth in 0..u64::from(count) {
            let step = if flags.down { (nth * u64::from(size)).wrapping_neg() } else { nth * u64::from(size) };
            let (at, operand) = (addr.wrapping_add(step), data.wrapping_add(step));
            let cell = window_offset(at, size as usize).filter(|_| kind == 1);
            if flags.read {
                value = cell.map_or(all_ones, |cell| little_endian(&self.device[cell..][..size as usize]));
                if flags.pointer {
                    let Some(start) = ram_offset(operand, size as usize) else { return all_ones };
                    self.ram[start..][..size as usize].copy_from_slice(&value.to_le_bytes()[..size as usize]);
                }
                continue;
            }
            let bytes = if flags.pointer {
                let Some(start) = ram_offset(operand, size as usize) else { return all_ones };
                self.ram[start..][..size as usize].to_vec()
            } else {
                data.to_le_bytes()[..size as usize].to_vec()
            };
            if let Some(cell) = cell {
                self.device[cell..][..size as usize].copy_from_slice(&bytes);
            }
        }
        value
    }
}

fn window_offset(addr: u64, len: usize) -> Option<usize> {
    let start = usize::try_from(addr.checked_sub(BASE)?).ok()?;
    (start.checked_add(len)? <= LEN).then_some(start)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
