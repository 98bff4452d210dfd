//! Where Xen and devices meet: everything a guest's worker is made of, put together.
//!
//! One IOREQ server and one pump for the guest; one bus that the pump carries accesses to; caches of the guest's pages
//! that the lanes share. Each device is a backend behind a virtio-mmio transport, with a window that is claimed on the
//! bus before Xen sends accesses there, perhaps before the device itself is ready, and an interrupt line.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use io_bus::{Bus, Claim, Space, Window};
use ioreq::{Buffering, CloseError, EventChannels, GuestRam, Hypervisor, IoreqServer, MappedWindow, Pump, ServerId};
use rustix::io::Errno;
use virtio_backend::{Backend, Operation, Record};
use virtio_mmio::{Placeholder, Transport, Wreck};

use super::caches::{Caches, GuestPages};
use super::errands::Errands;
use super::interrupt::XenLine;
use crate::model::{Device, DeviceId, Place, WINDOW_BYTES};
use crate::protocol::{Counter, DeviceReport, Former, Report, ReservedWindow};

/// How long devices may take to come to rest when the worker ends all at once.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A guest that is served.
pub(super) struct Guest {
    // In the order in which they are to end.
    devices: BTreeMap<DeviceId, Held>,
    pump: Pump,
    server: Arc<IoreqServer>,
    caches: Arc<Caches>,
    bus: Arc<Bus>,
    hypervisor: Arc<dyn Hypervisor>,
    errands: Errands,
}

/// A window that is held. Xen stops sending accesses before the bus stops taking them.
struct Held {
    _mapped: MappedWindow,
    claim: Claim,
    /// The device in it; none before it is attached, if there will be none, and after it is gone.
    transport: Option<Arc<Transport>>,
}

impl Guest {
    /// Makes the guest's IOREQ server and serves it; it has no windows yet. Where a former worker died it goes on with that
    /// one's server instead, and what the guest does in its windows waits. `None`: that guest has ended meanwhile. The
    /// server's id is told to `created` before anything comes to it.
    ///
    /// # Errors
    /// Xen or the kernel refuses. Nothing stays behind, and what a former worker left is as it was.
    pub(super) fn start(
        hypervisor: Arc<dyn Hypervisor>,
        events: Arc<dyn EventChannels>,
        pages: impl GuestPages,
        errands: Errands,
        former: Option<Former>,
        created: impl FnOnce(u16),
    ) -> anyhow::Result<Option<Self>> {
        let (bus, caches) = (Bus::new(), Caches::new(pages));
        let (server, devices) = match former {
            None => (IoreqServer::create(Arc::clone(&hypervisor), Buffering::Off)?, BTreeMap::new()),
            Some(former) => match follow(&hypervisor, &bus, &former) {
                Err(_) if !has_server(hypervisor.as_ref(), ServerId(former.server)) => return Ok(None),
                followed => followed.context("Cannot go on where the guest's former worker was")?,
            },
        };
        created(server.id().0);
        let memory = Arc::new(Memory { caches: Arc::clone(&caches), errands: errands.clone() });
        let pump = Pump::spawn(Arc::clone(&server), events, Arc::clone(&bus), memory)?;
        Ok(Some(Self { devices, pump, server, caches, bus, hypervisor, errands }))
    }

    /// Claims a device's window: accesses to it wait from now on, until it is [filled](Self::attach),
    /// [vacated](Self::vacate) or [removed](Self::remove).
    ///
    /// # Errors
    /// The window is taken or Xen refuses it; nothing of it stays behind, and what the device had elsewhere is as it was.
    pub(super) fn reserve(&mut self, id: DeviceId, place: Place) -> anyhow::Result<()> {
        self.window(id, place).map(drop)
    }

    /// The window of a device that is to come, claimed there.
    fn window(&mut self, id: DeviceId, place: Place) -> anyhow::Result<&mut Held> {
        let window = window_at(place)?;
        Ok(match self.devices.entry(id) {
            Entry::Occupied(held) if held.get().transport.is_some() => bail!("The device is served already"),
            Entry::Occupied(held) if held.get().claim.window() == window => held.into_mut(),
            // One that it had elsewhere is let go of when it has this one.
            entry => entry.insert_entry(Held::reserve(&self.bus, &self.server, window)?).into_mut(),
        })
    }

