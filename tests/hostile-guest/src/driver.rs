//! The steps of a driver, for moves to take right or wrong; and an honest use of each kind of device.
//!
//! The driver's memory has the queue in its first pages, then a page with what requests send, and the rest for what they
//! receive.

use crate::Machine;
use crate::machine::MEMORY;
use crate::registers::{
    CONFIG, DEVICE_FEATURES, DEVICE_FEATURES_SEL, DEVICE_ID, DRIVER_FEATURES, DRIVER_FEATURES_SEL, QUEUE_DESC,
    QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, STATUS, feature, id, status,
};

/// Entries of the queue.
pub const SIZE: u16 = 8;

/// Where things are in the driver's memory.
pub mod place {
    /// The descriptor table.
    pub const DESC: u64 = 0;
    /// The available ring.
    pub const AVAIL: u64 = 0x1000;
    /// The used ring.
    pub const USED: u64 = 0x2000;
    /// What is sent.
    pub const OUT: u64 = 0x3000;
    /// What is received.
    pub const IN: u64 = 0x4000;
    /// Tables of descriptors.
    pub const TABLE: u64 = 0x8000;
}

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Where the buffer is, as the device sees it.
    pub addr: u64,
    /// Its bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next descriptor's index.
    pub next: u16,
}

/// There is a next descriptor.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// It is a table.
pub const INDIRECT: u16 = 4;

impl Descriptor {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// How often the device is looked at before it is said to hang. A moment on a slow machine is a millisecond.
const PATIENCE: u32 = 30_000;

/// A driver of one device.
pub struct Driver<'a> {
    /// Where it runs.
    pub machine: &'a dyn Machine,
    /// The device's ID.
    pub device: u32,
}

impl<'a> Driver<'a> {
    /// Finds out what the device is.
    #[must_use]
    pub fn new(machine: &'a dyn Machine) -> Self {
        Self { machine, device: machine.read(DEVICE_ID, 4) as u32 }
    }

    /// Reads a register.
    #[must_use]
    pub fn get(&self, register: u64) -> u32 {
        self.machine.read(register, 4) as u32
    }

    /// Writes a register.
    pub fn set(&self, register: u64, value: u32) {
        self.machine.write(register, 4, value.into());
    }

    /// Writes both halves of an address.
    pub fn set_address(&self, register: u64, value: u64) {
        self.set(register, value as u32);
        self.set(register + 4, (value >> 32) as u32);
    }

    /// The guest address of a place in the driver's memory.
    #[must_use]
    pub fn at(&self, place: u64) -> u64 {
        self.machine.memory() + place
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), String> {
        for _ in 0..PATIENCE {
            if is_so() {
                return Ok(());
            }
            self.machine.pause();
        }
        Err(format!("it never comes that {what}"))
    }

    /// Resets the device.
    ///
    /// # Errors
    /// It does not come to rest.
    pub fn reset(&self) -> Result<(), String> {
        self.set(STATUS, 0);
        self.wait("a reset ends", || self.get(STATUS) == 0)
    }

