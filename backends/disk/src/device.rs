//! The disk as a device model: what the driver sees of it, and the start of its lanes.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use virtio_backend::{Backend, Identity, Worker, copy_config};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use zerocopy::IntoBytes;

use crate::config_space::{ConfigSpace, QUEUE_SIZE};
use crate::counters::Counters;
use crate::request::{MAX_CHAIN, Rules, SECTOR_SIZE};
use crate::worker::{DiskWorker, Life};
use crate::{Config, Plan, PlanError, Storage};

/// A virtio block device over one storage.
///
/// CONFIG_WCE is not offered. Whether writes are cached then follows from what was configured and negotiated, which is
/// known at every start, instead of being a state that a restart could lose.
pub struct Disk {
    identity: Identity,
    config_space: ConfigSpace,
    plan: Plan,
    storage: Box<dyn Storage>,
    counters: Arc<Counters>,
    /// What the lanes now running share; it ends with the last of them, that is at reset. Lanes contend for it when
    /// they start, and never again.
    life: Mutex<Weak<Life>>,
}

impl Disk {
    /// A disk as configured, over `storage`.
    ///
    /// # Errors
    /// The configuration does not fit the storage.
    pub fn new(config: &Config, storage: impl Storage) -> Result<Self, PlanError> {
        Self::over(config, Box::new(storage))
    }

    pub(crate) fn over(config: &Config, storage: Box<dyn Storage>) -> Result<Self, PlanError> {
        let plan = Plan::new(config, &*storage)?;
        let queues = usize::from(plan.queues);
        let identity = Identity {
            device_id: VIRTIO_ID_BLOCK,
            features: features(&plan),
            queue_sizes: vec![QUEUE_SIZE; queues],
            lanes: (0..queues).map(|queue| queue..queue + 1).collect(),
            config_len: ConfigSpace::LEN,
            max_chain_bytes: MAX_CHAIN,
        };
        let (counters, life) = (Arc::default(), Mutex::default());
        Ok(Self { identity, config_space: ConfigSpace::of(&plan), plan, storage, counters, life })
    }

    /// What it serves.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// §5.2.6.2: a driver that was not promised a cache to flush, or does not know to flush it, is told of a write when
    /// it is durable.
    fn writes_are_stable(&self, negotiated: u64) -> bool {
        self.plan.write_through || !has(negotiated, VIRTIO_BLK_F_FLUSH)
    }

    fn join_life(&self) -> Arc<Life> {
        let mut current = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        current.upgrade().unwrap_or_else(|| {
            let life = Arc::default();
            *current = Arc::downgrade(&life);
            life
        })
    }
}

impl Backend for Disk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(self.config_space.as_bytes(), offset, data);
    }

    fn start(&self, _lane: usize, features: u64) -> io::Result<Box<dyn Worker>> {
        let Plan { geometry, read_only, discard, serial, engine, .. } = self.plan;
        Ok(Box::new(DiskWorker {
            engine: self.storage.open_engine(engine, QUEUE_SIZE)?,
            rules: Rules { capacity: geometry.size / SECTOR_SIZE, read_only, discard },
            stable: self.writes_are_stable(features),
            serial,
            life: self.join_life(),
            counters: Arc::clone(&self.counters),
            held: (0..QUEUE_SIZE).map(|_| None).collect(),
        }))
    }

    /// A driver that ignores the block size works in sectors, which direct I/O on larger blocks cannot do.
    fn accepts(&self, features: u64) -> bool {
        let needs_blocks = self.plan.geometry.direct_alignment.is_some_and(|alignment| alignment as u64 > SECTOR_SIZE);
        !needs_blocks || has(features, VIRTIO_BLK_F_BLK_SIZE)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.snapshot().pairs()
    }
}

fn features(plan: &Plan) -> u64 {
    let wanted = [
        (VIRTIO_BLK_F_SIZE_MAX, true),
        (VIRTIO_BLK_F_SEG_MAX, true),
        (VIRTIO_BLK_F_BLK_SIZE, true),
        (VIRTIO_BLK_F_TOPOLOGY, plan.geometry.physical_block_size > plan.geometry.block_size),
        // A driver that sees it believes in a volatile cache, and would flush for nothing.
        (VIRTIO_BLK_F_FLUSH, !plan.write_through),
        (VIRTIO_BLK_F_RO, plan.read_only),
        (VIRTIO_BLK_F_MQ, plan.queues > 1),
        (VIRTIO_BLK_F_DISCARD, plan.discard),
        (VIRTIO_BLK_F_WRITE_ZEROES, !plan.read_only),
    ];
    wanted.iter().filter(|(_, offered)| *offered).fold(0, |bits, (feature, _)| bits | 1 << feature)
}

fn has(features: u64, feature: u32) -> bool {
    features & 1 << feature != 0
}