    /// Shows the guest that there is no device in a reserved window.
    pub(super) fn vacate(&self, id: DeviceId) {
        if let Some(Held { claim, transport: None, .. }) = self.devices.get(&id) {
            claim.fill(Arc::new(Placeholder));
        }
    }

    /// Serves a device, from where its record says that it was left: when this returns, the guest may touch it. `gntdev`
    /// comes with one that may use grants.
    ///
    /// # Errors
    /// It is served already, its window is taken or Xen refuses it; nothing of it stays behind but its reservation.
    pub(super) fn attach(
        &mut self,
        device: &Device,
        backend: Arc<dyn Backend>,
        gntdev: Option<OwnedFd>,
        record: Record,
    ) -> anyhow::Result<()> {
        let Device { id, place, grants, name, .. } = device;
        let line = Arc::new(XenLine::new(&self.hypervisor, place.irq));
        let transport = Transport::recorded(backend, line, self.caches.of(*grants, gntdev)?, name, record)?;
        let held = self.window(*id, *place)?;
        held.claim.fill(Arc::clone(&transport) as Arc<dyn io_bus::Device>);
        held.transport = Some(transport);
        Ok(())
    }

    /// Puts into a device's window what answers for one that is given up.
    ///
    /// # Errors
    /// The window is taken or Xen refuses it; nothing of it stays behind but its reservation.
    pub(super) fn give_up(&mut self, id: DeviceId, place: Place, record: &Record) -> anyhow::Result<()> {
        let line = Arc::new(XenLine::new(&self.hypervisor, place.irq));
        self.window(id, place)?.claim.fill(Wreck::new(record, line));
        Ok(())
    }

    /// Does what the operator asks of a device.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn operate(&self, id: DeviceId, operation: Operation) -> Result<(), String> {
        let transport = self.devices.get(&id).and_then(|held| held.transport.as_ref());
        transport.ok_or("There is no such device any more")?.operate(operation)
    }

    /// Tells a device to stop. Its id is left with the errands when it has nothing in flight any more; until it is
    /// [removed](Self::remove) its registers answer.
    pub(super) fn stop_device(&self, id: DeviceId) {
        let errands = self.errands.clone();
        match self.devices.get(&id).and_then(|held| held.transport.as_ref()) {
            Some(transport) => transport.stop().then(move || errands.came_to_rest(id)),
            None => errands.came_to_rest(id),
        }
    }

    /// Takes away a device that has come to rest, closes what it had of the host, and unmaps what was mapped for it. Says
    /// whether the guest had touched it. If it lives on, it finds no device in the window, as an access to none at all
    /// would be its end.
    pub(super) fn remove(&mut self, id: DeviceId) -> bool {
        self.leave_the_dead();
        let transport = self.devices.get_mut(&id).and_then(|held| held.transport.take());
        match (&transport, self.devices.get(&id)) {
            (Some(_), Some(held)) => held.claim.fill(Arc::new(Placeholder)),
            _ => drop(self.devices.remove(&id)),
        }
        let was_used = transport.is_none_or(|transport| transport.was_touched());
        // Mappings do not know for which device they were made; the others map again what they need.
        self.caches.invalidate();
        self.unmap_stale();
        was_used
    }

    /// Whether it has no device.
    pub(super) fn is_idle(&self) -> bool {
        self.devices.is_empty()
    }

    /// Whether Xen still has our IOREQ server: it ends with the guest.
    pub(super) fn is_alive(&self) -> bool {
        has_server(self.hypervisor.as_ref(), self.server.id())
    }

    /// Unmaps guest memory that went stale and that no request holds, even if its devices idle.
    pub(super) fn unmap_stale(&self) {
        self.transports().for_each(|(_, transport)| transport.release_memory());
        self.caches.sweep();
    }

    /// How it is going.
    pub(super) fn report(&self) -> Report {
        let devices = self.transports().map(|(id, transport)| DeviceReport {
            id,
            state: transport.state().to_string(),
            counters: transport.counters().into_iter().map(|(name, n)| Counter::new(name, n)).collect(),
        });
        Report { alive: self.is_alive(), counters: self.counters(), devices: devices.collect() }
    }

    fn transports(&self) -> impl Iterator<Item = (DeviceId, &Arc<Transport>)> {
        self.devices.iter().filter_map(|(id, held)| Some((*id, held.transport.as_ref()?)))
    }

    /// Ends everything: devices, then the pump, then the IOREQ server.
    ///
    /// # Errors
    /// Xen does not destroy the server.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.rest_all();
        self.leave_the_dead();
        let Self { devices, pump, server, .. } = self;
        drop(devices);
        pump.stop();
        match server.close() {
            // `xl destroy` pauses the guest first, perhaps before a vCPU has picked its answer up.
            Err(error @ CloseError::InUse { .. }) => {
                tracing::info!(name: "worker.server_left", %error, "Xen destroys the IOREQ server with the guest");
                server.release();
                Ok(())
            }
            closed => Ok(closed?),
        }
    }

    /// A guest that ended took our IOREQ server with it: there is nothing to give back.
    fn leave_the_dead(&self) {
        if !self.is_alive() {
            self.server.release();
        }
    }

    fn rest_all(&self) {
        let (at_rest, ended) = mpsc::channel::<()>();
        for (_, transport) in self.transports() {
            let at_rest = at_rest.clone();
            transport.stop().then(move || drop(at_rest));
        }
        drop(at_rest);
        // Nothing is ever sent: it ends when the last of them is dropped.
        if ended.recv_timeout(STOP_PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(name: "worker.restless", "A device did not come to rest in time");
        }
    }

    fn counters(&self) -> Vec<Counter> {
        let ioreq::Counts {
            requests,
            reads,
            writes,
            posted_writes: _,
            invalidations,
            bad_requests,
            unclaimed,
            panics,
            spurious_wakes,
            overflows,
            failed_signals,
        } = self.pump.counts();
        let pairs = [
            ("traps", requests),
            ("trap_reads", reads),
            ("trap_writes", writes),
            ("invalidations", invalidations),
            ("bad_requests", bad_requests),
            ("unclaimed_accesses", unclaimed),
            ("panics", panics),
            ("spurious_wakes", spurious_wakes),
            ("overflows", overflows),
            ("failed_signals", failed_signals),
        ];
        let pump = pairs.map(|(name, value)| Counter::new(name, value));
        pump.into_iter().chain(self.caches.counters()).collect()
    }
}