    /// What the device offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let word = |select| {
            self.set(DEVICE_FEATURES_SEL, select);
            u64::from(self.get(DEVICE_FEATURES))
        };
        word(0) | word(1) << 32
    }

    /// Accepts features, whatever they are.
    pub fn accept(&self, features: u64) {
        self.set(DRIVER_FEATURES_SEL, 0);
        self.set(DRIVER_FEATURES, features as u32);
        self.set(DRIVER_FEATURES_SEL, 1);
        self.set(DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// Features that moves may want, as far as they are offered.
    #[must_use]
    pub fn usual_features(&self) -> u64 {
        self.offered() & (feature::VERSION_1 | feature::INDIRECT_DESC | feature::RING_RESET)
    }

    /// From reset to agreed features, as it should be.
    ///
    /// # Errors
    /// The device does not agree.
    pub fn negotiate(&self, features: u64) -> Result<(), String> {
        self.reset()?;
        self.set(STATUS, status::ACKNOWLEDGE);
        self.set(STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.accept(features);
        self.set(STATUS, AGREED);
        if self.get(STATUS) & status::FEATURES_OK == 0 {
            return Err(format!("the device does not agree to features {features:#x}"));
        }
        Ok(())
    }

    /// The queue that carries what the driver sends.
    #[must_use]
    pub fn queue(&self) -> u32 {
        match self.device {
            id::NET | id::CONSOLE | id::SOCKET => 1,
            _ => 0,
        }
    }

    /// An empty queue in the driver's memory; the device knows nothing of it yet.
    pub fn clear_queue(&self) {
        self.machine.store(place::DESC, &[0; 0x3000]);
    }

    /// Tells the device where the queue is.
    pub fn place_queue(&self, size: u32, desc: u64, driver: u64, device: u64) {
        self.set(QUEUE_SEL, self.queue());
        self.set(QUEUE_NUM, size);
        self.set_address(QUEUE_DESC, desc);
        self.set_address(QUEUE_DRIVER, driver);
        self.set_address(QUEUE_DEVICE, device);
    }

    /// A device in use, with an empty queue.
    ///
    /// # Errors
    /// It does not let itself be set up.
    pub fn start(&self) -> Result<(), String> {
        self.negotiate(self.usual_features())?;
        self.clear_queue();
        self.place_queue(SIZE.into(), self.at(place::DESC), self.at(place::AVAIL), self.at(place::USED));
        self.set(QUEUE_READY, 1);
        self.set(STATUS, RUNNING);
        match self.get(STATUS) {
            RUNNING => Ok(()),
            other => Err(format!("a device that was set up has status {other:#x}")),
        }
    }

    /// Writes a descriptor.
    pub fn describe(&self, slot: u16, descriptor: Descriptor) {
        self.machine.store(place::DESC + 16 * u64::from(slot), &descriptor.bytes());
    }

    /// Writes a table of descriptors, and gives the descriptor of it.
    #[must_use]
    pub fn table(&self, descriptors: &[Descriptor]) -> Descriptor {
        let bytes: Vec<u8> = descriptors.iter().flat_map(|descriptor| descriptor.bytes()).collect();
        self.machine.store(place::TABLE, &bytes);
        Descriptor { addr: self.at(place::TABLE), len: bytes.len() as u32, flags: INDIRECT, next: 0 }
    }

    /// Puts heads into the available ring behind those that are there, and makes them known.
    pub fn offer(&self, heads: &[u16]) {
        let mut index = self.index(place::AVAIL);
        for head in heads {
            self.machine.store(place::AVAIL + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
            index = index.wrapping_add(1);
        }
        self.set_index(index);
    }

    /// Sets the available ring's index.
    pub fn set_index(&self, index: u16) {
        self.machine.store(place::AVAIL + 2, &index.to_le_bytes());
    }

    /// The index of a ring.
    #[must_use]
    pub fn index(&self, ring: u64) -> u16 {
        let mut index = [0; 2];
        self.machine.load(ring + 2, &mut index);
        u16::from_le_bytes(index)
    }

    /// Kicks the queue.
    pub fn kick(&self) {
        self.set(QUEUE_NOTIFY, self.queue());
    }

    /// Whether the device asks for a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.get(STATUS) & status::NEEDS_RESET != 0
    }

    /// Waits until the device has used so many buffers, or asks for a reset.
    ///
    /// # Errors
    /// Neither comes.
    pub fn used_or_broken(&self, count: u16) -> Result<(), String> {
        self.wait("the device answers, or asks for a reset", || self.index(place::USED) >= count || self.needs_reset())
    }

    /// Waits until the device asks for a reset.
    ///
    /// # Errors
    /// It does not.
    pub fn broken(&self) -> Result<(), String> {
        self.wait("the device asks for a reset", || self.needs_reset())
    }

    /// Descriptors of a request that is right.
    #[must_use]
    pub fn request(&self) -> Vec<Descriptor> {
        let readable = |len| Descriptor { addr: self.at(place::OUT), len, flags: 0, next: 0 };
        let writable = |at, len| Descriptor { addr: self.at(place::IN + at), len, flags: WRITE, next: 0 };
        let mut out = [0; 64];
        let descriptors = match self.device {
            // The first sector, with type IN.
            id::BLOCK => vec![readable(16), writable(0, 512), writable(512, 1)],
            // A header and a frame to nobody.
            id::NET => vec![readable(12 + 42)],
            id::ENTROPY => vec![writable(0, 16)],
            id::SOCKET => {
                self.fill_socket_header(&mut out);
                vec![readable(44)]
            }
            _ => vec![readable(1)],
        };
        if self.device == id::CONSOLE {
            out[0] = b'.';
        }
        self.machine.store(place::OUT, &out);
        self.machine.store(place::IN, &[0xff; 1024]);
        descriptors
    }

    /// A reset of a connection that there is not, from our CID to the host.
    fn fill_socket_header(&self, header: &mut [u8]) {
        for (at, byte) in header[..8].iter_mut().enumerate() {
            *byte = self.machine.read(CONFIG + at as u64, 1) as u8;
        }
        header[8] = 2;
        header[16] = 1;
        header[28] = 1;
        header[30] = 3;
    }

    /// Writes a chain of these, one after the other from `first`; each is told of the next.
    pub fn write_chain(&self, first: u16, descriptors: &[Descriptor]) {
        let last = descriptors.len() - 1;
        for (slot, (at, descriptor)) in (first..).zip(descriptors.iter().enumerate()) {
            let (flags, next) = if at < last { (descriptor.flags | NEXT, slot + 1) } else { (descriptor.flags, 0) };
            self.describe(slot, Descriptor { flags, next, ..*descriptor });
        }
    }

    /// Resets the device, sets it up and uses it as one should.
    ///
    /// # Errors
    /// It does not do what it is for.
    pub fn honest(&self) -> Result<(), String> {
        self.start()?;
        self.write_chain(0, &self.request());
        self.offer(&[0]);
        self.kick();
        self.wait("an honest request is answered", || self.index(place::USED) == 1)?;
        if self.needs_reset() {
            return Err("the device asks for a reset after an honest request".to_owned());
        }
        let mut status = [0];
        self.machine.load(place::IN + 512, &mut status);
        if self.device == id::BLOCK && status != [0] {
            return Err(format!("an honest read ends with status {status:?}"));
        }
        Ok(())
    }

    /// Guest addresses where there is no memory of the guest's, or not all that is asked for: with words for each.
    #[must_use]
    pub fn nowhere(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("in a hole", 0x10_0000),
            ("in the device's own registers", self.machine.window()),
            ("at 2^48", 1 << 48),
            ("at 2^52", 1 << 52),
            ("at the end of all addresses", u64::MAX - 15),
        ]
    }

    /// Where the driver's memory ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at(MEMORY as u64)
    }
}

/// The status of a driver that has agreed on features.
pub const AGREED: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
/// The status of a driver that uses the device.
pub const RUNNING: u32 = AGREED | status::DRIVER_OK;
