//! vhost-user as a driver of `virtio_drivers` sees it, where a virtual machine monitor would stand between.

use std::cell::Cell;

use testkit::memory::FakeForeignMemory;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::service::Service;
use crate::vmm::{PROTOCOL_FEATURES, RAM, RAM_LEN, Vmm, user};

pub struct SocketTransport {
    kind: DeviceType,
    vmm: Vmm,
    status: Cell<DeviceStatus>,
    set_up: Vec<u16>,
}

impl SocketTransport {
    pub fn new(service: &Service, kind: DeviceType, memory: FakeForeignMemory) -> Self {
        let vmm = Vmm::on(service.connect(), memory);
        vmm.share(&[vmm.region(RAM, RAM_LEN)]);
        Self { kind, vmm, status: Cell::new(DeviceStatus::empty()), set_up: Vec::new() }
    }

    /// What it takes to share the memory once more while a driver has the transport.
    pub fn share(&self) -> (Frontend, VhostUserMemoryRegionInfo) {
        (self.vmm.frontend.clone(), self.vmm.region(RAM, RAM_LEN))
    }
}

impl Transport for SocketTransport {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.vmm.frontend.get_features().unwrap() & !PROTOCOL_FEATURES
    }

    fn write_driver_features(&mut self, features: u64) {
        self.vmm.accept(features);
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        // The protocol has no question for it.
        256
    }

    fn notify(&mut self, queue: u16) {
        self.vmm.kicks[usize::from(queue)].write(1).unwrap();
    }

    fn get_status(&self) -> DeviceStatus {
        self.status.get()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            self.vmm.frontend.reset_device().unwrap();
        } else if status.contains(DeviceStatus::DRIVER_OK) {
            std::mem::take(&mut self.set_up).into_iter().for_each(|queue| self.vmm.enable(queue.into(), true));
        }
        self.status.set(status);
    }

    fn set_guest_page_size(&mut self, _page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        let (frontend, index, size) = (&self.vmm.frontend, usize::from(queue), size as u16);
        let addresses = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: user(descriptors),
            used_ring_addr: user(device),
            avail_ring_addr: user(driver),
            log_addr: None,
        };
        frontend.set_vring_num(index, size).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_kick(index, &self.vmm.kicks[index]).unwrap();
        frontend.set_vring_call(index, &self.vmm.calls[index]).unwrap();
        self.set_up.push(queue);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.vmm.frontend.get_vring_base(queue.into()).unwrap();
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.set_up.contains(&queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let called = self.vmm.calls.iter().any(|call| call.read().is_ok());
        if called { InterruptStatus::QUEUE_INTERRUPT } else { InterruptStatus::empty() }
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let (mut frontend, mut value) = (self.vmm.frontend.clone(), T::new_zeroed());
        let bytes = value.as_mut_bytes();
        let got = frontend.get_config(offset as u32, bytes.len() as u32, VhostUserConfigFlags::empty(), bytes).unwrap();
        bytes.copy_from_slice(&got.1);
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        let written = self.vmm.frontend.set_config(offset as u32, VhostUserConfigFlags::WRITABLE, value.as_bytes());
        written.unwrap();
        Ok(())
    }
}
