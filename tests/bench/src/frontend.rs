//! A vhost-user front-end for disks: what a virtual machine monitor does until its guest can use the device.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest::{Direction, Guest, QUEUE_SIZE, Queue, RingFeatures};
use crate::{call::Call, wait};

/// VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1 (virtio 1.2 §5.2.3,
/// §6), VHOST_USER_F_PROTOCOL_FEATURES.
const FLUSH: u64 = 1 << 9;
const MULTIQUEUE: u64 = 1 << 12;
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

/// Of the protocol's own features, those that are of use here.
const PROTOCOL: Protocol = Protocol::MQ.union(Protocol::REPLY_ACK).union(Protocol::CONFIG);

/// Where the guest has its memory, and where the front-end says it has it.
const GUEST_BASE: u64 = 0x4000_0000;
const USER_BASE: u64 = 0x7f00_0000_0000;

/// What a guest does with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Queues, each with requests of its own.
    pub queues: usize,
    /// Requests in flight in each.
    pub depth: u16,
    /// What they are.
    pub direction: Direction,
    /// Whether indirect descriptors are used if the device has them, as Linux does.
    pub indirect: bool,
}

/// A queue in use, as a guest's vCPU has it.
pub struct Line {
    /// The ring.
    pub queue: Queue,
    /// Driver to device.
    pub kick: EventFd,
    /// Device to driver.
    pub call: Call,
}

/// A connection, which the device serves until it is dropped.
pub struct Session {
    frontend: Frontend,
    queues: usize,
    _guest: Guest,
}

impl Session {
    /// Connects to a device and takes it into use; waits until it listens.
    ///
    /// # Errors
    /// It does not come, or it refuses something.
    pub fn start(socket: &Path, wanted: Use) -> Result<(Self, Vec<Line>)> {
        let connect = || Frontend::connect(socket, wanted.queues as u64).ok();
        let mut frontend = wait::until(connect).with_context(|| format!("Nothing listens at {}", socket.display()))?;
        let features = agree(&mut frontend, wanted).context("The device does not agree on features")?;
        let guest = Guest::new(wanted.queues)?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: guest.bytes() as u64,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: guest.memory().as_fd().as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).context("The device does not take the guest's memory")?;
        let mut lines = Vec::new();
        for index in 0..wanted.queues {
            let queue = guest.queue(index, GUEST_BASE, features, wanted.direction, wanted.depth)?;
            let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, Call::new()?);
            let line = Line { queue, kick, call };
            set_up(&mut frontend, index, &line).with_context(|| format!("The device does not take queue {index}"))?;
            lines.push(line);
        }
        Ok((Self { frontend, queues: wanted.queues, _guest: guest }, lines))
    }

    /// Takes the device out of use: it has answered all there was, or never will.
    ///
    /// # Errors
    /// It does not stop a queue.
    pub fn stop(self) -> Result<()> {
        for index in 0..self.queues {
            self.frontend.get_vring_base(index).with_context(|| format!("The device does not stop queue {index}"))?;
        }
        Ok(())
    }
}

fn agree(frontend: &mut Frontend, wanted: Use) -> Result<RingFeatures> {
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    ensure!(offered & VERSION_1 != 0, "It is a legacy device");
    let protocol = frontend.get_protocol_features()? & PROTOCOL;
    frontend.set_protocol_features(protocol)?;
    if protocol.contains(Protocol::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    if wanted.queues > 1 {
        ensure!(frontend.get_queue_num()? >= wanted.queues as u64, "It has fewer than {} queues", wanted.queues);
    }
    let indirect = if wanted.indirect { INDIRECT } else { 0 };
    let features = offered & (FLUSH | MULTIQUEUE | indirect | EVENT_IDX | VERSION_1 | PROTOCOL_FEATURES);
    frontend.set_features(features)?;
    Ok(RingFeatures { event_idx: features & EVENT_IDX != 0, indirect: features & INDIRECT != 0 })
}

fn set_up(frontend: &mut Frontend, index: usize, line: &Line) -> Result<()> {
    let [desc_table, avail_ring, used_ring] = line.queue.areas().map(|address| address - GUEST_BASE + USER_BASE);
    let addresses = VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: QUEUE_SIZE,
        flags: 0,
        desc_table_addr: desc_table,
        used_ring_addr: used_ring,
        avail_ring_addr: avail_ring,
        log_addr: None,
    };
    frontend.set_vring_num(index, QUEUE_SIZE)?;
    frontend.set_vring_base(index, 0)?;
    frontend.set_vring_addr(index, &addresses)?;
    frontend.set_vring_kick(index, &line.kick)?;
    frontend.set_vring_call(index, line.call.event())?;
    frontend.set_vring_enable(index, true)?;
    Ok(())
}
