//! The disk as a device model: what the driver sees of it, the start of its lanes, and what an operator may ask.

use std::io;
use std::sync::{Arc, OnceLock};

use virtio_backend::{Backend, Identity, Operation, Record, Signals, Worker, copy_config};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use zerocopy::IntoBytes;

use crate::config_space::{ConfigSpace, QUEUE_SIZE};
use crate::hold::Holder;
use crate::request::{MAX_CHAIN, Rules, SECTOR_SIZE};
use crate::resize;
use crate::shared::Shared;
use crate::worker::DiskWorker;
use crate::{Config, Plan, PlanError, Storage};

/// A virtio block device over one storage. Dropped, it brings to persistent storage what a guest that ended has not
/// flushed, and then lets go of the storage.
pub struct Disk {
    identity: Identity,
    plan: Plan,
    storage: Box<dyn Storage>,
    shared: Arc<Shared>,
    signals: OnceLock<Arc<dyn Signals>>,
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
        let shared = Shared::of(&plan, &*storage).map_err(|source| PlanError::NoTimer { source })?;
        let queues = usize::from(plan.queues);
        let identity = Identity {
            device_id: VIRTIO_ID_BLOCK,
            features: features(&plan),
            queue_sizes: vec![QUEUE_SIZE; queues],
            lanes: (0..queues).map(|queue| queue..queue + 1).collect(),
            config_len: ConfigSpace::LEN,
            max_chain_bytes: MAX_CHAIN,
        };
        Ok(Self { identity, plan, storage, shared: Arc::new(shared), signals: OnceLock::new() })
    }

    /// What it serves.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn resize(&self, shrink: bool) -> Result<(), String> {
        let (before, block_size) = (self.shared.capacity.bytes(), self.plan.geometry.block_size);
        let size = resize::check(&*self.storage, block_size, before, shrink)?;
        if size != before {
            self.shared.change_capacity(size, || {
                if let Some(signals) = self.signals.get() {
                    signals.config_changed();
                }
            });
            tracing::info!(name: "disk.resized", image = self.storage.name(), before, size, "The disk has another size");
        }
        Ok(())
    }

    fn resume(&self) -> Result<(), String> {
        match &self.shared.hold {
            Some(hold) => hold.resume(),
            None => Err("This disk never holds requests: it has on_error = \"report\"".to_owned()),
        }
    }
}

impl Backend for Disk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let space = ConfigSpace::of(&self.plan, self.shared.capacity.shown(), self.shared.cache.writeback());
        copy_config(space.as_bytes(), offset, data);
    }

    /// One byte can be written (§5.2.5), and only by itself.
    fn write_config(&self, offset: usize, data: &[u8]) {
        if let (ConfigSpace::WRITEBACK, [writeback]) = (offset, data) {
            self.shared.set_writeback(*writeback);
        }
    }

    fn start(&self, _lane: usize, features: u64) -> io::Result<Box<dyn Worker>> {
        let Plan { geometry, read_only, discard, serial, engine, .. } = self.plan;
        let limits = self.shared.limits.as_ref();
        Ok(Box::new(DiskWorker {
            engine: self.storage.open_engine(engine, QUEUE_SIZE)?,
            rules: Rules {
                capacity: self.shared.capacity.sectors(),
                read_only,
                discard,
                max_discard: geometry.max_discard,
            },
            features,
            serial,
            poll: self.plan.poll,
            shared: Arc::clone(&self.shared),
            timers: limits.map_or(Ok(Vec::new()), |limits| limits.timers())?,
            waits: false,
            holder: self.shared.hold.as_ref().map(Holder::new).transpose()?,
            drains: false,
            works_on: (0..QUEUE_SIZE).map(|_| None).collect(),
        }))
    }

    /// A driver that ignores the block size works in sectors, which direct I/O on larger blocks cannot do.
    fn accepts(&self, features: u64) -> bool {
        let needs_blocks = self.plan.geometry.direct_alignment.is_some_and(|alignment| alignment as u64 > SECTOR_SIZE);
        !needs_blocks || features & 1 << VIRTIO_BLK_F_BLK_SIZE != 0
    }

    fn negotiated(&self, features: u64) {
        self.shared.negotiated(features);
    }

    fn keep(&self, record: &Record) {
        self.storage.follow(record);
        self.shared.kept.begin(record, &self.shared, self.storage.name());
    }

    fn attach(&self, signals: Arc<dyn Signals>) {
        // A second transport there is not.
        let _ = self.signals.set(signals);
    }

    fn operate(&self, operation: Operation) -> Result<(), String> {
        match operation {
            Operation::Resize { shrink } => self.resize(shrink),
            Operation::Resume => self.resume(),
            Operation::Link { .. } => Err("A disk has no cable to plug".to_owned()),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut pairs = self.shared.counters.snapshot().pairs();
        pairs.extend(self.storage.counters());
        if let Some(hold) = &self.shared.hold {
            let (held, seconds) = hold.extent();
            pairs.extend([("held", held), ("held_seconds", seconds)]);
        }
        pairs
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.plan.read_only {
            return;
        }
        if let Err(error) = self.storage.flush() {
            tracing::error!(
                name: "disk.flush_failed", image = self.storage.name(), %error,
                "The disk is closed, and what its guest wrote last and did not flush may be lost"
            );
        }
    }
}

fn features(plan: &Plan) -> u64 {
    let geometry = plan.geometry;
    let has_topology = geometry.physical_block_size > geometry.block_size
        || geometry.optimal_io_size > 0
        || geometry.alignment_offset > 0;
    let wanted = [
        (VIRTIO_BLK_F_SIZE_MAX, true),
        (VIRTIO_BLK_F_SEG_MAX, true),
        (VIRTIO_BLK_F_BLK_SIZE, true),
        (VIRTIO_BLK_F_TOPOLOGY, has_topology),
        // A driver that sees it believes in a volatile cache, and would flush for nothing.
        (VIRTIO_BLK_F_FLUSH, !plan.write_through),
        // Who reads only has nothing to switch.
        (VIRTIO_BLK_F_CONFIG_WCE, !plan.write_through && !plan.read_only),
        (VIRTIO_BLK_F_RO, plan.read_only),
        (VIRTIO_BLK_F_MQ, plan.queues > 1),
        (VIRTIO_BLK_F_DISCARD, plan.discard),
        (VIRTIO_BLK_F_WRITE_ZEROES, !plan.read_only),
    ];
    wanted.iter().filter(|(_, offered)| *offered).fold(0, |bits, (feature, _)| bits | 1 << feature)
}
