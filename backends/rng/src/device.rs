//! The source of entropy as a kind of device and as a device model.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_backend::{Backend, Identity, Kind, Owner, Reach, Worker};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::counters::Counters;
use crate::lent::Lent;
use crate::worker::RngWorker;
use crate::{Config, ConfigError, Kernel, Source};

/// Entries of the queue: a driver asks for some bytes now and then, one buffer at a time.
const QUEUE_SIZE: u16 = 64;

/// Bytes that a chain may describe, both directions together; with it goes the memory that a worker needs.
pub(crate) const MAX_CHAIN: usize = 64 << 10;

/// A virtio entropy device.
pub struct Rng {
    identity: Identity,
    source: Arc<dyn Source>,
    lent: Arc<Lent>,
    counters: Arc<Counters>,
}

impl Rng {
    /// A device that gives what `source` has.
    ///
    /// # Errors
    /// The rate is impossible.
    pub fn with_source(config: &Config, source: Arc<dyn Source>) -> Result<Self, ConfigError> {
        config.check()?;
        let identity = Identity {
            device_id: VIRTIO_ID_RNG,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            lanes: std::iter::once(0..1).collect(),
            config_len: 0,
            max_chain_bytes: MAX_CHAIN as u64,
        };
        Ok(Self { identity, source, lent: Arc::new(Lent::new(config.rate)), counters: Arc::default() })
    }
}

impl Kind for Rng {
    type Config = Config;
    type Error = ConfigError;

    const NAME: &'static str = "rng";
    const DEVICE_ID: Option<u32> = Some(VIRTIO_ID_RNG);

    fn check(config: &Config) -> Result<(), ConfigError> {
        config.check()
    }

    fn exclusive(_config: &Config) -> Vec<String> {
        Vec::new()
    }

    fn host_end(_config: &Config) -> String {
        "the kernel's random numbers".into()
    }

    fn open(config: &mut Config, _owner: &Owner) -> Result<Vec<OwnedFd>, ConfigError> {
        config.check().map(|()| Vec::new())
    }

    fn make(
        config: &Config,
        descriptors: Vec<OwnedFd>,
        _reach: Arc<dyn Reach>,
    ) -> Result<Arc<dyn Backend>, ConfigError> {
        match descriptors.len() {
            0 => Ok(Arc::new(Self::with_source(config, Arc::new(Kernel))?)),
            count => Err(ConfigError::Descriptors { count }),
        }
    }
}

impl Backend for Rng {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn start(&self, _lane: usize, _features: u64) -> io::Result<Box<dyn Worker>> {
        let worker = RngWorker::new(Arc::clone(&self.source), Arc::clone(&self.lent), Arc::clone(&self.counters))?;
        Ok(Box::new(worker))
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.snapshot().pairs()
    }
}
