//! A front-end as a virtual machine monitor is one, with its guest's memory.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use testkit::device::eventually;
use testkit::driver::{Descriptor, RawQueue};
use testkit::memory::FakeForeignMemory;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::service::Service;

pub const RAM: u64 = 0x4000_0000;
pub const RAM_LEN: u64 = 0x10_0000;
/// Where tests put buffers: behind the queues.
pub const BUFFERS: u64 = RAM + 0x8_0000;
/// Where the front-end has the guest's memory in its own address space.
pub const USER: u64 = 0x7f00_0000_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Entries of the queues that tests make.
pub const SIZE: u16 = 8;

pub struct Vmm {
    /// What the front-end speaks through.
    pub socket: UnixStream,
    pub frontend: Frontend,
    pub memory: FakeForeignMemory,
    pub kicks: Vec<EventFd>,
    pub calls: Vec<EventFd>,
    pub errs: Vec<EventFd>,
}

impl Vmm {
    /// A front-end that has agreed on the protocol, and asks for a reply to each message, so that the device has done
    /// what a message asks for when its function returns.
    pub fn connect(service: &Service) -> Self {
        Self::on(service.connect(), FakeForeignMemory::new(&[(RAM, RAM_LEN)]))
    }

    pub fn on(socket: UnixStream, memory: FakeForeignMemory) -> Self {
        const QUEUES: u64 = 4;
        let mut frontend = Frontend::from_stream(socket.try_clone().unwrap(), QUEUES);
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let offered = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(offered).unwrap();
        assert!(offered.contains(VhostUserProtocolFeatures::REPLY_ACK));
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let events = || (0..QUEUES).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        Self { socket, frontend, memory, kicks: events(), calls: events(), errs: events() }
    }

    /// The same, with features accepted and memory shared.
    pub fn ready(service: &Service) -> Self {
        let vmm = Self::connect(service);
        vmm.accept(VERSION_1);
        vmm.share(&[vmm.region(RAM, RAM_LEN)]);
        vmm
    }

    /// The same, with a queue in use.
    pub fn running(service: &Service) -> (Self, RawQueue) {
        let mut vmm = Self::ready(service);
        let queue = vmm.queue(0);
        vmm.set_up(0, &queue, 0);
        vmm.enable(0, true);
        (vmm, queue)
    }

    /// Accepts these features beside that of the protocol.
    pub fn accept(&self, features: u64) {
        self.frontend.set_features(features | PROTOCOL_FEATURES).unwrap();
    }

    /// A part of the guest's memory.
    pub fn region(&self, start: u64, len: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: start,
            memory_size: len,
            userspace_addr: user(start),
            mmap_offset: start - RAM,
            mmap_handle: self.memory.as_fd().as_raw_fd(),
        }
    }

    pub fn share(&self, regions: &[VhostUserMemoryRegionInfo]) {
        self.frontend.set_mem_table(regions).unwrap();
    }

    /// An empty queue; each index has its place in memory.
    pub fn queue(&self, index: u64) -> RawQueue {
        let queue = RawQueue::new(self.memory.clone(), RAM + index * 0x1000, SIZE);
        queue.clear();
        queue
    }

    /// Says where a queue is and how it notifies, in the order of QEMU.
    pub fn set_up(&self, index: usize, queue: &RawQueue, base: u16) {
        self.frontend.set_vring_num(index, queue.size()).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_addr(index, &addresses(queue)).unwrap();
        self.frontend.set_vring_err(index, &self.errs[index]).unwrap();
        self.frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
        self.frontend.set_vring_call(index, &self.calls[index]).unwrap();
    }

    pub fn enable(&mut self, index: usize, enable: bool) {
        self.frontend.set_vring_enable(index, enable).unwrap();
    }

    /// Offers a request of two descriptors in the next slots, without a kick.
    pub fn publish(&self, queue: &RawQueue) {
        let head = queue.avail_idx().wrapping_mul(2) % SIZE;
        self.memory.write(BUFFERS, b"ping");
        queue.write_chain(head, &[Descriptor::readable(BUFFERS, 4), Descriptor::writable(BUFFERS + 0x100, 16)]);
        queue.publish(head);
    }

    pub fn offer(&self, index: usize, queue: &RawQueue) {
        self.publish(queue);
        self.kicks[index].write(1).unwrap();
    }

    /// Waits until the device notifies the driver of a queue.
    pub fn wait_call(&self, index: usize) {
        eventually("the driver is called", || self.calls[index].read().is_ok());
    }

    /// Offers a request, and waits for its answer.
    pub fn exchange(&self, index: usize, queue: &RawQueue) {
        self.offer(index, queue);
        let used = queue.wait_used(queue.avail_idx());
        let mut answer = [0; 4];
        self.memory.read(BUFFERS + 0x100, &mut answer);
        assert_eq!((used.len, &answer), (4, b"ping"));
        self.memory.write(BUFFERS + 0x100, &[0; 4]);
    }
}

/// Where the front-end has what the guest has at `guest`.
pub fn user(guest: u64) -> u64 {
    guest - RAM + USER
}

pub fn addresses(queue: &RawQueue) -> VringConfigData {
    VringConfigData {
        queue_max_size: queue.size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: user(queue.desc_table()),
        used_ring_addr: user(queue.used_ring()),
        avail_ring_addr: user(queue.avail_ring()),
        log_addr: None,
    }
}
