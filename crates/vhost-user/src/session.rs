//! What a front-end's messages do. The crate `vhost` has parsed each and checked its form, its size and how many
//! descriptors came with it; an error returned from here ends the connection.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::View;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_backend::{Fault, QueueSetup, features, guarded};
use vm_memory::{Bytes, GuestAddress};

use crate::channel::Channel;
use crate::device::{Device, PROTOCOL_FEATURES};
use crate::eventfd;
use crate::lanes::Lanes;
use crate::memory::{Memory, REGIONS_MAX};
use crate::vring::{Addresses, Vring};

/// What is spoken here. What is not: resuming after a crash (INFLIGHT_SHMFD), live migration, and a status, which
/// `vhost` does not know.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::BACKEND_REQ);

/// One connection's state: what its front-end has set up, and what runs because of it.
pub(crate) struct Session {
    device: Arc<Device>,
    memory: Memory,
    vrings: Vec<Vring>,
    lanes: Lanes,
    /// Those that the driver accepted, if they are a set that will do.
    features: Option<u64>,
    /// What the message brings that is to be handled next.
    announced: Option<Channel>,
}

impl Session {
    pub(crate) fn new(device: Arc<Device>) -> Result<Self> {
        let memory = Memory::new()?;
        let vrings = device.identity().queue_sizes.iter().map(|&max_size| Vring::new(max_size)).collect();
        let lanes = Lanes::new(device.clone(), memory.cache().clone());
        Ok(Self { device, memory, vrings, lanes, features: None, announced: None })
    }

    /// The next message brings this channel, whose descriptor `vhost` does not hand on; or none.
    pub(crate) fn announce(&mut self, channel: Option<Channel>) {
        self.announced = channel;
    }

    /// Stops everything. When it returns nothing is in flight, and nothing will be.
    pub(crate) fn end(&mut self) {
        self.features = None;
        self.stop_all();
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = usize::try_from(index).ok().and_then(|index| self.vrings.get_mut(index));
        vring.ok_or_else(|| refuse(format!("There is no ring {index}")))
    }

    /// Starts or stops a ring if what was said of it asks for that.
    fn reconcile(&mut self, queue: usize) {
        let Some(vring) = self.vrings.get_mut(queue) else { return };
        match (self.features.zip(vring.wanted()), self.lanes.has(queue)) {
            (Some((features, (at, kick))), false) => {
                let next_used = used_index(&self.memory, at.used_ring);
                let event_idx = features & features::EVENT_IDX != 0;
                let ring = vring.setup(at, next_used, event_idx, self.device.identity().max_chain_bytes);
                tracing::debug!(name: "vhost.start", device = self.device.name, queue, ?ring);
                self.lanes.start(queue, QueueSetup { ring, ledger: None, kick }, features);
            }
            (None, true) => {
                vring.base = self.lanes.stop(queue).unwrap_or(vring.base);
                tracing::debug!(name: "vhost.stop", device = self.device.name, queue, base = vring.base);
            }
            _ => {}
        }
    }

    fn reconcile_all(&mut self) {
        (0..self.vrings.len()).for_each(|queue| self.reconcile(queue));
    }

    fn stop_all(&mut self) {
        self.vrings.iter_mut().for_each(|vring| vring.enabled = false);
        self.lanes.begin_end();
        self.reconcile_all();
    }

    fn guest_address(&self, index: u32, user: u64) -> Result<u64> {
        let what = || refuse(format!("Ring {index} lies at {user:#x}, which is in no memory region"));
        self.memory.guest_address(user).ok_or_else(what)
    }

    /// The features as lanes and backends know them, if they will do.
    fn judge(&self, accepted: u64) -> Option<u64> {
        let accepted = accepted & !PROTOCOL_FEATURES;
        let is_whole = features::are_acceptable(accepted, self.device.offered_features());
        let agreed = guarded(|| Ok(is_whole && self.device.backend.accepts(accepted)));
        match agreed {
            Ok(true) => return Some(accepted),
            Ok(false) => {
                let (device, features) = (&self.device.name, format_args!("{accepted:#x}"));
                tracing::warn!(name: "vhost.features", device, %features, "The device cannot work with these features");
            }
            Err(fault) => self.device_failed(&fault),
        }
        None
    }

    /// Tells the device what was agreed upon; false if it cannot take it.
    fn agree(&self, features: u64) -> bool {
        let told = guarded(|| {
            self.device.backend.negotiated(features);
            Ok(())
        });
        told.inspect_err(|fault| self.device_failed(fault)).is_ok()
    }

