//! The register file of one device, as the bus sees it.
//!
//! Accesses come from the thread that serves the guest's traps. None of them does I/O or waits: a
//! kick is an eventfd write, and a write that takes effect later says so by [`Written::Later`].
//! Accesses that the driver must not make read zero or do nothing, and are counted.

use std::io;
use std::sync::Arc;

use guest_memory::MapCache;
use io_bus::{Deferral, Device, Written, defer};
use virtio_backend::{Backend, ConfigSpace, Lane, Operation, Record, Signals};

use crate::counters::count;
use crate::doorbell::Doorbell;
use crate::features::Features;
use crate::interrupt::Interrupt;
use crate::queue::{Area, Half};
use crate::registers::{CONFIG_START, Readable, Writable};
use crate::state::State;
use crate::{Counters, DriverState, InterruptLine};

/// "virt".
pub(crate) const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");

/// The register layout of virtio 1.0 and later; 1 is legacy.
pub(crate) const VERSION: u32 = 2;

/// Drivers do nothing with it but show it; the specification gives out no numbers.
pub(crate) const VENDOR_ID: u32 = u32::from_le_bytes(*b"xvio");

/// A device behind virtio-mmio registers: a window of 0x100 bytes of registers and, from there to
/// the window's end, configuration space.
///
/// Dropping it stops the device without waiting for its end; see [`Transport::stop`].
pub struct Transport {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) cache: Arc<MapCache>,
    pub(crate) state: Arc<State>,
    pub(crate) doorbell: Doorbell,
    pub(crate) lane_counters: Arc<virtio_backend::Counters>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) record: Record,
    config: ConfigSpace,
    /// In a former process, the last that it noted.
    was_in_use: bool,
}

impl Transport {
    /// Puts a register file before `backend`, which is new to its driver. `name` is for logs and for the names of threads.
    ///
    /// # Errors
    /// The process has no more descriptors or memory; each queue needs one, and the record.
    pub fn new(
        backend: Arc<dyn Backend>,
        line: Arc<dyn InterruptLine>,
        cache: Arc<MapCache>,
        name: &str,
    ) -> io::Result<Arc<Self>> {
        Self::recorded(backend, line, cache, name, Record::new()?)
    }

    /// Puts a register file before `backend`, and keeps in `record` what a process that follows needs to go on. If a former
    /// process has left a device in there, this is the same one: if its driver uses it, it runs when this returns, and does
    /// again what was in flight.
    ///
    /// # Errors
    /// The process has no more descriptors, of which each queue needs one; or the record has no room for the queues.
    pub fn recorded(
        backend: Arc<dyn Backend>,
        line: Arc<dyn InterruptLine>,
        cache: Arc<MapCache>,
        name: &str,
        record: Record,
    ) -> io::Result<Arc<Self>> {
        if record.ledgers(&backend.identity().queue_sizes).is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "The device's queues have too many entries"));
        }
        let counters = Arc::<Counters>::default();
        let doorbell = Doorbell::new(backend.identity().queue_sizes.len())?;
        let interrupt = Interrupt::new(line, Arc::clone(&counters));
        // A thread's name is a C string.
        let name = name.replace('\0', "");
        let state = State::new(name, backend.identity(), features(&backend, &cache), interrupt, record.transport());
        backend.keep(&record);
        backend.attach(Arc::clone(&state) as Arc<dyn Signals>);
        let config = ConfigSpace::new(Arc::clone(&backend));
        let lane_counters = Arc::default();
        let mut transport =
            Self { backend, cache, state, doorbell, lane_counters, counters, record, config, was_in_use: false };
        transport.follow();
        transport.was_in_use = transport.state() != DriverState::Reset;
        Ok(Arc::new(transport))
    }

    /// Stops the device for good. When the deferral is complete nothing is in flight and no guest
    /// memory is held; a reset that the driver has asked for is then done, too.
    pub fn stop(&self) -> Deferral {
        match self.state.remove() {
            Written::Later(deferral) => deferral,
            Written::Now => defer().1,
        }
    }

    /// Lets go of guest memory that no request holds, for what was invalidated to be unmapped even
    /// if the device idles. Returns at once; the lanes do it.
    pub fn release_memory(&self) {
        self.state.registers().lanes().iter().for_each(Lane::release_memory);
    }

    /// Does what the operator asks of the device.
    ///
    /// # Errors
    /// Why it does not, for the operator to read.
    pub fn operate(&self, operation: Operation) -> Result<(), String> {
        self.backend.operate(operation)
    }

    /// How far the driver has come.
    pub fn state(&self) -> DriverState {
        self.state.registers().status.into()
    }

    /// Whether a driver has ever read a register, here or, as far as that can be seen, in a former process.
    pub fn was_touched(&self) -> bool {
        self.was_in_use || self.counters.snapshot().register_reads > 0
    }

    /// What the register file, the lanes and the device itself have counted since they were made.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut pairs = self.counters.snapshot().pairs();
        pairs.extend(self.lane_counters.snapshot().pairs());
        pairs.extend(self.backend.counters());
        pairs
    }

    fn ignore(&self, offset: u64, len: usize) {
        count(&self.counters.ignored);
        tracing::debug!(name: "mmio.ignored", device = self.state.name(), offset, len);
    }
}