impl Held {
    fn reserve(bus: &Arc<Bus>, server: &Arc<IoreqServer>, window: Window) -> anyhow::Result<Self> {
        let claim = bus.reserve(window)?;
        Ok(Self { _mapped: server.map(window)?, claim, transport: None })
    }
}

fn window_at(place: Place) -> anyhow::Result<Window> {
    Window::new(Space::Mmio, place.base, WINDOW_BYTES).context("Its registers have no place")
}

/// Takes over what a former worker left: its server, and all its windows before anything can come from there.
fn follow(
    hypervisor: &Arc<dyn Hypervisor>,
    bus: &Arc<Bus>,
    former: &Former,
) -> anyhow::Result<(Arc<IoreqServer>, BTreeMap<DeviceId, Held>)> {
    let server = IoreqServer::attach(Arc::clone(hypervisor), ServerId(former.server), Buffering::Off)?;
    let held = |window: &ReservedWindow| Ok((window.id, Held::reserve(bus, &server, window_at(window.place)?)?));
    let devices = former.windows.iter().map(held).collect::<anyhow::Result<_>>()?;
    Ok((server, devices))
}

/// Whether Xen has this IOREQ server, which is to be enabled.
fn has_server(hypervisor: &dyn Hypervisor, server: ServerId) -> bool {
    let asked = hypervisor.set_enabled(server, true);
    !asked.is_err_and(|error| error.guest_is_gone() || error.errno() == Errno::NOENT)
}

/// The guest's memory, as the pump knows it. Without string instructions to memory, of which Arm has none.
struct Memory {
    caches: Arc<Caches>,
    errands: Errands,
}

impl GuestRam for Memory {
    fn invalidate(&self) {
        self.caches.invalidate();
        self.errands.memory_went_stale();
    }
}