    fn device_failed(&self, fault: &Fault) {
        self.device.line.report(fault, 0..self.vrings.len());
    }
}

/// Where the device's side of a ring stands: only the ring itself says it. What cannot be read is judged by the lane.
fn used_index(memory: &Memory, used_ring: u64) -> u16 {
    /// Behind 16 bits of flags (virtio 1.2 §2.7.8).
    const INDEX: u64 = 2;
    let view = View::new(memory.cache().clone());
    let index = view.load::<u16>(GuestAddress(used_ring.saturating_add(INDEX)), Ordering::Acquire);
    index.map_or(0, u16::from_le)
}

fn refuse(what: impl Into<String>) -> Error {
    Error::ReqHandlerError(io::Error::other(what.into()))
}

fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("it was not offered"))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated; the specification recommends this reading of it.
    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.features = None;
        self.vrings.iter_mut().for_each(|vring| vring.base = 0);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.offered_features())
    }

    fn set_features(&mut self, accepted: u64) -> Result<()> {
        let foreign = accepted & !self.device.offered_features();
        if foreign != 0 {
            return Err(refuse(format!("The features {foreign:#x} were not offered")));
        }
        let judged = self.judge(accepted);
        if judged != self.features {
            // Lanes and workers have the features that they were started with.
            self.features = None;
            self.lanes.begin_end();
            self.reconcile_all();
            self.features = judged.filter(|&features| self.agree(features));
        }
        // A front-end that knows no protocol features does not enable rings one by one.
        if accepted & PROTOCOL_FEATURES == 0 {
            self.vrings.iter_mut().for_each(|vring| vring.enabled = true);
        }
        self.reconcile_all();
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, accepted: u64) -> Result<()> {
        let foreign = accepted & !PROTOCOL.bits();
        if foreign != 0 {
            return Err(refuse(format!("The protocol features {foreign:#x} were not offered")));
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.memory.replace(table, files)?;
        self.lanes.release_memory();
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.memory.add(region, file)?;
        self.lanes.release_memory();
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region)?;
        self.lanes.release_memory();
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.vring(index)?.size = u16::try_from(num).unwrap_or(0);
        Ok(())
    }

    /// The addresses are the front-end's own, and count from the next start of the ring on.
    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = Addresses {
            desc_table: self.guest_address(index, descriptor)?,
            avail_ring: self.guest_address(index, available)?,
            used_ring: self.guest_address(index, used)?,
        };
        self.vring(index)?.addresses = Some(addresses);
        self.reconcile(index as usize);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else {
            return Err(refuse(format!("Ring {index} is to start at {base}, and counts modulo 2^16")));
        };
        self.vring(index)?.base = base;
        Ok(())
    }

    /// Stops the ring, and answers where it stands when nothing of it is in flight.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?.kick = None;
        self.reconcile(index as usize);
        self.device.line.set_call(index as usize, None);
        Ok(VhostUserVringState::new(index, self.vring(index)?.base.into()))
    }

    /// Without a descriptor the front-end asks for polling, which is not done here: the ring stops.
    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let kick = file.map(eventfd::check).transpose().map_err(Error::ReqHandlerError)?;
        let queue = usize::from(index);
        self.vring(index.into())?.kick = None;
        self.reconcile(queue);
        self.vring(index.into())?.kick = kick.map(Arc::new);
        self.reconcile(queue);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let call = file.map(eventfd::check_writable).transpose().map_err(Error::ReqHandlerError)?;
        let queue = usize::from(index);
        self.vring(index.into())?;
        self.device.line.set_call(queue, call);
        // What was used when there was no eventfd, or one that nobody listens to any more, has yet to be heard of.
        if self.lanes.has(queue) {
            self.device.line.call(queue);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let err = file.map(eventfd::check_writable).transpose().map_err(Error::ReqHandlerError)?;
        self.vring(index.into())?;
        self.device.line.set_err(index.into(), err);
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        self.reconcile(index as usize);
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut data = vec![0; size as usize];
        // A front-end may not survive the refusal of a read, so one that fails gives zeros, as under any transport.
        if let Err(fault) = self.device.config.read(offset.into(), &mut data) {
            self.device_failed(&fault);
        }
        Ok(data)
    }

    /// What lies beyond the device's fields is nobody's: it is dropped.
    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        if let Err(fault) = self.device.config.write(offset.into(), data) {
            self.device_failed(&fault);
        }
        Ok(())
    }

    /// The message is what was announced, and proved to be well-formed.
    fn set_backend_req_fd(&mut self, _backend: Backend) {
        self.device.line.set_channel(self.announced.take());
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}