/// What is offered first: that of the device, and grants where they can be reached.
fn features(backend: &Arc<dyn Backend>, cache: &MapCache) -> Features {
    let features = Features::new(backend.identity().features);
    if cache.reaches_grants() { features.with_platform_access(!cache.reaches_frames()) } else { features }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // Lanes hold the state, and the state the lanes: without a stop neither would go.
        let _ended_later = self.stop();
    }
}

impl Device for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_START) {
            self.read_config(offset, data);
        } else {
            self.read_register(offset, data);
        }
        tracing::trace!(name: "mmio.read", device = self.state.name(), offset, ?data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Written {
        tracing::trace!(name: "mmio.write", device = self.state.name(), offset, ?data);
        let written = match offset.checked_sub(CONFIG_START) {
            Some(offset) => self.write_config(offset, data),
            None => self.write_register(offset, data),
        };
        written.unwrap_or_else(|| {
            self.ignore(offset, data.len());
            Written::Now
        })
    }
}

/// Configuration space.
impl Transport {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        count(&self.counters.config_reads);
        if let Err(fault) = self.config.read(offset, data) {
            self.state.needs_reset(&fault);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> Option<Written> {
        count(&self.counters.config_writes);
        match self.config.write(offset, data) {
            Ok(has_effect) => has_effect.then_some(Written::Now),
            Err(fault) => {
                self.state.needs_reset(&fault);
                Some(Written::Now)
            }
        }
    }
}

/// Registers that are read.
impl Transport {
    fn read_register(&self, offset: u64, data: &mut [u8]) {
        let register = Readable::at(offset, data.len());
        count(match register {
            Some(Readable::InterruptStatus) => &self.counters.interrupt_status_reads,
            _ => &self.counters.register_reads,
        });
        match register {
            Some(register) => data.copy_from_slice(&self.value_of(register).to_le_bytes()),
            None => {
                data.fill(0);
                self.ignore(offset, data.len());
            }
        }
    }

    fn value_of(&self, register: Readable) -> u32 {
        let registers = || self.state.registers();
        match register {
            Readable::MagicValue => MAGIC_VALUE,
            Readable::Version => VERSION,
            Readable::DeviceId => self.backend.identity().device_id,
            Readable::VendorId => VENDOR_ID,
            Readable::DeviceFeatures => registers().features.offered_word(),
            Readable::QueueNumMax => registers().queues.selected().map_or(0, |queue| queue.max_size().into()),
            Readable::QueueReady => registers().queues.selected().is_some_and(|queue| queue.reads_ready()).into(),
            Readable::QueueReset => registers().queues.selected().is_some_and(|queue| queue.reads_reset()).into(),
            Readable::InterruptStatus => self.state.interrupt.status(),
            Readable::Status => registers().status.bits(),
            Readable::ConfigGeneration => self.state.config_generation(),
            Readable::ShmLenLow | Readable::ShmLenHigh | Readable::ShmBaseLow | Readable::ShmBaseHigh => u32::MAX,
        }
    }
}

/// Registers that are written. `None` stands for a write without effect.
impl Transport {
    fn write_register(&self, offset: u64, data: &[u8]) -> Option<Written> {
        let register = Writable::at(offset, data.len());
        count(match register {
            Some(Writable::QueueNotify) => &self.counters.notifies,
            Some(Writable::InterruptAck) => &self.counters.interrupt_acks,
            _ => &self.counters.register_writes,
        });
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match register? {
            Writable::QueueNotify => self.kick(value)?,
            Writable::InterruptAck => self.state.interrupt.acknowledge(value),
            Writable::Status => return self.write_status(value),
            Writable::QueueReady => return self.write_queue_ready(value),
            Writable::QueueReset => self.write_queue_reset(value)?,
            Writable::DeviceFeaturesSel => self.state.noting()?.features.select_offered(value),
            Writable::DriverFeaturesSel => self.state.noting()?.features.select_accepted(value),
            Writable::DriverFeatures => self.state.noting()?.features_to_negotiate()?.accept_word(value),
            Writable::QueueSel => self.state.noting()?.queues.select(value),
            Writable::QueueNum => self.state.noting()?.queue_to_set_up()?.1.set_size(value),
            Writable::QueueDescLow => self.set_address(Area::Desc, Half::Low, value)?,
            Writable::QueueDescHigh => self.set_address(Area::Desc, Half::High, value)?,
            Writable::QueueDriverLow => self.set_address(Area::Driver, Half::Low, value)?,
            Writable::QueueDriverHigh => self.set_address(Area::Driver, Half::High, value)?,
            Writable::QueueDeviceLow => self.set_address(Area::Device, Half::Low, value)?,
            Writable::QueueDeviceHigh => self.set_address(Area::Device, Half::High, value)?,
            // Whatever the region, it does not exist.
            Writable::ShmSel => {}
        }
        Some(Written::Now)
    }

    /// Nothing is looked at before DRIVER_OK (§2.1.2), nor after either side has given up.
    fn kick(&self, queue: u32) -> Option<()> {
        let registers = self.state.registers();
        let is_heard = registers.status.is_live() && registers.queues.get(queue)?.is_ready();
        drop(registers);
        is_heard.then(|| self.doorbell.ring(queue))
    }

    fn set_address(&self, area: Area, half: Half, value: u32) -> Option<()> {
        self.state.noting()?.queue_to_set_up()?.1.set_address(area, half, value);
        Some(())
    }
}
